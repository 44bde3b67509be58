import math

import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
import tensorflow as tf

from retinanet_tpu.data import examples, random_ops, transforms

SIZE = (48, 64)
MEAN = np.array(transforms.MEAN_COLOR)


def noise(seed=0, *, size=SIZE):
    """Returns an image whose channels have different, uneven ranges of values."""
    uniforms = np.random.default_rng(seed).beta(2, 5, [*size, 3])
    return (uniforms * [90, 200, 255] + [60, 20, 0]).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_autocontrast_and_equalize_equal_those_of_pillow(seed):
    image = noise(seed)
    pillow = PIL.Image.fromarray(image)
    # Pillow rounds the factor of the stretch in another place.
    np.testing.assert_allclose(
        random_ops.autocontrast(image).numpy().astype(int),
        np.array(PIL.ImageOps.autocontrast(pillow), int),
        atol=1,
    )
    np.testing.assert_array_equal(
        random_ops.equalize(image), PIL.ImageOps.equalize(pillow)
    )


@pytest.mark.parametrize("operation", [random_ops.autocontrast, random_ops.equalize])
def test_an_image_of_one_color_keeps_it(operation):
    image = np.full([8, 9, 3], [7, 128, 255], np.uint8)
    np.testing.assert_array_equal(operation(image), image)


@pytest.mark.parametrize("strength", [-1.0, -0.3, 0.0, 0.8])
def test_sharpening_adds_the_difference_from_the_mean_of_the_neighbors(strength):
    image = noise()
    pixels = image.astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(pixels, (3, 3), axis=(0, 1))
    inside = pixels[1:-1, 1:-1]
    expected = inside + strength * (inside - windows.mean(axis=(-2, -1)))
    got = random_ops.sharpen(image, strength).numpy().astype(float)
    np.testing.assert_allclose(got[1:-1, 1:-1], expected.clip(0, 255), atol=0.501)


def forward_xy(strengths):
    """Returns the matrix and the shift of a deformation, float64, NumPy."""
    shear_x, shear_y, turn, *shift = strengths
    angle = math.pi / 6 * turn
    rotation = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    shear = np.array([[1, 0.3 * shear_x], [0.3 * shear_y, 1]])
    return np.array(rotation) @ shear, 0.25 * np.array(shift) * SIZE[::-1]


STRENGTHS = [
    *(0.8 * np.eye(5)),
    *(-0.8 * np.eye(5)),
    np.array([0.3, -0.4, 0.5, 0.2, -0.3]),
]


@pytest.mark.parametrize("strengths", STRENGTHS)
def test_boxes_contain_the_corners_of_their_deformed_object(strengths):
    box = np.array([18, 20, 34, 42.0])
    image = np.full([*SIZE, 3], 30, np.uint8)
    image[18:34, 20:42] = 250
    moved, boxes = random_ops.deform(
        tf.constant(image),
        tf.constant([box], tf.float32),
        tf.constant(strengths, tf.float32),
    )
    matrix, shift = forward_xy(strengths)
    center = np.array(SIZE[::-1]) / 2
    corners = np.array([[x, y] for x in box[1::2] for y in box[::2]]) - center
    corners = corners @ matrix.T + center + shift
    expected = [*corners.min(0)[::-1], *corners.max(0)[::-1]]
    expected = np.clip(expected, 0, [*SIZE, *SIZE])
    np.testing.assert_allclose(boxes[0], expected, atol=1e-3)
    # The bright pixels end where the box ends, but for the blur of the edge.
    rows, columns = np.nonzero(moved.numpy()[..., 2] > 177)
    seen = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    np.testing.assert_allclose(seen, expected, atol=2.01)


def test_a_deformation_of_strength_0_changes_nothing():
    image, boxes = noise(), tf.constant([[1.0, 2.0, 30.0, 40.0]])
    moved, same = random_ops.deform(tf.constant(image), boxes, tf.zeros([5]))
    np.testing.assert_array_equal(moved, image)
    np.testing.assert_allclose(same, boxes, atol=1e-4)


def test_uncovered_pixels_have_the_mean_color():
    image = tf.constant(noise())
    moved, _ = random_ops.deform(image, tf.zeros([0, 4]), tf.one_hot(3, 5))
    np.testing.assert_array_equal(moved[:, :15], np.tile(MEAN, [SIZE[0], 15, 1]))
    np.testing.assert_array_equal(moved[:, 16:], image[:, :-16])


