import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import norms
from retinanet_tpu.model.necks import fpn, fusion

CHANNELS = {2: 4, 3: 5, 4: 6, 5: 7}


def _features(size):
    def draw(level, channels):
        shape = [2, *(-(-side // 2**level) for side in size), channels]
        return tf.random.stateless_normal(shape, [level, 0])

    return {level: draw(level, channels) for level, channels in CHANNELS.items()}


@pytest.mark.parametrize("size", [(128, 128), (128, 64), (100, 132)])
@pytest.mark.parametrize(("min_level", "max_level"), [(3, 7), (2, 6), (3, 4), (5, 7)])
def test_outputs_have_the_strides_of_their_levels(size, min_level, max_level):
    levels = range(min_level, max_level + 1)
    pyramid = fpn.FPN(
        CHANNELS, num_channels=8, min_level=min_level, max_level=max_level
    )
    outputs = pyramid(_features(size), is_training=False)
    assert [x.shape[1:] for x in outputs] == [
        (*(-(-side // 2**level) for side in size), 8) for level in levels
    ]
    assert pyramid.levels == tuple(levels)


def test_p6_reads_p5_and_p7_reads_relu_of_p6_before_normalization():
    pyramid, features = fpn.FPN(CHANNELS, num_channels=8), _features((128, 128))
    *_, p6, p7 = pyramid(features, is_training=True)
    raw5 = pyramid.outputs[2](pyramid.laterals[2](features[5]))
    raw6 = pyramid.outputs[3](raw5)
    raw7 = pyramid.outputs[4](tf.nn.relu(raw6))
    for output, raw in ((p6, raw6), (p7, raw7)):
        mean, variance = tf.nn.moments(raw, [0, 1, 2])
        expected = (raw - mean) / tf.sqrt(variance + 1e-4)
        np.testing.assert_allclose(output, expected, atol=1e-3)


def test_p6_can_read_c5_and_there_can_be_no_norms():
    pyramid = fpn.FPN(
        CHANNELS, num_channels=8, coarse_from_backbone=True, own_norm_fn=norms.NoNorm
    )
    features = _features((128, 128))
    *_, p5, p6, p7 = pyramid(features, is_training=True)
    assert pyramid.outputs[3].kernel.shape == (3, 3, 7, 8)
    assert not any("norm" in replicas.variable_path(v) for v in pyramid.variables)
    expected5 = pyramid.outputs[2](pyramid.laterals[2](features[5]))
    np.testing.assert_allclose(p5, expected5, atol=1e-5)
    np.testing.assert_allclose(p6, pyramid.outputs[3](features[5]), atol=1e-5)
    np.testing.assert_allclose(p7, pyramid.outputs[4](tf.nn.relu(p6)), atol=1e-5)


def test_laterals_can_be_fused_with_weights():
    pyramid = fpn.FPN(
        CHANNELS,
        num_channels=8,
        fusion_fn=fusion.AttentionFusion,
        own_norm_fn=norms.NoNorm,
    )
    features = _features((128, 128))
    pyramid.fusions[1].weights.assign([0.0, 2.0])  # P4 without its own lateral
    p4 = pyramid(features, is_training=True)[1]
    coarser = fpn.upsample(pyramid.laterals[2](features[5]), p4.shape[1:3])
    np.testing.assert_allclose(p4, pyramid.outputs[1](coarser), atol=1e-3)


def test_coarse_features_reach_every_finer_level():
    pyramid = fpn.FPN(CHANNELS, num_channels=8)
    features = _features((128, 128))
    before = pyramid(features, is_training=False)
    after = pyramid({**features, 5: features[5] + 1}, is_training=False)
    for x, y in zip(before, after, strict=True):
        assert not np.allclose(x, y)


def test_upsampling_repeats_pixels_and_crops():
    x = np.arange(24, dtype=np.float32).reshape(1, 3, 4, 2)
    expected = x.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(fpn.upsample(tf.constant(x), (6, 8)), expected)
    cropped = fpn.upsample(tf.constant(x), (5, 7))
    np.testing.assert_array_equal(cropped, expected[:, :5, :7])


def test_upsampling_accepts_any_batch_and_has_a_gradient():
    @tf.function(input_signature=[tf.TensorSpec([None, 3, 4, 2])])
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = fpn.upsample(x, (6, 8))
        return tape.gradient(y, x)

    np.testing.assert_array_equal(
        gradient(tf.ones([5, 3, 4, 2])), np.full((5, 3, 4, 2), 4)
    )


@pytest.mark.parametrize(("min_level", "max_level"), [(1, 7), (6, 7), (4, 3)])
def test_impossible_levels_are_an_error(min_level, max_level):
    with pytest.raises(ValueError, match="set min_level and max_level"):
        fpn.FPN(CHANNELS, min_level=min_level, max_level=max_level)
