"""Compares the losses of class scores with float64, and their gradients."""

import functools

import numpy as np
import pytest
import tensorflow as tf

import gradients
from retinanet_tpu import structures
from retinanet_tpu.learning import class_losses

BACKGROUND, IGNORE = structures.BACKGROUND, structures.IGNORE
ALPHA_GAMMA = [(0.25, 2.0), (0.25, 1.5), (0.5, 0.0), (0.75, 0.7)]


def random_level(seed, num_anchors=3, num_classes=4):
    rng = np.random.default_rng(seed)
    classes = rng.integers(IGNORE, num_classes, (2, num_anchors, 3, 5))
    logits = rng.normal(0, 4, (2, 3, 5, num_anchors * num_classes))
    return np.float32(logits), np.int32(classes)


def by_cell(maps):
    """Returns [B, H, W, A] from [B, A, H, W]."""
    return np.moveaxis(maps, 1, -1)


def plain_focal_loss(logits, classes, alpha, gamma):
    """Returns the paper's equation in float64, with an axis of classes."""
    classes = by_cell(classes)
    num_classes = logits.shape[-1] // classes.shape[-1]
    x = tf.reshape(tf.cast(logits, tf.float64), [*classes.shape, num_classes])
    is_target_class = tf.constant(classes)[..., None] == tf.range(num_classes)
    p = tf.sigmoid(x)
    p_t = tf.where(is_target_class, p, 1 - p)
    alpha_t = tf.where(is_target_class, tf.constant(alpha, p.dtype), 1 - alpha)
    loss = -alpha_t * (1 - p_t) ** gamma * tf.math.log(p_t)
    loss = tf.where(
        tf.constant(classes)[..., None] == IGNORE, tf.zeros([], x.dtype), loss
    )
    return tf.reshape(loss, logits.shape)


@pytest.mark.parametrize("num_anchors", [1, 3])
@pytest.mark.parametrize(("alpha", "gamma"), ALPHA_GAMMA)
def test_focal_loss_and_gradient_agree_with_the_paper(alpha, gamma, num_anchors):
    logits, classes = random_level(0, num_anchors)
    loss, gradient = gradients.value_and_gradient(
        lambda x: class_losses.focal_loss(x, classes, alpha=alpha, gamma=gamma),
        tf.constant(logits),
    )
    expected, expected_gradient = gradients.value_and_gradient(
        lambda x: plain_focal_loss(x, classes, alpha, gamma),
        tf.constant(logits, tf.float64),
    )
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-6)


def test_compiled_focal_loss_agrees():
    logits, classes = random_level(1)
    compiled = tf.function(class_losses.focal_loss, jit_compile=True)(logits, classes)
    np.testing.assert_allclose(
        compiled, class_losses.focal_loss(logits, classes), rtol=1e-5, atol=1e-7
    )


def test_gamma_zero_is_weighted_cross_entropy():
    logits, classes = random_level(2)
    classes = np.maximum(classes, BACKGROUND)
    one_hot = tf.reshape(tf.one_hot(by_cell(classes), 4), logits.shape)
    cross_entropy = tf.nn.sigmoid_cross_entropy_with_logits(one_hot, logits)
    np.testing.assert_allclose(
        class_losses.focal_loss(logits, classes, alpha=0.5, gamma=0.0),
        0.5 * cross_entropy,
        rtol=1e-5,
    )


def test_losses_at_one_half_equal_values_computed_by_hand():
    loss = class_losses.focal_loss(tf.zeros([1, 1, 1, 2]), tf.constant([[[[1]]]]))
    expected = np.log(2) * 0.25 * np.array([0.75, 0.25])
    np.testing.assert_allclose(loss[0, 0, 0], expected, rtol=1e-6)


@pytest.mark.parametrize("gamma", [0.0, 1.5, 2.0])
def test_extreme_logits_have_finite_losses_and_gradients(gamma):
    logits = tf.constant([[[[-1e4, 1e4, -1e4, 1e4, 0, 0]]]])
    classes = np.reshape([0, BACKGROUND, 0], [1, 3, 1, 1])
    loss, gradient = gradients.value_and_gradient(
        lambda x: class_losses.focal_loss(x, classes, gamma=gamma), logits
    )
    half = np.log(2) * 0.5**gamma
    slope = 0.5**gamma * (0.5 * gamma * np.log(2) + 0.5)
    np.testing.assert_allclose(
        loss[0, 0, 0], [2500, 7500, 0, 7500, 0.25 * half, 0.75 * half], rtol=1e-5
    )
    np.testing.assert_allclose(
        gradient[0, 0, 0],
        [-0.25, 0.75, 0, 0.75, -0.25 * slope, 0.75 * slope],
        rtol=1e-5,
        atol=1e-7,
    )


