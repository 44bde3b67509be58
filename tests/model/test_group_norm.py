import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import folding, group_norm, layers


def test_each_group_of_an_image_has_the_moments_of_beta_and_gamma():
    norm = group_norm.GroupNorm(8, name="norm", num_groups=2)
    x = tf.random.stateless_normal([3, 5, 4, 8], [1, 2]) * 3 + 7
    bias = np.arange(8, dtype=np.float32)
    y = norm(x, is_training=True, bias=bias).numpy().reshape(3, 20, 2, 4)
    np.testing.assert_allclose(y.mean((1, 3)), np.zeros([3, 2]), atol=1e-5)
    np.testing.assert_allclose(y.std((1, 3)), np.ones([3, 2]), atol=1e-4)
    assert np.ptp(y.mean(1)) > 1  # The bias differs between the channels of a group.
    norm.gamma.assign_add(np.full(8, 2, np.float32))
    norm.beta.assign_add(np.full(8, 5, np.float32))
    again = norm(x, is_training=False, bias=bias).numpy().reshape(3, 20, 2, 4)
    np.testing.assert_allclose(again, 3 * y + 5, atol=1e-4)


def test_group_norm_follows_a_convolution_but_is_not_folded_into_one():
    norm = group_norm.GroupNorm(64, name="norm")
    x = tf.random.stateless_normal([1, 4, 4, 32], [1, 2])
    conv = layers.Conv(32, 64, 3, name="conv", initial_bias=0.5)
    y = folding.conv_norm(conv, norm, x, is_training=True)
    np.testing.assert_allclose(y, norm(conv(x), is_training=True), atol=1e-5)
    with pytest.raises(errors.UserError, match=r"Heads\.own_norm_fn"):
        norm.affine(lambda: (0, 0), is_training=True)
    with pytest.raises(errors.UserError, match=r"48 channels.*no multiple of its 32"):
        group_norm.GroupNorm(48, name="norm")
