"""The origins of weights of EfficientNet and EfficientNet-Lite."""

import functools
import re
from collections.abc import Sequence

import numpy as np

from retinanet_tpu.model.pretrained import (
    inverted_bottleneck_names,
    key_mapping,
    weight_files,
)

_LITE_GIN = "model/pretrained_efficientnet_lite.gin"
_SAME = {"EfficientNet.symmetric_padding": False}
_SYMMETRIC = {"EfficientNet.symmetric_padding": True}
_LITE_PIXELS = key_mapping.Pixels((127.0,) * 3, (128.0,) * 3)

_BLOCK = re.compile(r"block(\d+)/")
# (number of blocks, channels of the last block, has squeeze-excite): variant
_VARIANTS = {
    (16, 320, True): "b0",
    (23, 320, True): "b1",
    (23, 352, True): "b2",
    (26, 384, True): "b3",
    (32, 448, True): "b4",
    (39, 512, True): "b5",
    (45, 576, True): "b6",
    (55, 640, True): "b7",
    (16, 320, False): "lite0",
    (21, 320, False): "lite1",
    (21, 352, False): "lite2",
    (24, 384, False): "lite3",
    (30, 448, False): "lite4",
}

_NUM_KERAS_CONVS = (81, 116, 116, 131, 161, 194, 224, 274)
KERAS_APPLICATIONS = {
    f"b{i}": weight_files.KerasApplication(f"EfficientNetB{i}", num_convs)
    for i, num_convs in enumerate(_NUM_KERAS_CONVS)
}

# The names of the packages efficientnet_lite_pytorch and efficientnet_pytorch.
_PACKAGE_FIRST = "_blocks.0._depthwise_conv.weight"
_PACKAGE_UNUSED = re.compile(r"(_conv_head|_bn1|_fc)\.")
_PACKAGE_STEM = {"_conv_stem": "conv", "_bn0": "norm"}
_PACKAGE_LAYERS = {
    "_expand_conv": "expand",
    "_bn0": "norm_expand",
    "_depthwise_conv": "depthwise",
    "_bn1": "norm_depthwise",
    "_se_reduce": "squeeze_excite/squeeze",
    "_se_expand": "squeeze_excite/excite",
    "_project_conv": "project",
    "_bn2": "norm_project",
}
_TORCHVISION_FIRST = "features.1.0.block.0.0.weight"
_KERAS_STEM = re.compile(r"stem_(conv|bn)/(\w+)")
_KERAS_BLOCK = re.compile(r"block(\d)([a-z])_(\w+)/(\w+)")
_KERAS_UNUSED = re.compile(r"(normalization(_\d+)?|top_conv|top_bn|predictions)/")
# Keras numbers the layer if the process has made others.
_KERAS_MEAN = re.compile(r"normalization(_\d+)?/mean")
_KERAS_LAYERS = {
    "expand_conv": "expand",
    "expand_bn": "norm_expand",
    "dwconv": "depthwise",
    "bn": "norm_depthwise",
    "se_reduce": "squeeze_excite/squeeze",
    "se_expand": "squeeze_excite/excite",
    "project_conv": "project",
    "project_bn": "norm_project",
}
_PACKAGE_NAME = re.compile(r"(?:_blocks\.(\d+)\.)?(\w+)\.(\w+)")


def network(shapes: key_mapping.Shapes) -> key_mapping.Network | None:
    """Returns the EfficientNet that has variables of these shapes, or None.

    Args:
      shapes: The shapes by path below "backbone/".
    """
    blocks = [int(match[1]) for name in shapes if (match := _BLOCK.match(name))]
    last = max(blocks, default=0)
    *_, channels = shapes.get(f"block{last}/project/kernel", (0,))
    has_squeeze = "block0/squeeze_excite/squeeze/kernel" in shapes
    variant = _VARIANTS.get((last + 1, channels, has_squeeze))
    if variant is None:
        return None
    return key_mapping.Network(
        f"an EfficientNet-{variant.capitalize()}",
        f"EfficientNet.variant = '{variant}'",
        keras_application=KERAS_APPLICATIONS.get(variant),
    )


