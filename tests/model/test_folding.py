import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.model import folding, layers, norms


def _norm(num_channels):
    norm = norms.BatchNorm(num_channels, name="norm", momentum=0.9)
    rng = np.random.default_rng(1)
    for variable in norm.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    return norm


def _batch(shape):
    return np.random.default_rng(0).normal(3, 2, shape).astype(np.float32)


def _branches(count):
    """Returns pointwise convolutions that widen, each with a norm and an input."""
    return [
        (
            layers.Conv(3, 8, 1, name=f"conv{i}", initial_bias=0.5),
            _norm(8),
            tf.constant(_batch((4, 6, 6, 3)) * (i + 1)),
        )
        for i in range(count)
    ]


def _plain_sum(branches, *, is_training):
    parts = [norm(conv(x), is_training=is_training) for conv, norm, x in branches]
    return tf.add_n(parts)


def _train(sum_fn, branches):
    """Returns outputs, gradients and new statistics, and the gradients of biases."""
    inputs = [x for _, _, x in branches]
    weights = [v for c, n, _ in branches for v in (c.kernel, n.gamma, n.beta)]
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(inputs)
        y = sum_fn(branches, is_training=True)
        loss = tf.reduce_sum(tf.sin(y) + tf.square(y) * y)
    biases = tape.gradient(loss, [conv.bias for conv, _, _ in branches])
    moved = [v for _, n, _ in branches for v in (n.moving_mean, n.moving_variance)]
    return [y, *tape.gradient(loss, inputs + weights), *moved], biases


@pytest.mark.parametrize("count", [1, 2])
def test_a_folded_convolution_trains_as_the_plain_one(count):
    expected, _ = _train(_plain_sum, _branches(count))
    actual, biases = _train(folding.conv_norm_sum, _branches(count))
    for value, other in zip(actual, expected, strict=True):
        atol = 1e-5 * np.abs(other).max()
        np.testing.assert_allclose(value, other, rtol=1e-5, atol=atol)
    for bias in biases:  # The batch's mean cancels it.
        np.testing.assert_array_equal(bias, 0)


def test_a_folded_convolution_predicts_as_the_plain_one():
    branches = _branches(2)
    branches[1][0].stride = 2
    branches[0] = (*branches[0][:2], branches[0][2][:, ::2, ::2])
    np.testing.assert_allclose(
        folding.conv_norm_sum(branches, is_training=False),
        _plain_sum(branches, is_training=False),
        rtol=1e-4,
        atol=1e-4,
    )
