import functools

import numpy as np
import pytest

import foreign_mobile
import foreign_resnets
from retinanet_tpu.model import retinanet
from retinanet_tpu.model.backbones import efficientnet, mobilenet_v3
from retinanet_tpu.model.pretrained import (
    efficientnet_weights,
    loading,
    mobilenet_v3_weights,
)

LITE = "pretrained_efficientnet_lite.gin"
INCEPTION = "pretrained_inception.gin"
TENSORFLOW = "pretrained_tensorflow.gin"
TORCHVISION = foreign_resnets.TORCHVISION


def make_efficientnet(variant="lite0", **kwargs):
    return efficientnet.EfficientNet(
        variant=variant, norm_fn=foreign_mobile.norm_fn, **kwargs
    )


def make_mobilenet(variant="large", **kwargs):
    return mobilenet_v3.MobileNetV3(
        variant=variant, norm_fn=foreign_mobile.norm_fn, **kwargs
    )


def write(path, backbone, name_fn, stages=foreign_mobile.EFFICIENTNET_STAGES):
    """Writes a backbone's values by the names of another project; returns the file."""
    state = foreign_mobile.torch_state(backbone, name_fn, stages)
    return foreign_resnets.write_safetensors(path / "a.safetensors", state)


def lite_weights(path, name_fn=foreign_mobile.package_name):
    return write(path, make_efficientnet("lite0", seed=1), name_fn)


@pytest.mark.parametrize(
    ("make_fn", "name_fn", "gin_file"),
    [
        (make_efficientnet, foreign_mobile.package_name, LITE),
        (
            functools.partial(make_efficientnet, "b0"),
            foreign_mobile.package_name,
            TENSORFLOW,
        ),
        (
            functools.partial(make_efficientnet, "b0"),
            foreign_mobile.timm_name,
            TENSORFLOW,
        ),
        (make_efficientnet, foreign_mobile.timm_name, INCEPTION),
    ],
)
def test_names_of_efficientnet_are_mapped(tmp_path, make_fn, name_fn, gin_file):
    source, backbone = make_fn(seed=1), make_fn()
    foreign_mobile.randomize(source)
    foreign_resnets.load(backbone, write(tmp_path, source, name_fn), gin_file)
    # All epsilons are equal, so the values are too.
    for ours, theirs in zip(backbone.variables, source.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize("has_last_block", [True, False])
def test_names_of_torchvision_and_timm_of_mobilenet_are_mapped(
    tmp_path, has_last_block
):
    name_fn = foreign_mobile.torchvision_mobilenet_name
    gin_file = TORCHVISION
    make_fn = functools.partial(make_mobilenet, symmetric_padding=True)
    if has_last_block:
        name_fn, gin_file = foreign_mobile.timm_name, INCEPTION
        make_fn = make_mobilenet
    source, backbone = make_fn(seed=1), make_fn()
    foreign_mobile.randomize(source)
    state = foreign_mobile.torch_state(source, name_fn, foreign_mobile.MOBILENET_STAGES)
    last = "blocks.6.0.conv.weight" if has_last_block else "features.16.0.weight"
    state[last] = np.zeros([960, 160, 1, 1], np.float32)
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    text = foreign_resnets.load(backbone, file, gin_file)
    assert text.startswith("a MobileNetV3-Large of width 1 of t")
    for ours, theirs in zip(backbone.variables, source.variables, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)


@pytest.mark.parametrize(
    ("origins", "make_fn", "tensors_fn"),
    [
        (
            efficientnet_weights.ORIGINS,
            functools.partial(make_efficientnet, "b0"),
            foreign_mobile.keras_efficientnet,
        ),
        (
            mobilenet_v3_weights.ORIGINS,
            make_mobilenet,
            foreign_mobile.keras_mobilenet,
        ),
    ],
)
def test_names_of_keras_are_mapped(origins, make_fn, tensors_fn):
    backbone = make_fn()
    tensors = tensors_fn(backbone)
    (origin,) = (origin for origin in origins if origin.recognize_fn(tensors))
    assert origin.name == "Keras"
    renamed, unknown = origin.rename_fn(tensors)
    assert not unknown
    expected = foreign_mobile.variables(backbone)
    assert renamed.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(renamed[path], value)


def test_an_epsilon_of_torchvision_is_folded(tmp_path):
    make_fn = functools.partial(make_efficientnet, "b0", symmetric_padding=True)
    source, backbone = make_fn(seed=1), make_fn()
    foreign_mobile.randomize(source)
    name_fn = foreign_mobile.torchvision_efficientnet_name
    file = write(tmp_path, source, name_fn)
    assert foreign_resnets.load(backbone, file, TORCHVISION).endswith("of torchvision")
    variance = source.stem_norm.moving_variance.numpy()
    ratio = np.sqrt((variance + 1e-3) / (variance + 1e-5))
    expected = source.stem_norm.gamma.numpy() * ratio
    np.testing.assert_allclose(backbone.stem_norm.gamma, expected, rtol=1e-6)
    for ours, theirs in zip(backbone.variables, source.variables, strict=True):
        if "gamma" not in ours.name:
            np.testing.assert_array_equal(ours, theirs)


def test_the_settings_of_a_run_select_the_model_of_timm(tmp_path):
    file = lite_weights(tmp_path, foreign_mobile.timm_name)
    text = foreign_resnets.load(make_efficientnet(), file, INCEPTION)
    assert text == "an EfficientNet-Lite0 of timm (tf_efficientnet_lite*)"
    backbone = make_efficientnet(symmetric_padding=True)
    text = foreign_resnets.load(backbone, file, TORCHVISION)
    assert text == "an EfficientNet-Lite0 of timm (efficientnet_lite*)"
    message = (
        r"tf_efficientnet_lite\*\), but EfficientNet.symmetric_padding is True.*"
        r"Include model/pretrained_inception.gin.*Or it is of timm \(efficientnet_lit"
        r".*`normalize` returns.*Include model/pretrained_torchvision.gin"
    )
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, file, INCEPTION)


