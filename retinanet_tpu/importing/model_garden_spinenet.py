"""Reads RetinaNet checkpoints of TensorFlow Model Garden, with SpineNet."""

import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np

from retinanet_tpu import errors, replicas
from retinanet_tpu.importing import detector, model_garden
from retinanet_tpu.model import layers, norms
from retinanet_tpu.model.backbones import residual_block, spinenet

_SOURCE = "Model Garden's RetinaNet with SpineNet"
_LAYER = re.compile(r"(layer_with_weights-\d+)/(?:(_\w+)/)?(\w+)")
_PART = re.compile(r"_(conv|norm|shortcut)(\d?)")
# The first part of a variable's name: a layer, and its number unless it is the first.
_NUMBER = re.compile(r"\D.*?(?:_(\d+))?/.+")
# The variant by the channels of the features, the channels inside of the first block,
# and the number of residual blocks. The finest level of 2 is left out of the model.
_VARIANTS = {
    (128, 41, 17): "49S",
    (256, 64, 17): "49",
    (256, 64, 34): "96",
    (256, 64, 51): "143",
    (256, 83, 51): "143L",
    (512, 83, 68): "190",
}
_RUNS = {
    "49S": "coco_spinenet49s_640.gin",
    "49": "coco_spinenet49_640.gin",
    "96": "coco_spinenet96_1024.gin",
    "143": "coco_spinenet143_1280.gin",
    "143L": "coco_spinenet143_1280.gin",
    "190": "coco_spinenet190_1280.gin",
}
# Runs for TPUs are in bfloat16. The import is for the CPU, as that of a ResNet.
_DEVICE_SETTINGS = ("COMPUTE_DTYPE = 'float32'", "make_strategy.device = 'cpu'")

# The tensors of a layer, by their names in it: "kernel", or "_conv1/kernel".
_Layer = dict[str, np.ndarray]


def is_source(names: Collection[str]) -> bool:
    """Returns whether a checkpoint has Model Garden's heads, and no decoder.

    Args:
      names: The names of its tensors.
    """
    if not model_garden.is_source(names):
        return False
    return not model_garden.split(dict.fromkeys(names, ""))["decoder"]


def convert(
    tensors: Mapping[str, np.ndarray], variable_names: Mapping[str, str]
) -> detector.Detector:
    """Returns a detector from the tensors of a checkpoint.

    Args:
      tensors: The tensors by Model Garden's names.
      variable_names: The names of Keras's variables by the same names. Their numbers
        are the order in which Model Garden makes the layers.
    Raises:
      UserError: The checkpoint contains other tensors, or lacks some.
    Source: The settings are those of the experiment retinanet_spinenet_coco in
      official/vision/configs/retinanet.py and of its files for each variant.
    """
    parts = model_garden.split(tensors)
    names = model_garden.split(variable_names)["backbone"]
    by_kind, unknown = _ordered_layers(parts["backbone"], names)
    renamed: dict[str, np.ndarray] = {}
    for name, tensor in parts["head"].items():
        path = model_garden.head_path(name)
        if path is None:
            unknown.append(f"head/{name} {tensor.shape} is unknown")
        else:
            renamed[path] = tensor
    detector.check_nothing_wrong(_SOURCE, unknown)
    variant = _variant(by_kind)
    renamed |= _backbone_tensors(by_kind, spinenet.SpineNet(variant=variant))
    num_classes, renamed = model_garden.reorder_anchors(renamed, (), _SOURCE)
    return detector.Detector(
        _SOURCE,
        _RUNS[variant],
        (
            *_DEVICE_SETTINGS,
            f"NUM_CLASSES = {num_classes}",
            f"SpineNet.variant = '{variant}'",
            *detector.heads_settings(renamed),
        ),
        num_classes,
        renamed,
        epsilon=1e-3,
    )


def _ordered_layers(
    backbone: Mapping[str, np.ndarray], names: Mapping[str, str]
) -> tuple[dict[str, list[_Layer]], list[str]]:
    """Returns the layers by kind, in the order of their making, and unknown tensors."""
    contents: dict[str, _Layer] = {}
    numbers: dict[str, int] = {}
    unknown = []
    for name, tensor in backbone.items():
        match = _LAYER.fullmatch(name)
        number = _NUMBER.fullmatch(names.get(name, ""))
        if not match or (match[2] and not _PART.fullmatch(match[2])):
            unknown.append(f"backbone/{name} {tensor.shape} is unknown")
        elif not number:
            unknown.append(f"backbone/{name} has no name of a variable of Keras")
        else:
            layer = match[1]
            contents.setdefault(layer, {})[name.removeprefix(f"{layer}/")] = tensor
            numbers[layer] = int(number[1] or 0)
    by_kind: dict[str, list[_Layer]] = {}
    for layer in sorted(contents, key=lambda layer: numbers[layer]):
        by_kind.setdefault(_kind(contents[layer]), []).append(contents[layer])
    return by_kind, unknown


