"""Compares the losses of boxes with plain float64 formulas, and their gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf

import gradients
from retinanet_tpu import structures
from retinanet_tpu.boxes import box_coder
from retinanet_tpu.learning import box_losses

# Two anchors of a cell.
SIZES_HW = np.array([[32.0, 16.0], [20.0, 40.0]])
LOSSES = {
    "iou": box_losses.iou_loss,
    "giou": box_losses.giou_loss,
    "diou": box_losses.diou_loss,
    "ciou": box_losses.ciou_loss,
}


def random_deltas(seed, scale=0.4):
    """Returns predicted and target offsets, [1, 3, 5, 8], and classes."""
    rng = np.random.default_rng(seed)
    deltas, target_deltas = rng.normal(0, scale, (2, 1, 3, 5, 8))
    classes = rng.integers(structures.IGNORE, 3, (1, 2, 3, 5))
    return np.float32(deltas), np.float32(target_deltas), np.int32(classes)


def decode(deltas):
    """Returns float64 [N, 4]: boxes of anchors whose centers are at 100, yxyx."""
    anchors = np.concatenate([np.full([2, 2], 100.0), SIZES_HW], 1)
    dy, dx, dh, dw = tf.unstack(tf.reshape(deltas, [-1, 2, 4]), axis=-1)
    y, x = 100 + dy * anchors[:, 2], 100 + dx * anchors[:, 3]
    h, w = anchors[:, 2] * tf.exp(dh), anchors[:, 3] * tf.exp(dw)
    return tf.reshape(
        tf.stack([y - h / 2, x - w / 2, y + h / 2, x + w / 2], -1), [-1, 4]
    )


def plain_losses(name, a, b):
    """Returns the loss of each pair of boxes by the formulas of the papers."""
    sides = tf.maximum(
        tf.minimum(a[:, 2:], b[:, 2:]) - tf.maximum(a[:, :2], b[:, :2]), 0
    )
    shared = sides[:, 0] * sides[:, 1]
    size_a, size_b = a[:, 2:] - a[:, :2], b[:, 2:] - b[:, :2]
    union = size_a[:, 0] * size_a[:, 1] + size_b[:, 0] * size_b[:, 1] - shared
    iou = shared / union
    around = tf.maximum(a[:, 2:], b[:, 2:]) - tf.minimum(a[:, :2], b[:, :2])
    if name == "iou":
        return 1 - iou
    if name == "giou":
        area = around[:, 0] * around[:, 1]
        return 1 - (iou - (area - union) / area)
    center_a, center_b = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
    distance = tf.reduce_sum((center_a - center_b) ** 2, -1)
    diou = 1 - iou + distance / tf.reduce_sum(around**2, -1)
    if name == "diou":
        return diou
    ratios = [tf.atan(size[:, 1] / size[:, 0]) for size in (size_a, size_b)]
    v = 4 / math.pi**2 * (ratios[0] - ratios[1]) ** 2
    return diou + tf.stop_gradient(v / (1 - iou + v)) * v


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("scale", [0.2, 1.0])  # 1.0: many boxes do not overlap.
def test_losses_and_gradients_agree_with_the_papers(name, scale):
    deltas, target_deltas, classes = random_deltas(0, scale)
    is_positive = np.moveaxis(classes, 1, -1).ravel() >= 0

    def plain(x):
        boxes = decode(x), decode(tf.constant(target_deltas, tf.float64))
        return tf.reduce_sum(plain_losses(name, *boxes)[is_positive])

    loss, gradient = gradients.value_and_gradient(
        lambda x: LOSSES[name](x, target_deltas, classes, SIZES_HW),
        tf.constant(deltas),
    )
    expected, expected_gradient = gradients.value_and_gradient(
        plain, tf.constant(deltas, tf.float64)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


def test_ious_of_predictions_are_those_of_the_decoded_boxes():
    deltas, target_deltas, classes = random_deltas(1)
    variable = tf.Variable(deltas)
    with tf.GradientTape() as tape:
        ious = box_losses.predicted_ious(variable, target_deltas, classes, SIZES_HW)
    assert tape.gradient(ious, variable) is None
    losses = plain_losses(
        "iou", *(decode(np.float64(x)) for x in (deltas, target_deltas))
    )
    expected = np.moveaxis(np.reshape(1 - losses, [1, 3, 5, 2]), -1, 1)
    np.testing.assert_allclose(ious, np.where(classes >= 0, expected, 0), atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_has_no_loss(name):
    _, target_deltas, classes = random_deltas(2)
    loss = LOSSES[name](target_deltas, target_deltas, np.abs(classes), SIZES_HW)
    np.testing.assert_allclose(loss, 0, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_predictions_have_finite_losses_and_gradients(name):
    rng = np.random.default_rng(3)
    deltas = rng.choice([-1e3, -50, 0, 50, 1e3], (1, 8, 8, 8)).astype(np.float32)
    loss, gradient = gradients.value_and_gradient(
        lambda x: LOSSES[name](
            x, np.zeros_like(deltas), np.zeros([1, 2, 8, 8], np.int32), SIZES_HW
        ),
        tf.constant(deltas),
    )
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [*LOSSES, "huber"])
def test_anchors_without_an_object_have_no_loss(name):
    deltas, target_deltas, classes = random_deltas(4)
    loss_fn = LOSSES.get(name, box_losses.huber_loss)
    loss, gradient = gradients.value_and_gradient(
        lambda x: loss_fn(x, target_deltas, -np.abs(classes) - 1, SIZES_HW),
        tf.constant(deltas),
    )
    assert loss == 0 and not gradient.any()


def test_predictions_are_limited_as_in_decoding():
    limit = box_coder.MAX_LOG_SCALE
    deltas = np.float32(np.tile([0, 0, 2 * limit, 2 * limit], 2))[None, None, None]
    limited = np.minimum(deltas, limit)
    classes = np.zeros([1, 2, 1, 1], np.int32)
    losses = [
        box_losses.giou_loss(x, np.zeros_like(deltas), classes, SIZES_HW)
        for x in (deltas, limited)
    ]
    assert losses[0] == losses[1]


def huber(errors, delta):
    """Returns the losses of anchors whose 4 coordinates have the same error."""
    return [
        box_losses.huber_loss(
            tf.fill([1, 1, 1, 4], x),
            np.zeros([1, 1, 1, 4]),
            np.zeros([1, 1, 1, 1], int),
            delta=delta,
        )
        for x in tf.unstack(errors)
    ]


def test_huber_loss_equals_values_computed_by_hand():
    errors = tf.constant([0, 0.05, -0.1, 0.3, -2])
    loss, gradient = gradients.value_and_gradient(
        lambda x: tf.stack(huber(x, delta=0.1)), errors
    )
    np.testing.assert_allclose(loss, [0, 0.00125, 0.005, 0.025, 0.195], rtol=1e-5)
    np.testing.assert_allclose(gradient, [0, 0.05, -0.1, 0.1, -0.1], rtol=1e-5)


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_huber_loss_and_gradient_agree_with_the_plain_formula(delta):
    deltas, target_deltas, classes = random_deltas(5, delta)
    is_positive = np.repeat(np.moveaxis(classes, 1, -1) >= 0, 4, axis=-1)

    def plain(x):
        error = tf.abs(x - np.float64(target_deltas))
        square, linear = error**2 / 2, delta * error - delta**2 / 2
        loss = tf.where(error <= delta, square, linear)
        return tf.reduce_sum(tf.where(is_positive, loss, 0.0)) / 4

    loss, gradient = gradients.value_and_gradient(
        lambda x: box_losses.huber_loss(x, target_deltas, classes, delta=delta),
        tf.constant(deltas),
    )
    expected, expected_gradient = gradients.value_and_gradient(
        plain, tf.constant(deltas, tf.float64)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