def test_ignored_anchors_carry_no_loss():
    logits, classes = random_level(3)
    classes[0, :, 0, 0], classes[0, :, 0, 1] = IGNORE, BACKGROUND
    loss, gradient = gradients.value_and_gradient(
        lambda x: class_losses.focal_loss(x, classes), tf.constant(logits)
    )
    assert not loss[0, 0, 0].any() and not gradient[0, 0, 0].any()
    assert loss[0, 0, 1].all() and gradient[0, 0, 1].all()


def test_label_smoothing_changes_only_the_cross_entropy():
    logits, classes = random_level(4)
    classes = np.maximum(classes, BACKGROUND)
    s, x = 0.2, np.float64(logits)
    one_hot = np.reshape(tf.one_hot(by_cell(classes), 4), x.shape)
    p = 1 / (1 + np.exp(-x))
    smooth = one_hot * (1 - s) + 0.5 * s
    cross_entropy = -smooth * np.log(p) - (1 - smooth) * np.log(1 - p)
    p_t = np.where(one_hot, p, 1 - p)
    expected = np.where(one_hot, 0.25, 0.75) * (1 - p_t) ** 2 * cross_entropy
    np.testing.assert_allclose(
        class_losses.focal_loss(logits, classes, label_smoothing=s),
        expected,
        rtol=1e-4,
        atol=1e-7,
    )


def test_losses_of_half_precision_logits_are_computed_in_float32():
    logits, classes = random_level(5)
    half = tf.cast(logits, tf.bfloat16)
    np.testing.assert_array_equal(
        class_losses.focal_loss(half, classes),
        class_losses.focal_loss(tf.cast(half, tf.float32), classes),
    )


def plain_quality_focal_loss(p, target, beta):
    cross_entropy = -target * tf.math.log(p) - (1 - target) * tf.math.log(1 - p)
    return tf.abs(target - p) ** beta * cross_entropy


def plain_varifocal_loss(p, target, alpha, gamma):
    cross_entropy = -target * tf.math.log(p) - (1 - target) * tf.math.log(1 - p)
    weight = tf.where(target > 0, target, alpha * p**gamma)
    return weight * cross_entropy


SOFT = {
    "quality": (
        functools.partial(class_losses.quality_focal_loss, beta=2.0),
        functools.partial(plain_quality_focal_loss, beta=2.0),
    ),
    "quality with beta 1": (
        functools.partial(class_losses.quality_focal_loss, beta=1.0),
        functools.partial(plain_quality_focal_loss, beta=1.0),
    ),
    "varifocal": (
        class_losses.varifocal_loss,
        functools.partial(plain_varifocal_loss, alpha=0.75, gamma=2.0),
    ),
}


@pytest.mark.parametrize("name", SOFT)
def test_losses_with_soft_targets_agree_with_the_papers(name):
    loss_fn, plain_fn = SOFT[name]
    logits, classes = random_level(6)
    ious = np.float32(np.random.default_rng(6).uniform(0.05, 1, classes.shape))
    ious[::2, :, ::3] = 0.0  # The predicted box misses the object.
    num_classes = logits.shape[-1] // classes.shape[1]
    is_class = by_cell(classes)[..., None] == np.arange(num_classes)
    target = np.where(is_class, by_cell(ious)[..., None], 0).reshape(logits.shape)
    is_ignored = np.repeat(by_cell(classes) == IGNORE, num_classes, axis=-1)

    def plain(x):
        return tf.where(is_ignored, 0.0, plain_fn(tf.sigmoid(x), np.float64(target)))

    loss, gradient = gradients.value_and_gradient(
        lambda x: loss_fn(x, classes, ious), tf.constant(logits)
    )
    expected, expected_gradient = gradients.value_and_gradient(
        plain, tf.constant(logits, tf.float64)
    )
    assert loss.dtype == np.float32
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SOFT)
def test_a_score_equal_to_the_iou_has_the_least_loss(name):
    loss_fn, _ = SOFT[name]
    logits = tf.range(-6.0, 6.0, 0.01)[:, None, None, None]
    classes = tf.zeros_like(logits, tf.int32)
    loss = loss_fn(logits, classes, tf.fill(classes.shape, 0.7))
    best = tf.sigmoid(logits[int(tf.argmin(loss[:, 0, 0, 0]))])
    np.testing.assert_allclose(best, 0.7, atol=0.01)


@pytest.mark.parametrize("name", SOFT)
def test_soft_losses_of_extreme_logits_are_finite(name):
    loss_fn, _ = SOFT[name]
    logits = tf.constant([[[[-1e4, 1e4, -1e4, 1e4]]]])
    classes = np.reshape([0, BACKGROUND], [1, 2, 1, 1])
    ious = np.float32(np.reshape([0, 1], [1, 2, 1, 1]))
    loss, gradient = gradients.value_and_gradient(
        lambda x: loss_fn(x, classes, ious), logits
    )
    assert np.isfinite(loss).all() and np.isfinite(gradient).all()
