"""Reads RetinaNet checkpoints of TensorFlow Model Garden, with ResNet and FPN."""

import re
from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np

from retinanet_tpu import errors
from retinanet_tpu.importing import detector

_T = TypeVar("_T")
_SOURCE = "Model Garden's RetinaNet with ResNet and FPN"
_END = "/.ATTRIBUTES/VARIABLE_VALUE"
# Objects of the model, which a checkpoint contains once, by the shortest path to them.
_PART = re.compile(r"(?:model/)?_?(backbone|decoder|head)/(.+)")
_LAYER = re.compile(r"layer_with_weights-(\d+)/(.+)")
_BLOCK = re.compile(r"(_conv|_norm|_shortcut)(\d?)/(\w+)")
_TOWER = re.compile(r"_(cls|box)_(convs|norms)/(\d+)(?:/(\d+))?/(\w+)")
_LAST = re.compile(r"_(classifier|box_regressor)/(\w+)")
_LAST_PATHS = {"classifier": "class/logits", "box_regressor": "box/deltas"}
_TOWERS = {"cls": "class", "box": "box"}
# The layers of the decoder in the order of Keras, which sorts them by depth.
_DECODER = (
    *("lateral5", "lateral4", "output5", "lateral3", "output6", "output3", "output4"),
    *("output7", "norm3", "norm4", "norm5", "norm6", "norm7"),
)
_NUM_SCALES = _NUM_RATIOS = 3


def is_source(names: Collection[str]) -> bool:
    """Returns whether a checkpoint has the names of Model Garden's RetinaNet.

    Args:
      names: The names of its tensors.
    """
    return any(name.endswith(f"head/_classifier/kernel{_END}") for name in names)


def convert(tensors: Mapping[str, np.ndarray]) -> detector.Detector:
    """Returns a detector from the tensors of a checkpoint.

    Args:
      tensors: The tensors by Model Garden's names.
    Raises:
      UserError: The checkpoint contains other tensors, or lacks some.
    Source: The settings are those of the experiment retinanet_resnetfpn_coco in
      official/vision/configs/retinanet.py.
    """
    parts = split(tensors)
    renamed: dict[str, np.ndarray] = {}
    unknown = []
    blocks = _blocks(parts["backbone"])
    for part, path_fn in (
        ("backbone", lambda name: _backbone_path(name, blocks)),
        ("decoder", _decoder_path),
        ("head", head_path),
    ):
        for name, tensor in parts[part].items():
            path = path_fn(name)
            if path is None:
                unknown.append(f"{part}/{name} {tensor.shape} is unknown")
            else:
                renamed[path] = tensor
    detector.check_nothing_wrong(_SOURCE, unknown)
    return _finish(renamed)


def split(values: Mapping[str, _T]) -> dict[str, dict[str, _T]]:
    """Returns the values of backbone, decoder and head, each by the rest of its name.

    Args:
      values: Values by the names of a checkpoint. Slots of an optimizer are left out.
    """
    parts: dict[str, dict[str, _T]] = {"backbone": {}, "decoder": {}, "head": {}}
    for name, value in values.items():
        match = _PART.fullmatch(name.removesuffix(_END))
        if match and name.endswith(_END) and ".OPTIMIZER_SLOT" not in name:
            parts[match[1]][match[2]] = value
    return parts


def _blocks(backbone: Mapping[str, np.ndarray]) -> dict[int, tuple[int, int]]:
    """Returns (stage, block) by the number of a layer; a projection begins a stage."""
    numbers = {
        int(match[1])
        for name in backbone
        if (match := _LAYER.fullmatch(name)) and match[2].startswith("_conv")
    }
    blocks = {}
    stage, block = 1, 0
    for number in sorted(numbers):
        block += 1
        if f"layer_with_weights-{number}/_shortcut/kernel" in backbone:
            stage, block = stage + 1, 1
        blocks[number] = stage, block
    return blocks


