import functools
import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

import torch_mobilenets
from retinanet_tpu import errors
from retinanet_tpu.model import norms, variable_paths
from retinanet_tpu.model.backbones import mobilenet_v3

# (variant, width): the parameters of torchvision's classifier, the channels of C5, the
# channels of the last convolution, and those of the classifier's hidden layer
# Source: the constructors of torchvision 0.29; at width 1, also its documentation.
TORCHVISION = {
    ("large", 1.0): (5_483_032, 160, 960, 1280),
    ("large", 0.75): (3_377_576, 120, 720, 960),
    ("small", 1.0): (2_542_856, 96, 576, 1024),
    ("small", 0.75): (1_653_920, 72, 432, 768),
}
# (variant, alpha): the trainable parameters up to the last block
# Source: the layers before `conv_1` of the models of Keras 3.15. At width 1 both
# libraries have the same network.
KERAS = {
    ("large", 0.75): 1_701_808,
    ("small", 0.75): 541_512,
    ("small", 0.5): 257_888,
}
NORM = functools.partial(norms.BatchNorm, epsilon=1e-3)


def _num_trainable(backbone):
    return variable_paths.num_parameters(backbone.trainable_variables)


@pytest.mark.parametrize(("variant", "width"), TORCHVISION)
def test_parameters_equal_those_of_torchvisions_classifier(variant, width):
    backbone = mobilenet_v3.MobileNetV3(variant=variant, width=width)
    total, channels, last_channels, hidden = TORCHVISION[variant, width]
    assert backbone.channels[5] == channels
    last_conv = last_channels * (channels + 2)
    classifier = hidden * (last_channels + 1) + 1000 * (hidden + 1)
    assert _num_trainable(backbone) + last_conv + classifier == total


@pytest.mark.parametrize(("variant", "width"), KERAS)
def test_parameters_equal_those_of_keras(variant, width):
    backbone = mobilenet_v3.MobileNetV3(
        variant=variant, width=width, scales_like_keras=True
    )
    assert _num_trainable(backbone) == KERAS[variant, width]


@pytest.mark.parametrize(
    ("variant", "channels"),
    [
        ("large", {1: 16, 2: 24, 3: 40, 4: 112, 5: 160}),
        ("small", {2: 16, 3: 24, 4: 48, 5: 96}),
    ],
)
def test_levels_have_the_published_channels(variant, channels):
    assert mobilenet_v3.MobileNetV3(variant=variant).channels == channels


def test_squeeze_and_excitation_is_in_the_published_blocks():
    squeezed = {
        variant: {
            f"block{block.index}": block.settings.squeezed_channels
            for block in mobilenet_v3.MobileNetV3(variant=variant).blocks
            if block.squeeze_excite is not None
        }
        for variant in mobilenet_v3.VARIANTS
    }
    assert list(squeezed["large"].values()) == [24, 32, 32, 120, 168, 168, 240, 240]
    assert list(squeezed["large"])[:4] == ["block3", "block4", "block5", "block10"]
    assert list(squeezed["small"]) == [f"block{i}" for i in (0, *range(3, 11))]


def test_an_unknown_variant_is_an_error():
    with pytest.raises(errors.UserError, match=r"MobileNetV3.variant 'm' .*'large'"):
        mobilenet_v3.MobileNetV3(variant="m")


def _layers_of(backbone):
    """Returns (block's number or None, module's number, name, conv, norm) of layers.

    Both layers of a gate are in one module, as in torchvision.
    """
    found = [(None, 0, "stem", backbone.stem_conv, backbone.stem_norm)]
    for block in backbone.blocks:
        gate = block.squeeze_excite
        modules = [
            [("expand", block.expand, block.expand and block.norm_expand)],
            [("depthwise", block.depthwise, block.norm_depthwise)],
            [
                ("squeeze", gate and gate.squeeze, None),
                ("excite", gate and gate.excite, None),
            ],
            [("project", block.project, block.norm_project)],
        ]
        present = [module for module in modules if module[0][1] is not None]
        for number, module in enumerate(present):
            found += [(block.index, number, *layer) for layer in module]
    return found