def test_wrong_padding_and_pixels_are_an_error_with_the_gin_file(tmp_path):
    file = lite_weights(tmp_path)
    message = (
        r"is of efficientnet_lite_pytorch, but EfficientNet.symmetric_padding is True, "
        r"not False; `normalize` .*Include model/pretrained_efficientnet_lite.gin"
    )
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(
            make_efficientnet(symmetric_padding=True), file, TORCHVISION
        )
    with pytest.raises(ValueError, match=r"but `normalize` returns.*-0.992"):
        foreign_resnets.load(make_efficientnet(), file, INCEPTION)


def test_another_variant_is_an_error_with_the_setting(tmp_path):
    message = (
        r"an EfficientNet-Lite0, the backbone an EfficientNet-Lite1: "
        r"set EfficientNet.variant = 'lite0'"
    )
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(make_efficientnet("lite1"), lite_weights(tmp_path), LITE)


def test_settings_without_a_gin_file_are_in_the_error():
    tensors = foreign_mobile.keras_efficientnet(make_efficientnet("b0"))
    tensors["normalization/mean"] = np.zeros(3)
    origins = efficientnet_weights.ORIGINS
    (origin,) = (origin for origin in origins if origin.recognize_fn(tensors))
    with pytest.raises(ValueError, match=r"stddev_rgb = \(1.0, 1.0, 1.0\)"):
        loading.matching_origin(
            make_efficientnet("b0"),
            [origin],
            normalize_fn=retinanet.normalize,
            checkpoint="a.h5",
        )


def test_the_error_of_unknown_names_contains_the_known_projects(tmp_path):
    state = {"patch_embed.weight": np.zeros([1, 1, 1, 1], np.float32)}
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    message = r"unknown names, such as \['patch_embed.weight'\].*Use ResNets, Eff"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(make_efficientnet(), file, LITE)


def test_a_resnext_is_an_error_with_its_groups(tmp_path):
    state = foreign_resnets.torch_state(*foreign_resnets.BOTTLENECKS)
    for name in state:
        if name.endswith("conv2.weight"):
            state[name] = np.ascontiguousarray(
                state[name][:, : state[name].shape[0] // 2]
            )
    file = foreign_resnets.write_safetensors(tmp_path / "a.safetensors", state)
    backbone = foreign_resnets.make_backbone(TORCHVISION, depth=14, width=4)
    message = r"ResNeXt-14 2x2d, .*ResNet.num_groups = 2, ResNet.group_width = 2"
    with pytest.raises(ValueError, match=message):
        foreign_resnets.load(backbone, file, TORCHVISION)