def _kind(layer: _Layer) -> str:
    """Returns the kind of a layer from the names of its tensors."""
    if "_conv1/kernel" in layer:
        return "bottleneck" if "_conv3/kernel" in layer else "basic block"
    return "convolution" if "kernel" in layer else "normalization"


def _variant(by_kind: Mapping[str, list[_Layer]]) -> str:
    """Returns the variant that has these layers."""
    bottlenecks = by_kind.get("bottleneck", [])
    convs = by_kind.get("convolution", [])
    num_blocks = len(bottlenecks) + len(by_kind.get("basic block", []))
    found = (
        convs[-1]["kernel"].shape[-1] if convs else 0,
        bottlenecks[0]["_conv1/kernel"].shape[-1] if bottlenecks else 0,
        num_blocks,
    )
    if found not in _VARIANTS:
        raise errors.UserError(
            f"--checkpoint has Model Garden's heads without a decoder, but is no "
            f"SpineNet of P3 to P7: its features have {found[0]} channels, its first "
            f"bottleneck has {found[1]}, and it has {found[2]} residual blocks. "
            f"Expected one of {_VARIANTS}. Mobile SpineNets are not supported."
        )
    return _VARIANTS[found]


def _backbone_tensors(
    by_kind: Mapping[str, list[_Layer]], backbone: spinenet.SpineNet
) -> dict[str, np.ndarray]:
    """Returns the tensors by the paths of a backbone of the same variant."""
    pairs = list(_outer_layers(backbone))
    blocks = [block for group in backbone.stem_blocks for block in group]
    blocks += [block for group in backbone.blocks for block in group.residuals]
    ours: dict[str, list] = {
        "convolution": [[("", conv)] for conv, _ in pairs],
        "normalization": [[("", norm)] for _, norm in pairs],
        "bottleneck": [_parts(b) for b in blocks if len(b.convs) == 3],
        "basic block": [_parts(b) for b in blocks if len(b.convs) == 2],
    }
    result, wrong = {}, []
    for kind, targets in ours.items():
        found = by_kind.get(kind, [])
        if len(found) != len(targets):
            wrong.append(f"backbone has {len(found)} of {len(targets)} {kind}s")
            continue
        for layer, target in zip(found, targets, strict=True):
            roots = {prefix: _path(module) for prefix, module in target}
            for name, tensor in layer.items():
                prefix, _, leaf = name.rpartition("/")
                if prefix not in roots:
                    wrong.append(f"{kind} {name} {tensor.shape} is unknown")
                else:
                    result[f"{roots[prefix]}/{leaf}"] = tensor
    detector.check_nothing_wrong(f"{_SOURCE}-{backbone.variant}", wrong)
    return result


def _outer_layers(
    backbone: spinenet.SpineNet,
) -> Iterator[tuple[layers.Conv, norms.BatchNorm]]:
    """Yields the layers outside of residual blocks, in Model Garden's order."""
    yield backbone.stem_conv, backbone.stem_norm
    for block in backbone.blocks:
        for part in block.resamplings:
            yield part.squeeze, part.norm_squeeze
            if part.downsample is not None:
                yield part.downsample, part.norm_downsample
            yield part.expand, part.norm_expand
    yield from zip(backbone.end_convs, backbone.end_norms, strict=True)


def _parts(
    block: residual_block.ResidualBlock,
) -> list[tuple[str, layers.Conv | norms.BatchNorm]]:
    """Returns the layers of a residual block with Model Garden's names."""
    parts: list[tuple[str, layers.Conv | norms.BatchNorm]] = []
    if block.shortcut is not None:
        parts += [("_shortcut", block.shortcut), ("_norm0", block.norm_shortcut)]
    for i, (conv, norm) in enumerate(zip(block.convs, block.norms, strict=True), 1):
        parts += [(f"_conv{i}", conv), (f"_norm{i}", norm)]
    return parts


def _path(layer: layers.Conv | norms.BatchNorm) -> str:
    """Returns the path of a layer."""
    return replicas.variable_path(layer.variables[0]).rpartition("/")[0]
