import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.model.necks import fusion

WEIGHTS = np.array([[1.0, 2.0], [-3.0, 0.0], [0.5, 6.0]], np.float32)


def _inputs(dtype="float32"):
    rng = np.random.default_rng(0)
    return [tf.constant(rng.normal(size=(2, 3, 4, 2)), dtype) for _ in WEIGHTS]


def _oracle(inputs, weights):
    weights = np.maximum(weights, 0)
    total = sum(w * x.numpy() for w, x in zip(weights, inputs, strict=True))
    return total / (weights.sum(0) + 1e-4)


@pytest.mark.parametrize("by_channel", [False, True])
def test_weights_are_relu_and_normalized(by_channel):
    layer = fusion.AttentionFusion(3, 2, name="fusion", by_channel=by_channel)
    inputs = _inputs()
    np.testing.assert_allclose(
        layer(inputs), _oracle(inputs, np.ones([3, 1])), rtol=1e-5, atol=1e-6
    )
    weights = WEIGHTS if by_channel else WEIGHTS[:, 0]
    layer.weights.assign(weights)
    np.testing.assert_allclose(
        layer(inputs), _oracle(inputs, weights), rtol=1e-5, atol=1e-6
    )


def test_a_sum_has_no_weights():
    layer, inputs = fusion.SumFusion(3, 2, name="fusion"), _inputs()
    assert not layer.variables
    np.testing.assert_allclose(layer(inputs), sum(inputs), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_fusion_keeps_the_dtype_and_has_gradients(dtype):
    layer = fusion.AttentionFusion(3, 2, name="fusion")
    with tf.GradientTape() as tape:
        y = layer(_inputs(dtype))
        loss = tf.reduce_sum(tf.cast(y, tf.float32) ** 2)
    assert y.dtype == dtype
    assert np.isfinite(tape.gradient(loss, layer.weights)).all()


def test_weights_that_are_all_negative_return_zero():
    layer, inputs = fusion.AttentionFusion(3, 2, name="fusion"), _inputs()
    layer.weights.assign([-1.0, -1.0, -1.0])
    np.testing.assert_array_equal(layer(inputs), np.zeros([2, 3, 4, 2]))
