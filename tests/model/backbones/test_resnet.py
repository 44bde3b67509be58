import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model.backbones import resnet


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (50, 70)])
@pytest.mark.parametrize(("depth", "expansion"), [(10, 1), (14, 4)])
def test_features_have_the_strides_of_their_levels(depth, expansion, size):
    backbone = resnet.ResNet(depth=depth, width=4)
    features = backbone(tf.zeros([2, *size, 3]), is_training=False)
    assert list(features) == [2, 3, 4, 5]
    for level, x in features.items():
        height, width = (-(-side // 2**level) for side in size)
        channels = 4 * expansion * 2 ** (level - 2)
        assert x.shape == (2, height, width, channels)
        assert backbone.channels[level] == channels


def test_stage_begins_with_a_projection_and_goes_on_from_the_identity():
    backbone = resnet.ResNet(depth=18, width=4)
    shortcuts = [replicas.path(v) for v in backbone.variables if "/shortcut/" in v.name]
    assert shortcuts == [
        f"backbone/stage{s}/block1/shortcut/kernel" for s in (2, 3, 4, 5)
    ]
    block = backbone.stages[0][1]
    x = tf.random.stateless_uniform([1, 8, 8, 4], [0, 0])
    np.testing.assert_array_equal(block(x, is_training=True), x)


def test_bottleneck_strides_in_its_3x3_convolution():
    block = resnet.ResNet(depth=14, width=4).stages[1][0]
    assert [(c.kernel.shape[0], c.stride) for c in block.convs] == [
        (1, 1),
        (3, 2),
        (1, 1),
    ]
    assert block.shortcut.stride == 2


def test_unknown_depth_is_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"depth 51 .*50, 101"):
        resnet.ResNet(depth=51)


def test_the_stem_over_blocks_is_the_plain_convolution():
    stem = resnet.ResNet(depth=10, width=8).stem_conv
    x = np.random.default_rng(0).normal(size=(2, 10, 14, 3)).astype(np.float32)
    plain = tf.nn.conv2d(x, stem.kernel, 2, [[0, 0], [3, 3], [3, 3], [0, 0]])
    assert plain.shape == (2, 5, 7, 8)
    np.testing.assert_allclose(stem(x), plain, rtol=1e-5, atol=1e-5)
