import pytest
import tensorflow as tf

from retinanet_tpu.serving import warm_up


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """Returns the numbers and contents of a message's fields, all of them strings."""
    found, place = [], 0

    def varint():
        nonlocal place
        value, shift = 0, 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        tag = varint()
        assert tag & 7 == 2
        size = varint()
        found.append((tag >> 3, message[place : place + size]))
        place += size
    return found


def test_a_request_has_the_numbers_of_tensorflow_servings_messages():
    value = tf.make_tensor_proto([b"x"])
    serialized = warm_up.request("image_bytes", {"image_bytes": value})
    ((log, predict),) = fields(serialized)
    ((request, content),) = fields(predict)
    assert (log, request) == (6, 1)
    (one, spec), (two, entry) = fields(content)
    assert (one, two) == (1, 2)
    assert fields(spec) == [(1, b"retinanet"), (3, b"image_bytes")]
    assert fields(entry) == [(1, b"image_bytes"), (2, value.SerializeToString())]


def test_tensorflow_serving_reads_the_request():
    apis = pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2")
    inputs = {"images": tf.make_tensor_proto(7, tf.uint8, [1, 2, 2, 3])}
    log = apis.PredictionLog.FromString(warm_up.request("images", inputs))
    request = log.predict_log.request
    assert request.model_spec.signature_name == "images"
    tensor = tf.make_ndarray(request.inputs["images"])
    assert tensor.shape == (1, 2, 2, 3) and (tensor == 7).all()


def test_requests_lie_where_tensorflow_serving_looks(tmp_path):
    (tmp_path / "assets.extra").mkdir()
    warm_up.write(str(tmp_path), [b"one", b"two"])
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == [
        b"one",
        b"two",
    ]