def _package_paths(names: Sequence[str]) -> dict[str, str]:
    """Returns the paths of names of the packages."""
    paths = {}
    for name in names:
        if not (match := _PACKAGE_NAME.fullmatch(name)):
            continue
        block, layer, leaf = match.groups()
        layers = _PACKAGE_LAYERS if block else _PACKAGE_STEM
        if layer not in layers:
            continue
        parent = f"block{block}" if block else "stem"
        if path := key_mapping.torch_path(f"{parent}/{layers[layer]}", leaf):
            paths[name] = path
    return paths


def _keras_paths(names: Sequence[str]) -> dict[str, str]:
    """Returns the paths of Keras's names."""
    matches = {n: match for n in names if (match := _KERAS_BLOCK.fullmatch(n))}
    blocks = sorted({match.group(1, 2) for match in matches.values()})
    paths = {
        name: f"block{blocks.index(match.group(1, 2))}/{layer}/{match[4]}"
        for name, match in matches.items()
        if (layer := _KERAS_LAYERS.get(match[3]))
    }
    for name in names:
        if stem := _KERAS_STEM.fullmatch(name):
            kind = "norm" if stem[1] == "bn" else "conv"
            paths[name] = f"stem/{kind}/{stem[2]}"
    return paths


def _is_package(tensors: key_mapping.Tensors, *, is_lite: bool) -> bool:
    is_package = key_mapping.has_name(tensors, _PACKAGE_FIRST)
    return is_package and is_lite != any("._se_reduce." in name for name in tensors)


def _is_timm(tensors: key_mapping.Tensors, *, is_lite: bool) -> bool:
    has_squeeze = any(".se.conv_reduce." in name for name in tensors)
    return (
        key_mapping.has_name(tensors, inverted_bottleneck_names.TIMM_FIRST)
        and not inverted_bottleneck_names.timm_last_block(tensors)
        and is_lite != has_squeeze
    )


def _is_torchvision(tensors: key_mapping.Tensors, *, is_large: bool) -> bool:
    is_torchvision = key_mapping.has_name(tensors, _TORCHVISION_FIRST)
    return is_torchvision and is_large == any(
        "features.4.6." in name for name in tensors
    )


def _is_keras(tensors: key_mapping.Tensors, *, has_imagenet_pixels: bool) -> bool:
    if "block1a_dwconv/kernel" not in tensors:
        return False
    # A model that was made without weights has a mean of 0 and a variance of 1.
    means = (tensors[name] for name in tensors if _KERAS_MEAN.fullmatch(name))
    mean = 255 * next(means, np.zeros(3))
    is_imagenet = np.allclose(mean, key_mapping.IMAGENET_PIXELS.mean_rgb, atol=0.1)
    return is_imagenet == has_imagenet_pixels


_from_package = functools.partial(
    key_mapping.from_torch,
    first=_PACKAGE_FIRST,
    unused=_PACKAGE_UNUSED,
    paths_fn=_package_paths,
)
_from_timm = functools.partial(
    key_mapping.from_torch,
    first=inverted_bottleneck_names.TIMM_FIRST,
    unused=inverted_bottleneck_names.TIMM_UNUSED,
    paths_fn=inverted_bottleneck_names.timm_paths,
)
_from_torchvision = functools.partial(
    key_mapping.from_torch,
    first=_TORCHVISION_FIRST,
    unused=inverted_bottleneck_names.TORCHVISION_UNUSED,
    paths_fn=inverted_bottleneck_names.torchvision_paths,
)
_from_keras = functools.partial(
    key_mapping.from_keras, unused=_KERAS_UNUSED, paths_fn=_keras_paths
)


