import pytest
import tensorflow as tf

from retinanet_tpu.serving import warm_up


def fields(message: bytes) -> list[tuple[int, bytes]]:
    """Returns the numbers and contents of a message's fields, which must be strings."""
    result, position = [], 0

    def varint():
        nonlocal position
        value, shift = 0, 0
        while True:
            byte = message[position]
            position += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while position < len(message):
        tag = varint()
        assert tag & 7 == 2
        size = varint()
        result.append((tag >> 3, message[position : position + size]))
        position += size
    return result


def test_request_has_the_field_numbers_of_tensorflow_serving():
    value = tf.make_tensor_proto([b"x"])
    serialized = warm_up.make_request("image_bytes", {"image_bytes": value})
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
    log = apis.PredictionLog.FromString(warm_up.make_request("images", inputs))
    request = log.predict_log.request
    assert request.model_spec.signature_name == "images"
    tensor = tf.make_ndarray(request.inputs["images"])
    assert tensor.shape == (1, 2, 2, 3) and (tensor == 7).all()


def test_requests_are_in_the_file_that_tensorflow_serving_reads(tmp_path):
    (tmp_path / "assets.extra").mkdir()
    warm_up.write_requests(str(tmp_path), [b"one", b"two"])
    path = tmp_path / "assets.extra" / "tf_serving_warmup_requests"
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == [
        b"one",
        b"two",
    ]