def test_boxes_moved_out_of_the_image_and_empty_boxes_are_dropped():
    boxes = tf.constant(
        [
            [10.0, 44.0, 30.0, 64.0],  # A fifth remains: 4 of 20 columns.
            [10.0, 45.0, 30.0, 64.0],  # Less than a fifth.
            [10.0, 0.0, 30.0, 10.0],
            [10.0, 0.0, 30.0, 0.0],  # Cropped away before.
        ]
    )
    image = tf.constant(noise())
    _, moved = random_ops.deform(image, boxes, tf.one_hot(3, 5))
    is_kept = transforms.is_nonempty(moved).numpy()
    np.testing.assert_array_equal(is_kept, [True, False, True, False])
    _, turned = random_ops.deform(image, boxes, tf.one_hot(2, 5))
    assert not transforms.is_nonempty(turned)[3]


@pytest.mark.parametrize("seed", range(5))
def test_an_erased_rectangle_has_the_mean_color_and_hides_boxes(seed):
    rng = np.random.default_rng(seed)
    image = np.zeros([*SIZE, 3], np.uint8)
    starts = rng.uniform(0, 40, [2000, 2]) * [1, 1.3]
    ends = np.minimum(starts + rng.uniform(2, 12, [2000, 2]), SIZE)
    boxes = np.concatenate([starts, ends], axis=1).astype(np.float32)
    uniforms = tf.unstack(tf.constant(rng.random(4), tf.float32))
    erased, kept = random_ops.erase(tf.constant(image), tf.constant(boxes), *uniforms)
    is_erased = (erased.numpy() == MEAN).all(-1)
    np.testing.assert_array_equal(erased.numpy()[~is_erased], 0)
    rows, columns = np.nonzero(is_erased)
    window = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
    height, width = window[2] - window[0], window[3] - window[1]
    assert is_erased.sum() == height * width
    assert 0.015 < is_erased.mean() < 0.21
    assert 0.25 < height / width < 4
    low, high = (
        np.maximum(boxes[:, :2], window[:2]),
        np.minimum(boxes[:, 2:], window[2:]),
    )
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    hidden = np.maximum(high - low, 0).prod(1) / areas
    is_kept = transforms.is_nonempty(kept).numpy()
    np.testing.assert_array_equal(is_kept, hidden <= 0.8)
    np.testing.assert_array_equal(kept.numpy()[is_kept], boxes[is_kept])
    assert 0 < (~is_kept).sum() < 500


def test_random_numbers_choose_the_operations_and_the_erasing():
    image, boxes = tf.constant(noise()), tf.constant([[4.0, 4.0, 40.0, 60.0]])

    def apply(*uniforms, num_ops=1, erasing=0.5, magnitude=1.0):
        return random_ops.apply(
            image,
            boxes,
            tf.constant([*uniforms, 0.5, 0.5, 0.5, 0.5]),
            num_ops=num_ops,
            magnitude=magnitude,
            erasing=erasing,
        )

    changed = [apply(op / 8 + 0.01, 0.9, 0.9)[0].numpy() for op in range(8)]
    assert len({pixels.tobytes() for pixels in changed}) == random_ops.NUM_OPS
    np.testing.assert_array_equal(changed[0], random_ops.autocontrast(image))
    both, _ = apply(0.01, 0.5, 0.2, 0.5, 0.9, num_ops=2)
    np.testing.assert_array_equal(
        both, random_ops.equalize(random_ops.autocontrast(image))
    )
    erased, _ = apply(0.4, num_ops=0)
    np.testing.assert_array_equal(erased, random_ops.erase(image, boxes, *[0.5] * 4)[0])
    # Autocontrast and equalize have no strength.
    for op in range(2, 8):
        still, same = apply(op / 8 + 0.01, 0.9, 0.9, magnitude=0.0)
        np.testing.assert_array_equal(still, image)
        np.testing.assert_allclose(same, boxes, atol=1e-4)


def test_the_number_of_random_numbers_is_that_which_is_used():
    assert examples.Augmentation().num_random_op_uniforms == 0
    for settings in ({"random_ops": 3}, {"random_erasing": 0.5}):
        augmentation = examples.Augmentation(**settings)
        uniforms = tf.zeros([augmentation.num_random_op_uniforms])
        image, _ = random_ops.apply(
            tf.constant(noise()),
            tf.zeros([0, 4]),
            uniforms,
            num_ops=augmentation.random_ops,
            magnitude=0.5,
            erasing=augmentation.random_erasing,
        )
        assert image.shape == (*SIZE, 3)
