import functools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model.necks import balanced, fpn

CHANNELS = {3: 5, 4: 6, 5: 7}
NECK = functools.partial(fpn.FPN, num_channels=8)


def _features(size):
    return {
        level: tf.random.stateless_normal(
            [2, *(-(-side // 2**level) for side in size), channels], [level, 0]
        )
        for level, channels in CHANNELS.items()
    }


def test_every_level_gets_the_mean_of_all_of_them():
    neck = balanced.BalancedFeatures(CHANNELS, neck_fn=NECK)
    features = _features((128, 128))
    pyramid = [x.numpy() for x in neck.neck(features, is_training=False)]

    def pooled(x, factor):
        size = x.shape[1] // factor
        return x.reshape(2, size, factor, size, factor, 8).max((2, 4))

    def repeated(x, factor):
        return x.repeat(factor, axis=1).repeat(factor, axis=2)

    p3, p4, p5, p6, p7 = pyramid
    coarse = repeated(p5, 2) + repeated(p6, 4) + repeated(p7, 8)
    mean = (pooled(p3, 2) + p4 + coarse) / 5
    means = [repeated(mean, 2), *(pooled(mean, factor) for factor in (1, 2, 4, 8))]
    outputs = neck(features, is_training=False)
    for y, x, added in zip(outputs, pyramid, means, strict=True):
        np.testing.assert_allclose(y, x + added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [3, 5, 7])
def test_sizes_that_are_no_power_of_two_are_kept(level):
    neck = balanced.BalancedFeatures(CHANNELS, neck_fn=NECK, level=level)
    features = _features((100, 132))
    shapes = [x.shape for x in neck.neck(features, is_training=False)]
    assert [x.shape for x in neck(features, is_training=False)] == shapes


def test_the_variables_are_those_of_the_other_neck():
    neck = balanced.BalancedFeatures(CHANNELS, neck_fn=NECK, seed=1)
    other = NECK(CHANNELS, seed=1)
    for a, b in zip(neck.variables, other.variables, strict=True):
        assert replicas.variable_path(a) == replicas.variable_path(b)
        np.testing.assert_array_equal(a, b)


def test_a_level_that_the_neck_does_not_have_is_an_error():
    with pytest.raises(errors.UserError, match=r"level 8 is not one of .*\[3, 4"):
        balanced.BalancedFeatures(CHANNELS, neck_fn=NECK, level=8)
