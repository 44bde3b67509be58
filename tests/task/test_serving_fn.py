import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import servers
from retinanet_tpu.data import transforms
from retinanet_tpu.serving import parity

KEYS = {"boxes_xyxy", "scores", "class_ids", "valid_detections"}


@pytest.fixture(scope="module")
def server():
    return servers.make()


@pytest.fixture(scope="module")
def pictures():
    return servers.pictures(3)


@pytest.fixture(scope="module")
def found(server, pictures):
    return server.detect_images(pictures)


def encoded(pictures):
    return [tf.io.encode_png(picture).numpy() for picture in pictures]


def assert_same(got, expected):
    assert set(got) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(got[key], value, rtol=1e-5, atol=1e-4, err_msg=key)


def test_a_batch_finds_what_each_picture_alone_has(server, pictures, found):
    assert found["valid_detections"].numpy().min() > 3
    for row, picture in enumerate(pictures):
        one = server.detect_images(picture[None])
        assert_same(one, {key: value[row : row + 1] for key, value in found.items()})


def test_what_is_served_is_what_the_checkpoint_predicts(server, pictures, found):
    predicted = parity.predict(server.network, server.recipe, pictures)
    for row, expected in enumerate(predicted):
        np.testing.assert_allclose(
            found["boxes_xyxy"][row], expected.boxes_yxyx[0][:, [1, 0, 3, 2]], atol=1e-3
        )
        np.testing.assert_allclose(found["scores"][row], expected.scores[0], atol=1e-5)
        np.testing.assert_array_equal(found["class_ids"][row], expected.classes[0])


def test_the_default_signature_has_the_keys_of_one_picture(server, pictures, found):
    one = server.detect_one(tf.constant(pictures[1], tf.float32), tf.constant(77))
    assert one["image_id"] == 77
    assert_same({key: one[key] for key in KEYS}, {key: found[key][1] for key in KEYS})
    np.testing.assert_array_equal(one["boxes"], one["boxes_xyxy"])


def test_files_and_examples_find_what_their_pixels_have(server, pictures, found):
    files = encoded(pictures)
    assert_same(server.detect_bytes(tf.constant(files)), found)
    examples = [parity.example(content) for content in files]
    assert_same(server.detect_examples(tf.constant(examples)), found)


def test_files_of_different_sizes_share_a_batch(server):
    small, large = servers.pictures(1, (40, 30)), servers.pictures(1, (70, 111), seed=1)
    stream = io.BytesIO()
    PIL.Image.fromarray(large[0]).save(stream, "JPEG", quality=95)
    jpeg = tf.io.decode_jpeg(stream.getvalue()).numpy()
    both = server.detect_bytes(tf.constant([*encoded(small), stream.getvalue()]))
    for row, picture in enumerate((small[0], jpeg)):
        expected = server.detect_images(picture[None])
        assert_same({k: v[row : row + 1] for k, v in both.items()}, expected)
        sides = picture.shape[1::-1] * 2
        assert (both["boxes_xyxy"][row].numpy() <= np.array(sides)).all()


@pytest.mark.parametrize("size", [(131, 200), (301, 530)])
def test_large_images_find_the_same_encoded_and_decoded(server, size):
    images = servers.pictures(2, size)
    decoded = server.detect_images(images)
    assert decoded["valid_detections"].numpy().min() > 3
    assert_same(server.detect_bytes(tf.constant(encoded(images))), decoded)
    predicted = parity.predict(server.network, server.recipe, images)
    for row, expected in enumerate(predicted):
        boxes_yxyx = expected.boxes_yxyx[0]
        np.testing.assert_allclose(
            decoded["boxes_xyxy"][row], boxes_yxyx[:, [1, 0, 3, 2]], atol=1e-3
        )


def test_ids_are_the_data_sets(found):
    count = found["valid_detections"][0]
    assert set(found["class_ids"][0, :count].numpy()) <= {7, 40}
    assert not found["class_ids"][0, count:].numpy().any()


def test_a_picture_of_one_pixel_is_no_error(server):
    found = server.detect_images(np.full([1, 1, 1, 3], 200, np.uint8))
    assert found["boxes_xyxy"].numpy().max() <= 1


def test_an_empty_batch_is_an_error_that_says_so(server):
    for call, nothing in (
        (server.detect_images, np.zeros([0, 8, 8, 3], np.uint8)),
        (server.detect_bytes, tf.constant([], tf.string)),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="0 images; send"):
            call(nothing)


def test_text_instead_of_a_picture_fails_that_request_only(server, pictures):
    good = encoded(pictures[:1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file form"):
        server.detect_bytes(tf.constant([*good, b"What is in this image?"]))
    assert server.detect_bytes(tf.constant(good))["valid_detections"].numpy() > 0


def test_inputs_are_read_in_their_own_pixels(server, pictures, found):
    inputs, scales = transforms.letterbox(pictures, (64, 64))
    inside = server.read_inputs(server.predict_inputs(inputs))
    np.testing.assert_array_equal(inside["class_ids"], found["class_ids"])
    back = inside["boxes_xyxy"] / tf.tile(scales[::-1], [2])
    limits = tf.constant([90.0, 60.0, 90.0, 60.0])
    np.testing.assert_allclose(tf.minimum(back, limits), found["boxes_xyxy"], atol=1e-3)


def test_raw_scores_are_zero_where_there_is_no_class(server):
    raw = server.raw(tf.zeros([2, 64, 64, 3]))
    num_anchors = raw["boxes_yxyx"].shape[1]
    assert raw["scores"].shape == (2, num_anchors, 3)
    assert not raw["scores"][..., 1].numpy().any()
    assert raw["scores"].numpy()[..., [0, 2]].min() > 0
    assert 0 <= raw["boxes_yxyx"].numpy().min() <= raw["boxes_yxyx"].numpy().max() <= 64
