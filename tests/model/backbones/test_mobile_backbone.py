"""The properties that MobileNetV3 and MobileDet share."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import activations, norms
from retinanet_tpu.model.backbones import (
    inverted_bottleneck,
    mobile_backbone,
    mobiledet,
    mobilenet_v3,
)

# All backbones, with few channels.
BACKBONE_FNS = {
    f"{module.__name__.rpartition('.')[2]}_{variant}": functools.partial(
        make, variant=variant, width=0.125
    )
    for module, make in (
        (mobilenet_v3, mobilenet_v3.MobileNetV3),
        (mobiledet, mobiledet.MobileDet),
    )
    for variant in module.VARIANTS
}


@pytest.fixture(params=BACKBONE_FNS, scope="module")
def backbone_fn(request):
    """Returns a small backbone."""
    return BACKBONE_FNS[request.param]


@pytest.fixture(scope="module")
def backbone(backbone_fn):
    return backbone_fn(drop_rate=0.2)


def test_features_have_the_strides_of_their_levels(backbone_fn, backbone):
    for network in (backbone, backbone_fn(symmetric_padding=True)):
        features = network(tf.zeros([1, 50, 96, 3]), is_training=False)
        assert features.keys() == network.channels.keys() >= {2, 3, 4, 5}
        for level, x in features.items():
            height, width = -(-50 // 2**level), 96 // 2**level
            assert x.shape == (1, height, width, network.channels[level])


def test_paths_begin_with_the_stem_and_count_the_blocks(backbone):
    paths = {replicas.variable_path(v).split("/")[1] for v in backbone.variables}
    assert paths == {"stem", *(f"block{i}" for i in range(len(backbone.blocks)))}
    stem = {replicas.variable_path(v) for v in backbone.stem_conv.variables}
    assert stem == {"backbone/stem/conv/kernel"}


def test_stochastic_depth_drops_later_blocks_more_often(backbone):
    rates = [block.settings.drop_rate for block in backbone.blocks]
    count = len(rates)
    np.testing.assert_allclose(rates, 0.2 / count * np.arange(count))
    x = tf.random.stateless_uniform([8, 32, 32, 3], [0, 1])
    kept, dropped = (
        backbone(x, is_training=False, seeds=seeds)
        for seeds in (None, tf.constant(range(8), tf.uint32))
    )
    assert np.abs(kept[5] - dropped[5]).max() > 0


def _gradients(backbone, dtype="float32"):
    """Returns the gradients of a random projection of all features."""
    # Not TensorFlow's random numbers, which depend on the compiler.
    rng = np.random.default_rng(0)
    images = tf.constant(rng.uniform(-1, 1, (2, 64, 64, 3)), dtype)
    with tf.GradientTape() as tape:
        features = backbone(images, is_training=True)
        assert {x.dtype.name for x in features.values()} == {dtype}
        terms = [
            tf.cast(x, tf.float32) * rng.normal(0, 1, x.shape).astype(np.float32)
            for x in features.values()
        ]
        loss = tf.add_n([tf.reduce_sum(x) for x in terms])
    return tape.gradient(loss, backbone.trainable_variables)


# A compiled step, below, is tested in float32.
@pytest.mark.parametrize(
    "dtype", ["bfloat16", pytest.param("float32", marks=pytest.mark.slow)]
)
def test_every_weight_has_a_gradient(backbone, dtype):
    gradients = _gradients(backbone, dtype)
    for variable, gradient in zip(backbone.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.name
        assert np.isfinite(gradient).all(), variable.name
        assert np.any(gradient), variable.name


def test_a_step_through_each_kind_of_block_compiles_with_xla():
    bottleneck = functools.partial(
        inverted_bottleneck.BlockSettings,
        out_channels=8,
        expanded_channels=16,
        stride=2,
    )
    gated = bottleneck(
        squeezed_channels=8, kernel_size=5, gate_fn=activations.hard_sigmoid
    )
    tucker = mobiledet.TuckerSettings(
        out_channels=8, compressed_channels=8, convolved_channels=8
    )
    block = inverted_bottleneck.InvertedBottleneck
    backbone = mobile_backbone.MobileBackbone(
        8,
        [
            functools.partial(block, settings=gated),
            functools.partial(block, settings=bottleneck(is_fused=True)),
            functools.partial(mobiledet.TuckerConv, settings=tucker),
        ],
        activation_fn=activations.hard_swish,
        symmetric_padding=False,
        norm_fn=norms.BatchNorm,
        seed=0,
    )
    compiled = tf.function(_gradients, jit_compile=True)(backbone)
    for one, two in zip(compiled, _gradients(backbone), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-3 * np.abs(two).max())


def test_rounded_channels_are_multiples_of_8_above_90_percent():
    rounded = [mobile_backbone.round_channels(x) for x in (1, 12, 18, 54, 84, 147.2)]
    assert rounded == [8, 16, 24, 56, 88, 144]