def _images(size):
    rng = np.random.default_rng(0)
    return rng.uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def _assert_features_are(expected, backbone, images):
    features = backbone(tf.constant(images), is_training=False)
    for level, other in zip((3, 4, 5), expected, strict=True):
        tolerance = 2e-5 * np.abs(other).max()
        np.testing.assert_allclose(features[level], other, atol=tolerance)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "width", "size"), [("large", 1.0, (64, 96)), ("small", 0.75, (50, 70))]
)
def test_features_equal_those_of_keras(variant, width, size):
    make = getattr(tf.keras.applications, f"MobileNetV3{variant.title()}")
    # Keras pads odd sides like TensorFlow only if it is given the size.
    model = make(input_shape=(*size, 3), weights=None, include_top=False, alpha=width)
    rng = np.random.default_rng(1)
    backbone = mobilenet_v3.MobileNetV3(
        variant=variant, width=width, scales_like_keras=True, norm_fn=NORM
    )
    endings = {"squeeze": "squeeze_excite_conv", "excite": "squeeze_excite_conv_1"}
    for index, _, name, conv, norm in _layers_of(backbone):
        prefix = f"expanded_conv_{index}" if index else "expanded_conv"
        full = "conv" if index is None else f"{prefix}_{endings.get(name, name)}"
        kernel, *bias = model.get_layer(full).get_weights()
        conv.kernel.assign(kernel)
        if norm is None:
            conv.bias.assign(bias[0])
            continue
        count = kernel.shape[2] if name == "depthwise" else kernel.shape[3]
        statistics = [rng.uniform(0.5, 2, count) for _ in range(4)]
        model.get_layer(f"{full}_bn").set_weights(statistics)
        variables = (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
        for variable, value in zip(variables, statistics, strict=True):
            variable.assign(value)
    taps = [index - 1 for index in torch_mobilenets.TAPS[variant]]
    names = {i: f"expanded_conv_{i}_project_bn" for i in taps}
    added = {i: f"expanded_conv_{i}_add" for i in taps if backbone.blocks[i].adds_input}
    outputs = [model.get_layer((names | added)[i]).output for i in taps]
    images = _images(size)
    # The model itself maps pixels in 0..255 to -1..1.
    expected = tf.keras.Model(model.inputs, outputs)(127.5 * (images + 1))
    _assert_features_are([x.numpy() for x in expected], backbone, images)


@pytest.mark.long
@pytest.mark.parametrize(
    ("variant", "width", "size"), [("large", 0.75, (50, 70)), ("small", 1.0, (64, 96))]
)
def test_features_equal_those_of_torchvision(tmp_path, variant, width, size):
    if not importlib.util.find_spec("torchvision"):
        pytest.skip("torchvision is not installed")
    images = _images(size)
    paths = [tmp_path / file for file in ("images.npy", "a.npz", "features.npz")]
    np.save(paths[0], images)
    command = [sys.executable, torch_mobilenets.__file__, variant, width, *paths]
    subprocess.run(list(map(str, command)), check=True)
    state = np.load(paths[1])
    backbone = mobilenet_v3.MobileNetV3(
        variant=variant, width=width, symmetric_padding=True, norm_fn=NORM
    )
    for index, number, name, conv, norm in _layers_of(backbone):
        block = "features.0" if index is None else f"features.{index + 1}.block"
        prefix = block if index is None else f"{block}.{number}"
        if norm is None:
            path = f"{prefix}.fc{1 if name == 'squeeze' else 2}"
            conv.bias.assign(state[f"{path}.bias"])
        else:
            path = f"{prefix}.0"
            norm.gamma.assign(state[f"{prefix}.1.weight"])
            norm.beta.assign(state[f"{prefix}.1.bias"])
            norm.moving_mean.assign(state[f"{prefix}.1.running_mean"])
            norm.moving_variance.assign(state[f"{prefix}.1.running_var"])
        axes = (2, 3, 0, 1) if name == "depthwise" else (2, 3, 1, 0)
        conv.kernel.assign(state[f"{path}.weight"].transpose(axes))
    expected = list(np.load(paths[2]).values())
    _assert_features_are(expected, backbone, images)