def _timm_origin(
    name: str,
    gin_file: str,
    settings: dict[str, bool],
    pixels: key_mapping.Pixels,
    *,
    is_lite: bool = False,
) -> key_mapping.Origin:
    """Returns an origin of timm: models of TensorFlow pad like it, others do not."""
    return key_mapping.Origin(
        name=f"timm ({name})",
        gin_file=gin_file,
        settings=settings,
        pixels=pixels,
        epsilon=1e-5 if settings == _SYMMETRIC else 1e-3,
        recognize_fn=functools.partial(_is_timm, is_lite=is_lite),
        rename_fn=_from_timm,
    )


_PACKAGES = tuple(
    key_mapping.Origin(
        name=name,
        gin_file=gin_file,
        settings=_SAME,
        pixels=pixels,
        epsilon=1e-3,
        recognize_fn=functools.partial(_is_package, is_lite=is_lite),
        rename_fn=_from_package,
    )
    for name, gin_file, pixels, is_lite in (
        ("efficientnet_lite_pytorch", _LITE_GIN, _LITE_PIXELS, True),
        (
            "efficientnet_pytorch",
            key_mapping.TENSORFLOW_GIN,
            key_mapping.IMAGENET_PIXELS,
            False,
        ),
        (
            "efficientnet_pytorch (advprop)",
            key_mapping.INCEPTION_GIN,
            key_mapping.INCEPTION_PIXELS,
            False,
        ),
    )
)
_TIMM = (
    _timm_origin(
        "tf_efficientnet_lite*",
        key_mapping.INCEPTION_GIN,
        _SAME,
        key_mapping.INCEPTION_PIXELS,
        is_lite=True,
    ),
    _timm_origin(
        "efficientnet_lite*",
        key_mapping.TORCHVISION_GIN,
        _SYMMETRIC,
        key_mapping.IMAGENET_PIXELS,
        is_lite=True,
    ),
    _timm_origin(
        "tf_efficientnet_b*",
        key_mapping.TENSORFLOW_GIN,
        _SAME,
        key_mapping.IMAGENET_PIXELS,
    ),
    _timm_origin(
        "tf_efficientnet_b*.ap_in1k",
        key_mapping.INCEPTION_GIN,
        _SAME,
        key_mapping.INCEPTION_PIXELS,
    ),
    _timm_origin(
        "efficientnet_b*",
        key_mapping.TORCHVISION_GIN,
        _SYMMETRIC,
        key_mapping.IMAGENET_PIXELS,
    ),
    _timm_origin("efficientnet_b*.ra4_*", "", _SYMMETRIC, key_mapping.INCEPTION_PIXELS),
)
_TORCHVISION = tuple(
    key_mapping.Origin(
        name="torchvision",
        gin_file=key_mapping.TORCHVISION_GIN,
        settings=_SYMMETRIC,
        pixels=key_mapping.IMAGENET_PIXELS,
        epsilon=epsilon,
        recognize_fn=functools.partial(_is_torchvision, is_large=is_large),
        rename_fn=_from_torchvision,
    )
    for is_large, epsilon in ((False, 1e-5), (True, 1e-3))  # B5 to B7 are large.
)
_KERAS = tuple(
    key_mapping.Origin(
        name=name,
        gin_file=gin_file,
        settings=_SAME,
        pixels=pixels,
        epsilon=1e-3,
        recognize_fn=functools.partial(_is_keras, has_imagenet_pixels=is_imagenet),
        rename_fn=_from_keras,
    )
    for name, gin_file, pixels, is_imagenet in (
        ("Keras", key_mapping.TENSORFLOW_GIN, key_mapping.IMAGENET_PIXELS, True),
        ("Keras, made without weights", "", key_mapping.UNIT_PIXELS, False),
    )
)
ORIGINS = (*_PACKAGES, *_TIMM, *_TORCHVISION, *_KERAS)
