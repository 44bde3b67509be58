import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import annotations, tf_example

OBJECTS = (
    annotations.AnnotatedObject(1, 7, (10.0, 5.0, 30.0, 20.0), 600.0, False),
    annotations.AnnotatedObject(2, 3, (0.0, 0.0, 100.0, 50.3), 90.0, True),
)
IMAGE = annotations.AnnotatedImage(42, "a.jpg", 50, 100, OBJECTS)


def encode(image=IMAGE):
    return tf_example.encode(
        image, b"pixels", image_format="jpeg", names={7: "dog", 3: "cat"}
    )


def without(key):
    example = tf.train.Example.FromString(encode())
    del example.features.feature[key]
    return example.SerializeToString()


def test_a_parsed_record_equals_the_encoded_one():
    parsed = tf_example.parse(tf.constant(encode()))
    assert parsed.encoded.numpy() == b"pixels"
    assert parsed.image_id.numpy() == 42
    np.testing.assert_allclose(
        parsed.boxes_yxyx_norm, [[0.1, 0.1, 0.5, 0.4], [0, 0, 1, 1]], atol=1e-7
    )
    np.testing.assert_array_equal(parsed.category_ids, [7, 3])
    np.testing.assert_array_equal(parsed.is_crowd, [False, True])


def test_keys_are_those_of_the_object_detection_api():
    features = tf.train.Example.FromString(encode()).features.feature
    assert features["image/source_id"].bytes_list.value[0] == b"42"
    assert features["image/format"].bytes_list.value[0] == b"jpeg"
    assert features["image/height"].int64_list.value[0] == 50
    assert features["image/width"].int64_list.value[0] == 100
    assert list(features["image/object/class/text"].bytes_list.value) == [
        b"dog",
        b"cat",
    ]
    assert list(features["image/object/area"].float_list.value) == [600.0, 90.0]


def test_encoding_is_deterministic():
    assert len({encode() for _ in range(20)}) == 1


def test_an_image_without_boxes_can_be_encoded_and_parsed():
    parsed = tf_example.parse(tf.constant(encode(IMAGE._replace(objects=()))))
    assert parsed.boxes_yxyx_norm.shape == (0, 4)
    assert parsed.category_ids.shape == (0,)


def test_missing_crowd_flags_mean_no_crowds():
    parsed = tf_example.parse(tf.constant(without("image/object/is_crowd")))
    np.testing.assert_array_equal(parsed.is_crowd, [False, False])


@pytest.mark.parametrize(
    "key",
    [
        "image/encoded",
        "image/source_id",
        "image/object/class/label",
        "image/object/bbox/xmin",
        "image/object/bbox/ymax",
    ],
)
def test_a_missing_key_is_an_error_with_its_name(key):
    with pytest.raises(tf.errors.InvalidArgumentError, match=key):
        tf_example.parse(tf.constant(without(key)))


@pytest.mark.parametrize("source_id", ["", "picture-7", "1.5", "-1", "1" * 20])
def test_an_image_id_that_is_not_an_integer_is_an_error(source_id):
    example = tf.train.Example.FromString(encode())
    value = example.features.feature["image/source_id"].bytes_list.value
    value[0] = source_id.encode()
    with pytest.raises(tf.errors.InvalidArgumentError, match="integer from 0 to 922"):
        tf_example.parse(tf.constant(example.SerializeToString()))


IDS = [0, 10**17, 10**18, 2**63 - 1, 2**63, 10**19 - 1, 10**19, -1]


@pytest.mark.parametrize("image_id", IDS)
def test_the_encoder_accepts_the_image_ids_that_the_parser_accepts(image_id):
    image = IMAGE._replace(image_id=image_id)
    if 0 <= image_id < 2**63:
        tf_example.check_image_id(image)
        assert tf_example.parse(tf.constant(encode(image))).image_id == image_id
        return
    with pytest.raises(errors.UserError, match=rf"id {image_id}.*Renumber"):
        tf_example.check_image_id(image)
    with pytest.raises(tf.errors.InvalidArgumentError):
        tf_example.parse(tf.constant(encode(image)))
