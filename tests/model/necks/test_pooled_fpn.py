import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import folding, layers
from retinanet_tpu.model.necks import fpn, fusion, pooled_fpn

CHANNELS = {2: 4, 3: 5, 4: 6, 5: 7}


def _features(size, dtype="float32"):
    def draw(level, channels):
        shape = [2, *(-(-side // 2**level) for side in size), channels]
        return tf.cast(tf.random.stateless_normal(shape, [level, 0]), dtype)

    return {level: draw(level, channels) for level, channels in CHANNELS.items()}


@pytest.mark.parametrize("size", [(128, 64), (100, 132)])
@pytest.mark.parametrize(("min_level", "max_level"), [(3, 7), (2, 5), (3, 3), (5, 7)])
def test_outputs_have_the_strides_of_their_levels(size, min_level, max_level):
    levels = range(min_level, max_level + 1)
    neck = pooled_fpn.PooledFPN(
        CHANNELS, num_channels=8, min_level=min_level, max_level=max_level
    )
    outputs = neck(_features(size), is_training=False)
    assert [x.shape[1:] for x in outputs] == [
        (*(-(-side // 2**level) for side in size), 8) for level in levels
    ]
    assert neck.levels == tuple(levels)


def test_coarse_levels_are_pooled_from_c5_and_passed_down():
    neck = pooled_fpn.PooledFPN(CHANNELS, num_channels=8, fusion_fn=fusion.SumFusion)
    features = _features((128, 128))
    *_, p5, p6, p7 = neck(features, is_training=False)

    def apply(pair, x):
        return folding.conv_norm(*pair, x, is_training=False)

    raw6 = apply(neck.laterals[3], features[5]).numpy()
    raw6 = raw6.reshape(2, 2, 2, 2, 2, 8).max((2, 4))
    raw7 = raw6.max((1, 2), keepdims=True)
    np.testing.assert_allclose(p7, apply(neck.outputs[4], raw7), atol=1e-5)
    raw6 = np.maximum(raw6 + raw7, 0)
    np.testing.assert_allclose(p6, apply(neck.outputs[3], raw6), atol=1e-5)
    raw5 = apply(neck.laterals[2], features[5]) + fpn.upsample(raw6, (4, 4))
    expected5 = apply(neck.outputs[2], tf.nn.relu(raw5))
    np.testing.assert_allclose(p5, expected5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "jit_compile"), [("float32", True), ("bfloat16", False)]
)
def test_every_weight_has_a_finite_gradient(dtype, jit_compile):
    neck = pooled_fpn.PooledFPN(
        CHANNELS, num_channels=8, max_level=6, conv_fn=layers.SeparableConv
    )
    features = _features((128, 128), dtype)

    @tf.function(jit_compile=jit_compile)
    def gradients():
        with tf.GradientTape() as tape:
            outputs = neck(features, is_training=True)
            loss = sum(tf.reduce_sum(tf.cast(x, tf.float32) ** 3) for x in outputs)
        return tape.gradient(loss, neck.trainable_variables)

    for variable, gradient in zip(neck.trainable_variables, gradients(), strict=True):
        assert np.isfinite(gradient).all(), variable.name


def test_every_convolution_has_a_norm():
    neck = pooled_fpn.PooledFPN(CHANNELS, num_channels=8)
    paths = [replicas.variable_path(v) for v in neck.variables]
    assert sum(path.endswith("/kernel") for path in paths) == 9
    assert sum(path.endswith("/gamma") for path in paths) == 9


def test_impossible_levels_are_an_error():
    with pytest.raises(errors.UserError, match=r"PooledFPN levels 1\.\.7"):
        pooled_fpn.PooledFPN(CHANNELS, min_level=1)
