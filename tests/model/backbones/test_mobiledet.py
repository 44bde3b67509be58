import pytest

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import activations, variable_paths
from retinanet_tpu.model.backbones import mobiledet

# (variant, width): the trainable parameters, and those with the moving statistics
# Source: MobileDet of TensorFlow Model Garden (official/vision/modeling/backbones).
# Its blocks are those of the Object Detection API (research/object_detection/models/
# ssd_mobiledet_feature_extractor.py), but block 19 of its DSP variant lacks a residual
# connection. With the same random weights and statistics, and without that connection,
# the features of all variants were equal to 2e-6 of the largest. This was measured at
# width 1 and 64x96 px, and at width 0.75 and 50x70 px.
MODEL_GARDEN = {
    ("cpu", 1.0): (3_006_440, 3_036_728),
    ("edge_tpu", 1.0): (2_777_040, 2_815_456),
    ("edge_tpu", 0.75): (1_663_208, 1_692_392),
    ("dsp", 1.0): (5_839_952, 5_886_464),
    ("gpu", 1.0): (11_689_920, 11_718_560),
}
CHANNELS = {
    "cpu": {1: 8, 2: 16, 3: 32, 4: 72, 5: 144},
    "edge_tpu": {1: 16, 2: 16, 3: 40, 4: 96, 5: 384},
    "dsp": {1: 24, 2: 32, 3: 64, 4: 144, 5: 240},
    "gpu": {1: 16, 2: 32, 3: 64, 4: 128, 5: 384},
}
# The blocks of each variant: I inverted bottleneck, F fused, T Tucker; in lower case
# without a residual connection.
KINDS = {
    "cpu": "i i iIII iIIIiIII iIIIi",
    "edge_tpu": "t fFFF fFFF iIFFiIII iIIIi",
    "dsp": "i fFIT fIFF fIIIfIII iIFTi",
    "gpu": "t fTTT fFFF fFFFfFFF fFFFi",
}


@pytest.mark.parametrize(("variant", "width"), MODEL_GARDEN)
def test_parameters_equal_those_of_model_garden(variant, width):
    backbone = mobiledet.MobileDet(variant=variant, width=width)
    counts = (backbone.trainable_variables, backbone.variables)
    expected = MODEL_GARDEN[variant, width]
    assert tuple(map(variable_paths.num_parameters, counts)) == expected


def _kind(block):
    letter = "T"
    if not isinstance(block, mobiledet.TuckerConv):
        letter = "F" if block.settings.is_fused else "I"
    return letter if block.adds_input else letter.lower()


@pytest.mark.parametrize("variant", mobiledet.VARIANTS)
def test_blocks_and_channels_are_those_of_the_object_detection_api(variant):
    backbone = mobiledet.MobileDet(variant=variant)
    assert "".join(map(_kind, backbone.blocks)) == KINDS[variant].replace(" ", "")
    assert backbone.channels == CHANNELS[variant]
    # Only the variant for CPUs has gates and hard swish.
    paths = list(map(replicas.variable_path, backbone.variables))
    assert any("/squeeze_excite/" in path for path in paths) == (variant == "cpu")
    activation = activations.hard_swish if variant == "cpu" else activations.relu6
    assert {block.settings.activation_fn for block in backbone.blocks} == {activation}


def test_an_unknown_variant_is_an_error():
    with pytest.raises(errors.UserError, match=r"MobileDet.variant 'tpu' .*'edge_tpu'"):
        mobiledet.MobileDet(variant="tpu")