def _backbone_path(name: str, blocks: Mapping[int, tuple[int, int]]) -> str | None:
    """Returns our path of a tensor of the backbone, or None."""
    if not (match := _LAYER.fullmatch(name)):
        return None
    number, rest = int(match[1]), match[2]
    if number in (0, 1) and "/" not in rest:
        return f"backbone/stem/{'norm' if number else 'conv'}/{rest}"
    if number not in blocks or not (match := _BLOCK.fullmatch(rest)):
        return None
    kind, index, leaf = match.groups()
    layer = f"{kind[1:]}{index}".replace("norm0", "norm_shortcut")
    stage, block = blocks[number]
    return f"backbone/stage{stage}/block{block}/{layer}/{leaf}"


def _decoder_path(name: str) -> str | None:
    """Returns our path of a tensor of the decoder, or None."""
    match = _LAYER.fullmatch(name)
    if not match or int(match[1]) >= len(_DECODER):
        return None
    return f"fpn/{_DECODER[int(match[1])]}/{match[2]}"


def head_path(name: str) -> str | None:
    """Returns our path of a tensor of the head, or None.

    Args:
      name: Its name in the head.
    """
    if match := _LAST.fullmatch(name):
        return f"heads/{_LAST_PATHS[match[1]]}/{match[2]}"
    if not (match := _TOWER.fullmatch(name)):
        return None
    tower, kind, first, second, leaf = match.groups()
    root = f"heads/{_TOWERS[tower]}"
    if kind == "convs" and second is None:
        return f"{root}/conv{int(first) + 1}/{leaf}"
    if kind == "norms" and second is not None:
        return f"{root}/norm{int(second) + 1}_level{int(first) + 3}/{leaf}"
    return None


def _finish(tensors: dict[str, np.ndarray]) -> detector.Detector:
    """Returns the detector of tensors by path, with anchors in our order."""
    needed = ("backbone/stem/conv/kernel", "fpn/lateral3/kernel")
    num_classes, tensors = reorder_anchors(tensors, needed, _SOURCE)
    return detector.Detector(
        _SOURCE,
        "coco_r50_640_model_garden.gin",
        (
            f"NUM_CLASSES = {num_classes}",
            *detector.resnet_settings(tensors, _SOURCE),
            *detector.pyramid_settings(tensors),
        ),
        num_classes,
        tensors,
        epsilon=1e-3,
    )


def reorder_anchors(
    tensors: Mapping[str, np.ndarray], needed: Collection[str], source: str
) -> tuple[int, dict[str, np.ndarray]]:
    """Returns the number of classes, and the tensors with anchors in our order.

    Args:
      tensors: The tensors by path.
      needed: Paths that must be among them, besides those of the heads.
      source: The name of the library and of the model, for messages.
    Raises:
      UserError: A tensor is absent, or a cell does not have nine anchors.
    """
    needed = [
        *needed,
        *(f"heads/class/{x}" for x in ("conv1/kernel", "logits/kernel", "logits/bias")),
        *(f"heads/box/{x}" for x in ("deltas/kernel", "deltas/bias")),
    ]
    missing = [f"{path} is absent" for path in needed if path not in tensors]
    detector.check_nothing_wrong(source, missing)
    num_anchors = len(tensors["heads/box/deltas/bias"]) // 4
    if num_anchors != _NUM_SCALES * _NUM_RATIOS:
        raise errors.UserError(
            f"--checkpoint of {source} has {num_anchors} anchors in a cell; only 9 of "
            "3 scales and 3 ratios are supported, because the file does not contain "
            "the scales."
        )
    num_classes = len(tensors["heads/class/logits/bias"]) // num_anchors
    result = dict(tensors)
    # From (scale, ratio) to (ratio, scale).
    for name, depth in (("class/logits", num_classes), ("box/deltas", 4)):
        shape = (_NUM_SCALES, _NUM_RATIOS, depth)
        order = tuple(range(depth))
        result |= detector.reorder(result, f"heads/{name}", shape, order, (0, 1))
    return num_classes, result
