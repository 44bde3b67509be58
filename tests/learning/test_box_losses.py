"""Compares the losses of boxes with plain float64 formulas, and their gradients."""

import math

import numpy as np
import pytest
import tensorflow as tf

import box_formulas
import gradients
from retinanet_tpu import errors, structures
from retinanet_tpu.boxes import box_coder
from retinanet_tpu.learning import box_losses

CODERS = box_formulas.CODERS
OFFSETS = CODERS["offsets"]
# Two anchors of a cell.
SIZES_HW = np.array([[32.0, 16.0], [20.0, 40.0]])
LOSSES = {
    "iou": box_losses.iou_loss,
    "giou": box_losses.giou_loss,
    "diou": box_losses.diou_loss,
    "ciou": box_losses.ciou_loss,
}


def random_boxes(seed, scale=0.4, coder=OFFSETS):
    """Returns outputs [1, 3, 5, 2 * C], target values [1, 3, 5, 8], and classes."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(0, scale, (1, 3, 5, 2 * coder.num_channels))
    target_values = rng.normal(0, scale, (1, 3, 5, 8))
    if coder != OFFSETS:
        target_values = np.exp(target_values) / 2
    classes = rng.integers(structures.IGNORE, 3, (1, 2, 3, 5))
    return np.float32(outputs), np.float32(target_values), np.int32(classes)


def decode(values, coder=OFFSETS):
    """Returns float64 [N, 4]: boxes of anchors whose centers are at 100, yxyx."""
    anchors = np.concatenate([np.full([2, 2], 100.0), SIZES_HW], 1)
    values = tf.reshape(values, [-1, 2, 4])
    return tf.reshape(box_formulas.decode(coder, values, anchors), [-1, 4])


def predict(outputs, coder):
    """Returns float64 [N, 4]: boxes of outputs, yxyx."""
    outputs = tf.reshape(outputs, [-1, 2, coder.num_channels])
    return decode(box_formulas.values(coder, outputs), coder)


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
@pytest.mark.parametrize("coder", CODERS.values(), ids=list(CODERS))
def test_losses_and_gradients_agree_with_the_papers(name, scale, coder):
    outputs, target_values, classes = random_boxes(0, scale, coder)
    is_positive = np.moveaxis(classes, 1, -1).ravel() >= 0

    def plain(x):
        boxes = predict(x, coder), decode(np.float64(target_values), coder)
        return tf.reduce_sum(plain_losses(name, *boxes)[is_positive])

    loss, gradient = gradients.value_and_gradient(
        lambda x: LOSSES[name](x, target_values, classes, SIZES_HW, coder),
        tf.constant(outputs),
    )
    expected, expected_gradient = gradients.value_and_gradient(
        plain, tf.constant(outputs, tf.float64)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("coder", CODERS.values(), ids=list(CODERS))
def test_ious_of_predictions_are_those_of_the_decoded_boxes(coder):
    outputs, target_values, classes = random_boxes(1, coder=coder)
    variable = tf.Variable(outputs)
    with tf.GradientTape() as tape:
        ious = box_losses.predicted_ious(
            variable, target_values, classes, SIZES_HW, coder
        )
    assert tape.gradient(ious, variable) is None
    boxes = predict(outputs, coder), decode(target_values, coder)
    losses = plain_losses("iou", *boxes)
    expected = np.moveaxis(np.reshape(1 - losses, [1, 3, 5, 2]), -1, 1)
    np.testing.assert_allclose(ious, np.where(classes >= 0, expected, 0), atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_prediction_has_no_loss(name):
    _, target_values, classes = random_boxes(2)
    loss = LOSSES[name](
        target_values, target_values, np.abs(classes), SIZES_HW, OFFSETS
    )
    np.testing.assert_allclose(loss, 0, atol=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("coder", CODERS.values(), ids=list(CODERS))
def test_extreme_predictions_have_finite_losses_and_gradients(name, coder):
    rng = np.random.default_rng(3)
    shape = 1, 8, 8, 2 * coder.num_channels
    outputs = rng.choice([-1e3, -50, 0, 50, 1e3], shape).astype(np.float32)
    target_values = np.zeros([1, 8, 8, 8], np.float32)
    classes = np.zeros([1, 2, 8, 8], np.int32)
    loss, gradient = gradients.value_and_gradient(
        lambda x: LOSSES[name](x, target_values, classes, SIZES_HW, coder),
        tf.constant(outputs),
    )
    assert np.isfinite(loss) and np.isfinite(gradient).all()


@pytest.mark.parametrize("name", [*LOSSES, "huber", "l1"])
def test_anchors_without_an_object_have_no_loss(name):
    outputs, target_values, classes = random_boxes(4)
    loss_fn = getattr(box_losses, f"{name}_loss")
    loss, gradient = gradients.value_and_gradient(
        lambda x: loss_fn(x, target_values, -np.abs(classes) - 1, SIZES_HW, OFFSETS),
        tf.constant(outputs),
    )
    assert loss == 0 and not gradient.any()


def test_predictions_are_limited_as_in_decoding():
    limit = box_coder.MAX_LOG_SCALE
    outputs = np.float32(np.tile([0, 0, 2 * limit, 2 * limit], 2))[None, None, None]
    limited = np.minimum(outputs, limit)
    classes = np.zeros([1, 2, 1, 1], np.int32)
    losses = [
        box_losses.giou_loss(x, np.zeros_like(outputs), classes, SIZES_HW, OFFSETS)
        for x in (outputs, limited)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("coder", [CODERS["distances"], CODERS["distributions"]])
def test_an_object_without_area_has_a_finite_loss(name, coder):
    outputs, target_values, classes = random_boxes(6, coder=coder)
    loss = LOSSES[name](outputs, 0 * target_values, np.abs(classes), SIZES_HW, coder)
    assert np.isfinite(loss)


@pytest.mark.parametrize("scale", [0.5, 3.0])  # 3.0: many distances are out of reach.
def test_distribution_focal_loss_and_gradient_agree_with_the_paper(scale):
    coder = CODERS["distributions"]
    outputs, target_values, classes = random_boxes(7, scale, coder)
    is_positive = np.moveaxis(classes, 1, -1).ravel() >= 0

    def plain(x):
        losses = box_formulas.distribution_focal_loss(
            coder, x, np.reshape(target_values, [-1, 4])
        )
        return np.sum(losses[is_positive])

    loss, gradient = gradients.value_and_gradient(
        lambda x: box_losses.distribution_focal_loss(x, target_values, classes, coder),
        tf.constant(outputs),
    )
    np.testing.assert_allclose(loss, plain(outputs), rtol=1e-5)
    for index in np.random.default_rng(8).integers(0, outputs.size, 40):
        step = np.zeros(outputs.size)
        step[index] = 1e-5
        step = step.reshape(outputs.shape)
        slope = (plain(outputs + step) - plain(outputs - step)) / 2e-5
        np.testing.assert_allclose(gradient.ravel()[index], slope, atol=1e-6)


def test_distribution_focal_loss_is_least_for_the_two_bins_next_to_the_target():
    coder = box_coder.SideDistributions(num_bins=4, reach=2.0)
    values = np.full([1, 1, 1, 4], 0.65, np.float32)  # At bin 1.3.
    best = np.log(np.maximum([0, 0.7, 0.3, 0, 0], 1e-20))
    classes = np.zeros([1, 1, 1, 1], np.int32)

    def loss(logits):
        outputs = np.tile(np.float32(logits), 4).reshape([1, 1, 1, -1])
        return gradients.value_and_gradient(
            lambda x: box_losses.distribution_focal_loss(x, values, classes, coder),
            tf.constant(outputs),
        )

    least, gradient = loss(best)
    entropy = -0.7 * np.log(0.7) - 0.3 * np.log(0.3)
    np.testing.assert_allclose(least, entropy, rtol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
    assert loss(best + np.array([0, 0.1, 0, 0, 0]))[0] > least


@pytest.mark.parametrize("coder", [CODERS["distances"], CODERS["distributions"]])
def test_huber_loss_of_another_representation_is_an_error(coder):
    boxes = *random_boxes(9, coder=coder), SIZES_HW, coder
    with pytest.raises(errors.UserError, match=r"@huber_loss.*Side.*@giou_loss"):
        box_losses.huber_loss(*boxes)


def huber(errors, delta):
    """Returns the losses of anchors whose 4 coordinates have the same error."""
    return [
        box_losses.huber_loss(
            tf.fill([1, 1, 1, 4], x),
            np.zeros([1, 1, 1, 4]),
            np.zeros([1, 1, 1, 1], int),
            SIZES_HW,
            OFFSETS,
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
    outputs, target_values, classes = random_boxes(5, delta)
    is_positive = np.repeat(np.moveaxis(classes, 1, -1) >= 0, 4, axis=-1)

    def plain(x):
        error = tf.abs(x - np.float64(target_values))
        square, linear = error**2 / 2, delta * error - delta**2 / 2
        loss = tf.where(error <= delta, square, linear)
        return tf.reduce_sum(tf.where(is_positive, loss, 0.0)) / 4

    loss, gradient = gradients.value_and_gradient(
        lambda x: box_losses.huber_loss(
            x, target_values, classes, SIZES_HW, OFFSETS, delta=delta
        ),
        tf.constant(outputs),
    )
    expected, expected_gradient = gradients.value_and_gradient(
        plain, tf.constant(outputs, tf.float64)
    )
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-6)


def test_l1_loss_and_gradient_agree_with_numpy():
    outputs, target_values, classes = random_boxes(6)
    is_positive = np.repeat(np.moveaxis(classes, 1, -1) >= 0, 4, axis=-1)
    error = np.float64(outputs) - np.float64(target_values)
    loss, gradient = gradients.value_and_gradient(
        lambda x: box_losses.l1_loss(x, target_values, classes, SIZES_HW, OFFSETS),
        tf.constant(outputs),
    )
    np.testing.assert_allclose(loss, np.abs(error)[is_positive].sum() / 4, rtol=1e-5)
    np.testing.assert_allclose(gradient, np.sign(error) * is_positive / 4)
