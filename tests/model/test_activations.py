import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu.model import activations

X = np.linspace(-8, 8, 65, dtype=np.float32)
ORACLES = {
    activations.linear: X,
    activations.relu: np.maximum(X, 0),
    activations.relu6: np.clip(X, 0, 6),
    activations.swish: X / (1 + np.exp(-X)),
    activations.hard_sigmoid: np.clip(X / 6 + 0.5, 0, 1),
    activations.hard_swish: X * np.clip(X / 6 + 0.5, 0, 1),
}


@pytest.mark.parametrize("activation_fn", ORACLES, ids=lambda fn: fn.__name__)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_equal_their_formulas(activation_fn, dtype):
    y = activation_fn(tf.constant(X, dtype))
    assert y.dtype == dtype
    tolerance = 1e-6 if dtype == "float32" else 0.05
    np.testing.assert_allclose(
        tf.cast(y, tf.float32), ORACLES[activation_fn], atol=tolerance
    )
