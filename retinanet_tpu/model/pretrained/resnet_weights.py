"""The origins of weights of ResNets and ResNeXts: torchvision, timm and Keras."""

import functools
import re
from collections.abc import Callable, Sequence

import numpy as np

from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.model.pretrained import key_mapping, weight_files

_FIRST_CONV = re.compile(r"stage(\d)/block(\d+)/conv1/kernel")
_TORCH_STEM = re.compile(r"(conv|bn)1\.(\w+)")
_TORCH_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_TORCH_UNUSED = re.compile(r"(fc|head|classifier)\.")
_TORCH_FIRST = "layer1.0.conv1.weight"
_KERAS_STEM = re.compile(r"conv1_(conv|bn)/(\w+)")
_KERAS_BLOCK = re.compile(r"conv([2-5])_block(\d+)_(\d)_(conv|bn)/(\w+)")
_KERAS_UNUSED = re.compile(r"predictions/")
KERAS_APPLICATIONS = {
    depth: weight_files.KerasApplication(f"ResNet{depth}", num_convs)
    for depth, num_convs in ((50, 53), (101, 104), (152, 155))
}


def network(shapes: key_mapping.Shapes) -> key_mapping.Network | None:
    """Returns the ResNet or ResNeXt that has variables of these shapes, or None.

    Args:
      shapes: The shapes by path below "backbone/".
    """
    blocks = [match[1] for name in shapes if (match := _FIRST_CONV.fullmatch(name))]
    counts = tuple(blocks.count(stage) for stage in "2345")
    is_bottleneck = "stage2/block1/conv3/kernel" in shapes
    kinds = {kind: depth for depth, kind in resnet.DEPTHS.items()}
    depth = kinds.get((counts, is_bottleneck))
    if depth is None:
        return None
    setting = f"ResNet.depth = {depth}"
    *_, in_group, inner = shapes.get("stage2/block1/conv2/kernel", (1, 1))
    if is_bottleneck and inner != in_group:
        groups = inner // in_group
        return key_mapping.Network(
            f"a ResNeXt-{depth} {groups}x{in_group}d",
            f"{setting}, ResNet.num_groups = {groups}, ResNet.group_width = {in_group}",
        )
    return key_mapping.Network(
        f"a ResNet-{depth}",
        setting,
        width_setting="ResNet.width",
        keras_application=KERAS_APPLICATIONS.get(depth),
    )


def _paths(
    names: Sequence[str], path_fn: Callable[[str], str | None]
) -> dict[str, str]:
    """Returns the paths of the known names."""
    return {name: path for name in names if (path := path_fn(name))}


def _torch_path(name: str) -> str | None:
    """Returns our path of a tensor of torchvision or timm, or None."""
    if match := _TORCH_STEM.fullmatch(name):
        kind, leaf = match.groups()
        return key_mapping.torch_path(_layer(1, 0, 1, kind), leaf)
    if not (match := _TORCH_BLOCK.fullmatch(name)):
        return None
    kind, index = match[3], int(match[4])
    if kind == "downsample.":
        # Of the shortcut, 0 is the convolution and 1 the normalization.
        kind, index = "bn" if index else "conv", 0
    layer = _layer(int(match[1]) + 1, int(match[2]) + 1, index, kind)
    return key_mapping.torch_path(layer, match[5])


def _keras_path(name: str) -> str | None:
    """Returns our path of a tensor of Keras, or None."""
    if match := _KERAS_STEM.fullmatch(name):
        kind, leaf = match.groups()
        return f"{_layer(1, 0, 1, kind)}/{leaf}"
    if not (match := _KERAS_BLOCK.fullmatch(name)):
        return None
    stage, block, index = int(match[1]), int(match[2]), int(match[3])
    return f"{_layer(stage, block, index, match[4])}/{match[5]}"


def _layer(stage: int, block: int, index: int, kind: str) -> str:
    """Returns our path of a layer. Stage 1 is the stem, index 0 is the shortcut."""
    kind = "norm" if kind == "bn" else kind
    if stage == 1:
        return f"stem/{kind}"
    if index:
        layer = f"{kind}{index}"
    else:
        layer = "shortcut" if kind == "conv" else "norm_shortcut"
    return f"stage{stage}/block{block}/{layer}"


def _is_torch(tensors: key_mapping.Tensors) -> bool:
    return key_mapping.has_name(tensors, _TORCH_FIRST)


def _is_keras(tensors: key_mapping.Tensors) -> bool:
    return any(_KERAS_BLOCK.fullmatch(name) for name in tensors)


def _rename_keras(
    tensors: key_mapping.Tensors,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the tensors for RGB images by our paths, and the unknown names."""
    paths_fn = functools.partial(_paths, path_fn=_keras_path)
    renamed, unknown = key_mapping.from_keras(
        tensors, unused=_KERAS_UNUSED, paths_fn=paths_fn
    )
    if "stem/conv/kernel" in renamed:
        # Keras's models were trained on BGR images.
        renamed["stem/conv/kernel"] = renamed["stem/conv/kernel"][:, :, ::-1]
    return renamed, unknown


TORCH = key_mapping.Origin(
    name="torchvision or timm",
    gin_file=key_mapping.TORCHVISION_GIN,
    settings={"ResNet.stride_in_1x1": False, "ResNet.symmetric_pool_padding": True},
    pixels=key_mapping.IMAGENET_PIXELS,
    epsilon=1e-5,
    recognize_fn=_is_torch,
    rename_fn=functools.partial(
        key_mapping.from_torch,
        first=_TORCH_FIRST,
        unused=_TORCH_UNUSED,
        paths_fn=functools.partial(_paths, path_fn=_torch_path),
    ),
)
KERAS = key_mapping.Origin(
    name="Keras",
    gin_file="model/pretrained_keras.gin",
    settings={"ResNet.stride_in_1x1": True, "ResNet.symmetric_pool_padding": True},
    pixels=key_mapping.Pixels((123.68, 116.779, 103.939), (1.0, 1.0, 1.0)),
    epsilon=1.001e-5,
    recognize_fn=_is_keras,
    rename_fn=_rename_keras,
)
ORIGINS = (TORCH, KERAS)
