import numpy as np
import pytest
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import variable_paths
from retinanet_tpu.model.backbones import efficientnet

# variant: (parameters of the published classifier, its channels before the 1280 or
# more of the last convolution, the channels of that convolution)
# Source: the tables of the public TensorFlow and PyTorch implementations.
PUBLISHED = {
    "b0": (5_288_548, 320, 1280),
    "b1": (7_794_184, 320, 1280),
    "b2": (9_109_994, 352, 1408),
    "b3": (12_233_232, 384, 1536),
    "b4": (19_341_616, 448, 1792),
    "b5": (30_389_784, 512, 2048),
    "b6": (43_040_704, 576, 2304),
    "b7": (66_347_960, 640, 2560),
    "lite0": (4_652_008, 320, 1280),
    "lite1": (5_416_680, 320, 1280),
    "lite2": (6_092_072, 352, 1280),
    "lite3": (8_197_096, 384, 1280),
    "lite4": (13_006_568, 448, 1280),
}


SLOW = pytest.mark.slow  # They take half a minute in all.


def _make_zeros(initial_value, *, name, trainable):
    return tf.Variable(tf.zeros(initial_value.shape), name=name, trainable=trainable)


@pytest.fixture
def zeros(monkeypatch):
    """Makes variables of zeros."""
    monkeypatch.setattr(replicas, "make_variable", _make_zeros)


@pytest.mark.usefixtures("zeros")
@pytest.mark.parametrize(
    "variant",
    [
        v if v in ("b0", "b3", "lite0", "lite4") else pytest.param(v, marks=SLOW)
        for v in efficientnet.VARIANTS
    ],
)
def test_parameters_equal_those_of_the_published_classifier(variant):
    backbone = efficientnet.EfficientNet(variant=variant)
    total, channels, last_channels = PUBLISHED[variant]
    assert backbone.channels[5] == channels
    classifier = last_channels * (channels + 2) + 1000 * (last_channels + 1)
    trainable = variable_paths.num_parameters(backbone.trainable_variables)
    assert trainable + classifier == total


@pytest.mark.parametrize("size", [(64, 64), (64, 96), (50, 70)])
@pytest.mark.parametrize("symmetric_padding", [True, False])
def test_features_have_the_strides_of_their_levels(size, symmetric_padding):
    backbone = efficientnet.EfficientNet(symmetric_padding=symmetric_padding)
    features = backbone(tf.zeros([1, *size, 3]), is_training=False)
    assert backbone.channels == {1: 16, 2: 24, 3: 40, 4: 112, 5: 320}
    for level, x in features.items():
        height, width = (-(-side // 2**level) for side in size)
        assert x.shape == (1, height, width, backbone.channels[level])


@pytest.mark.parametrize(("variant", "has_gates"), [("lite0", False), ("b0", True)])
def test_only_the_full_variants_have_squeeze_and_excitation(variant, has_gates):
    backbone = efficientnet.EfficientNet(variant=variant)
    assert any("squeeze_excite" in v.name for v in backbone.variables) == has_gates


def test_stochastic_depth_drops_later_blocks_more_often():
    backbone = efficientnet.EfficientNet(drop_rate=0.16)
    rates = [block.settings.drop_rate for block in backbone.blocks]
    np.testing.assert_allclose(rates, 0.01 * np.arange(16))


def test_an_unknown_variant_is_an_error():
    with pytest.raises(errors.UserError, match=r"variant 'b9' is not one of \['b0'"):
        efficientnet.EfficientNet(variant="b9")
