import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.boxes import box_ops


def random_boxes(rng, *shape):
    corners = rng.uniform(0, 50, (*shape, 2))
    return np.concatenate([corners, corners + rng.uniform(1, 50, (*shape, 2))], -1)


def plain_iou(a, b):
    height = min(a[2], b[2]) - max(a[0], b[0])
    width = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(height, 0) * max(width, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return shared / (sum(areas) - shared)


def test_iou_equals_values_computed_by_hand():
    a = tf.constant([[0, 0, 2, 2], [1, 1, 3, 3], [0, 0, 4, 4.0]])
    b = tf.constant([[0, 0, 2, 2], [0, 0, 2, 1], [5, 5, 6, 6], [1, 1, 3, 3.0]])
    expected = [
        [1, 1 / 2, 0, 1 / 7],
        [1 / 7, 0, 0, 1],
        [1 / 4, 1 / 8, 0, 1 / 4],
    ]
    np.testing.assert_allclose(box_ops.iou(a, b), expected, rtol=1e-6)


def test_iou_agrees_with_a_plain_loop():
    rng = np.random.default_rng(0)
    a, b = random_boxes(rng, 5), random_boxes(rng, 7)
    expected = [[plain_iou(x, y) for y in b] for x in a]
    actual = box_ops.iou(tf.constant(a, tf.float32), tf.constant(b, tf.float32))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_iou_of_swapped_sides_is_the_transpose():
    rng = np.random.default_rng(1)
    a = tf.constant(random_boxes(rng, 5), tf.float32)
    b = tf.constant(random_boxes(rng, 2, 7), tf.float32)
    forward, backward = box_ops.iou(a, b), box_ops.iou(b, a)
    assert forward.shape == (2, 5, 7)
    np.testing.assert_array_equal(forward, tf.transpose(backward, [0, 2, 1]))


def test_paired_iou_is_the_diagonal():
    rng = np.random.default_rng(2)
    a = tf.constant(random_boxes(rng, 6), tf.float32)
    b = tf.constant(random_boxes(rng, 6), tf.float32)
    np.testing.assert_array_equal(
        box_ops.paired_iou(a, b), tf.linalg.diag_part(box_ops.iou(a, b))
    )


def test_boxes_without_area_have_an_iou_of_zero():
    boxes = tf.constant([[0, 0, 0, 0], [5, 5, 5, 9], [9, 9, 5, 5], [0, 0, 10, 10.0]])
    expected = np.diag([0, 0, 0, 1])
    np.testing.assert_array_equal(box_ops.iou(boxes, boxes), expected)


def test_clip_limits_each_axis_by_its_own_size():
    boxes = tf.constant([[-1, -1, 90, 90], [60, 60, 70, 70.0]])
    np.testing.assert_array_equal(
        box_ops.clip(boxes, (40, 80)), [[0, 0, 40, 80], [40, 60, 40, 70]]
    )


def test_clip_accepts_a_size_for_each_image():
    boxes = tf.fill([2, 3, 4], 50.0)
    sizes = tf.constant([[[10, 20]], [[30, 40]]])
    clipped = box_ops.clip(boxes, sizes)
    np.testing.assert_array_equal(clipped[0], [[10, 20, 10, 20]] * 3)
    np.testing.assert_array_equal(clipped[1], [[30, 40, 30, 40]] * 3)


@pytest.mark.parametrize(
    ("convert", "convert_back"),
    [
        (box_ops.yxyx_to_cyxhw, box_ops.cyxhw_to_yxyx),
        (box_ops.swap_xy, box_ops.swap_xy),
    ],
)
def test_frame_conversions_are_inverse(convert, convert_back):
    boxes = random_boxes(np.random.default_rng(3), 2, 5).astype(np.float32)
    np.testing.assert_allclose(convert_back(convert(boxes)), boxes, atol=2e-5)


def test_frames_of_one_box_equal_values_computed_by_hand():
    box = tf.constant([1, 2, 5, 12.0])
    np.testing.assert_array_equal(box_ops.yxyx_to_cyxhw(box), [3, 7, 4, 10])
    np.testing.assert_array_equal(box_ops.swap_xy(box), [2, 1, 12, 5])
