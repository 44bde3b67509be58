import dataclasses
import io

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

import servers
from retinanet_tpu import errors
from retinanet_tpu.data import transforms
from retinanet_tpu.serving import checked_detections, formats, server

KEYS = {"boxes_xyxy", "scores", "class_ids", "valid_detections"}


@pytest.fixture(scope="module")
def module():
    return servers.make()


@pytest.fixture(scope="module")
def images():
    return servers.images(3)


@pytest.fixture(scope="module")
def detections(module, images):
    return module.detect_images(images)


def encoded(images):
    return [tf.io.encode_png(image).numpy() for image in images]


def assert_same(actual, expected):
    assert set(actual) == set(expected)
    for key, value in expected.items():
        np.testing.assert_allclose(
            actual[key], value, rtol=1e-5, atol=1e-4, err_msg=key
        )


def test_batched_detection_equals_per_image(module, images, detections):
    assert detections["valid_detections"].numpy().min() > 3
    for row, image in enumerate(images):
        one = module.detect_images(image[None])
        assert_same(
            one, {key: value[row : row + 1] for key, value in detections.items()}
        )


def test_served_detections_are_those_of_the_checkpoint(module, images, detections):
    predicted = checked_detections.detect_with_checkpoint(
        module.network, module.recipe, images
    )
    for row, expected in enumerate(predicted):
        np.testing.assert_allclose(
            detections["boxes_xyxy"][row],
            expected.boxes_yxyx[0][:, [1, 0, 3, 2]],
            atol=1e-3,
        )
        np.testing.assert_allclose(
            detections["scores"][row], expected.scores[0], atol=1e-5
        )
        np.testing.assert_array_equal(detections["class_ids"][row], expected.classes[0])


def test_default_signature_has_the_outputs_of_one_image(module, images, detections):
    one = module.detect_one(tf.constant(images[1], tf.float32), tf.constant(77))
    assert one["image_id"] == 77
    assert_same(
        {key: one[key] for key in KEYS}, {key: detections[key][1] for key in KEYS}
    )
    np.testing.assert_array_equal(one["boxes"], one["boxes_xyxy"])


@pytest.mark.long
def test_files_and_examples_have_the_detections_of_their_pixels(
    module, images, detections
):
    files = encoded(images)
    assert_same(module.detect_bytes(tf.constant(files)), detections)
    examples = [checked_detections.make_example(content) for content in files]
    assert_same(module.detect_examples(tf.constant(examples)), detections)


def test_files_of_different_sizes_share_a_batch(module):
    small = servers.images(1, (40, 30))
    large = servers.images(1, (70, 111), seed=1)
    stream = io.BytesIO()
    PIL.Image.fromarray(large[0]).save(stream, "JPEG", quality=95)
    jpeg = tf.io.decode_jpeg(stream.getvalue()).numpy()
    both = module.detect_bytes(tf.constant([*encoded(small), stream.getvalue()]))
    for row, image in enumerate((small[0], jpeg)):
        expected = module.detect_images(image[None])
        assert_same({k: v[row : row + 1] for k, v in both.items()}, expected)
        sides = image.shape[1::-1] * 2
        assert (both["boxes_xyxy"][row].numpy() <= np.array(sides)).all()


@pytest.mark.long
@pytest.mark.parametrize("size", [(131, 200), (301, 530)])
def test_large_images_have_the_same_detections_encoded_and_decoded(module, size):
    images = servers.images(2, size)
    decoded = module.detect_images(images)
    assert decoded["valid_detections"].numpy().min() > 3
    assert_same(module.detect_bytes(tf.constant(encoded(images))), decoded)
    predicted = checked_detections.detect_with_checkpoint(
        module.network, module.recipe, images
    )
    for row, expected in enumerate(predicted):
        boxes_yxyx = expected.boxes_yxyx[0]
        np.testing.assert_allclose(
            decoded["boxes_xyxy"][row], boxes_yxyx[:, [1, 0, 3, 2]], atol=1e-3
        )


def test_ids_are_those_of_the_dataset(detections):
    count = detections["valid_detections"][0]
    assert set(detections["class_ids"][0, :count].numpy()) <= {7, 40}
    assert not detections["class_ids"][0, count:].numpy().any()


def test_image_of_one_pixel_is_valid(module):
    detections = module.detect_images(np.full([1, 1, 1, 3], 200, np.uint8))
    assert detections["boxes_xyxy"].numpy().max() <= 1


def test_empty_batch_is_an_error_with_the_remedy(module):
    for call, nothing in (
        (module.detect_images, np.zeros([0, 8, 8, 3], np.uint8)),
        (module.detect_bytes, tf.constant([], tf.string)),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match="0 images; send"):
            call(nothing)


def test_text_instead_of_an_image_fails_that_request_only(module, images):
    good = encoded(images[:1])
    with pytest.raises(tf.errors.InvalidArgumentError, match="Unknown image file form"):
        module.detect_bytes(tf.constant([*good, b"What is in this image?"]))
    assert module.detect_bytes(tf.constant(good))["valid_detections"].numpy() > 0


def test_boxes_of_inputs_are_in_pixels_of_the_inputs(module, images, detections):
    inputs, scales = transforms.letterbox(images, (64, 64))
    inside = module.read_inputs(module.predict_inputs(inputs))
    np.testing.assert_array_equal(inside["class_ids"], detections["class_ids"])
    back = inside["boxes_xyxy"] / tf.tile(scales[::-1], [2])
    limits = tf.constant([90.0, 60.0, 90.0, 60.0])
    np.testing.assert_allclose(
        tf.minimum(back, limits), detections["boxes_xyxy"], atol=1e-3
    )


def test_raw_scores_are_zero_without_a_category(module):
    raw = module.raw(tf.zeros([2, 64, 64, 3]))
    num_anchors = raw["boxes_yxyx"].shape[1]
    assert raw["scores"].shape == (2, num_anchors, 3)
    assert not raw["scores"][..., 1].numpy().any()
    assert raw["scores"].numpy()[..., [0, 2]].min() > 0
    assert 0 <= raw["boxes_yxyx"].numpy().min() <= raw["boxes_yxyx"].numpy().max() <= 64


def test_a_stretching_recipe_is_served_as_it_is_evaluated(module, images):
    recipe = dataclasses.replace(module.recipe, keep_aspect_ratio=False)
    stretching = server.ServingModule(module.network, recipe)
    served = stretching.detect_images(images)
    (expected,) = checked_detections.detect_with_checkpoint(
        module.network, recipe, images[:1]
    )
    np.testing.assert_allclose(served["scores"][0], expected.scores[0], atol=1e-5)
    assert_same(stretching.detect_bytes(tf.constant(encoded(images))), served)
    kept = module.detect_images(images)
    assert np.abs(served["scores"] - kept["scores"]).max() > 1e-3


@pytest.mark.parametrize("name", ["tflite_int8", "tensorrt"])
def test_formats_without_resizing_refuse_a_stretching_recipe(module, name):
    names, nms_fn = ["saved_model", name], module.recipe.nms_fn
    with pytest.raises(errors.UserError, match=f"{name} has no image resizing"):
        formats.check_formats(names, nms_fn, keep_aspect_ratio=False)
