"""The origins of weights of EfficientNet and EfficientNet-Lite."""

import functools
import re
from collections.abc import Collection, Sequence

from retinanet_tpu.model.backbones import key_mapping

_LITE_GIN = "model/pretrained_efficientnet_lite.gin"
_SAME = {"EfficientNet.symmetric_padding": False}

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
        keras_name="" if "lite" in variant else f"EfficientNet{variant.upper()}",
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


def _is_package(names: Collection[str]) -> bool:
    return key_mapping.has_name(names, _PACKAGE_FIRST)


def _is_lite_package(names: Collection[str]) -> bool:
    return _is_package(names) and not any("_se_reduce." in name for name in names)


_from_package = functools.partial(
    key_mapping.from_torch,
    first=_PACKAGE_FIRST,
    unused=_PACKAGE_UNUSED,
    paths_fn=_package_paths,
)
LITE_PACKAGE = key_mapping.Origin(
    name="efficientnet_lite_pytorch",
    gin_file=_LITE_GIN,
    settings=_SAME,
    mean_rgb=(127.0,) * 3,
    stddev_rgb=(128.0,) * 3,
    epsilon=1e-3,
    recognize_fn=_is_lite_package,
    rename_fn=_from_package,
)
ORIGINS = (LITE_PACKAGE,)
