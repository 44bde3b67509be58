"""Reads torchvision's retinanet_resnet50_fpn and retinanet_resnet50_fpn_v2."""

import re
from collections.abc import Collection, Mapping

import numpy as np

from retinanet_tpu import errors
from retinanet_tpu.importing import detector
from retinanet_tpu.model.pretrained import resnet_weights

_SOURCE = "torchvision's RetinaNet"
_LOGITS = "head.classification_head.cls_logits.weight"
_BODY = "backbone.body."
_LEAVES = {"weight": "kernel", "bias": "bias"}
_NORM_LEAVES = {"weight": "gamma", "bias": "beta"}
# Files that were saved before 2022 have names without the number in brackets.
_FPN = re.compile(r"backbone\.fpn\.(inner|layer)_blocks\.(\d)(?:\.0)?\.(weight|bias)")
_COARSE = re.compile(r"backbone\.fpn\.extra_blocks\.p(\d)\.(weight|bias)")
_TOWER = re.compile(r"head\.(classification|regression)_head\.(.+)\.(weight|bias)")
_CONV = re.compile(r"conv\.(\d+)(?:\.(\d))?")
_TOWERS = {"classification": "class", "regression": "box"}
_LAST = {"cls_logits": "logits", "bbox_reg": "deltas"}
_UNUSED = re.compile(r".*\.num_batches_tracked")


def is_source(names: Collection[str]) -> bool:
    """Returns whether a state dict has the names of torchvision's RetinaNet.

    Args:
      names: The names of its tensors.
    """
    return any(name.endswith(_LOGITS) for name in names)


def convert(tensors: Mapping[str, np.ndarray]) -> detector.Detector:
    """Returns a detector from a state dict of torchvision.

    The ResNet may have any depth. Published are a first version, whose P6 is made from
    P5, and a second one, with P6 from C5 and group normalization in the heads.

    Args:
      tensors: The tensors by torchvision's names; kernels [out, in, H, W].
    Raises:
      UserError: The file contains other tensors, or lacks some.
    Source: The settings are those in torchvision's models/detection/retinanet.py.
    """
    # Wrappers such as DataParallel put "module." in front of all names.
    prefix = next(n for n in tensors if n.endswith(_LOGITS)).removesuffix(_LOGITS)
    tensors = {name.removeprefix(prefix): x for name, x in tensors.items()}
    is_frozen = not any(map(_UNUSED.fullmatch, tensors))
    body = {name: x for name, x in tensors.items() if name.startswith(_BODY)}
    renamed_body, unknown = resnet_weights.TORCH.rename_fn(body)
    renamed = {f"backbone/{path}": x for path, x in renamed_body.items()}
    for name, tensor in tensors.items():
        if name in body or _UNUSED.fullmatch(name):
            continue
        path = _path(name)
        if path is None:
            unknown.append(name)
        else:
            is_kernel = path.endswith("/kernel") and tensor.ndim == 4
            renamed[path] = tensor.transpose(2, 3, 1, 0) if is_kernel else tensor
    detector.check_nothing_wrong(_SOURCE, [f"{name} is unknown" for name in unknown])
    return _finish(renamed, epsilon=0.0 if is_frozen else 1e-5)


def _path(name: str) -> str | None:
    """Returns our path of a tensor of the FPN or the heads, or None."""
    if match := _FPN.fullmatch(name):
        kind = "lateral" if match[1] == "inner" else "output"
        return f"fpn/{kind}{int(match[2]) + 3}/{_LEAVES[match[3]]}"
    if match := _COARSE.fullmatch(name):
        return f"fpn/output{match[1]}/{_LEAVES[match[2]]}"
    if not (match := _TOWER.fullmatch(name)):
        return None
    tower, part, leaf = match.groups()
    root = f"heads/{_TOWERS[tower]}"
    if part in _LAST:
        return f"{root}/{_LAST[part]}/{_LEAVES[leaf]}"
    if not (match := _CONV.fullmatch(part)):
        return None
    index = int(match[1])
    if match[2] is None:  # The activations have numbers, too.
        return f"{root}/conv{index // 2 + 1}/{_LEAVES[leaf]}"
    if match[2] == "1":
        return f"{root}/norm{index + 1}/{_NORM_LEAVES[leaf]}"
    return f"{root}/conv{index + 1}/{_LEAVES[leaf]}" if match[2] == "0" else None


def _finish(tensors: dict[str, np.ndarray], epsilon: float) -> detector.Detector:
    """Returns the detector of tensors by path, with boxes in our order."""
    missing = [
        f"{path} is absent"
        for path in (
            "backbone/stem/conv/kernel",
            "fpn/lateral3/kernel",
            "fpn/output6/kernel",
            "heads/class/conv1/kernel",
            "heads/class/logits/bias",
            "heads/box/deltas/kernel",
            "heads/box/deltas/bias",
        )
        if path not in tensors
    ]
    detector.check_nothing_wrong(_SOURCE, missing)
    is_v2 = "heads/class/norm1/gamma" in tensors
    is_coarse_from_p5 = (
        tensors["fpn/output6/kernel"].shape[2]
        == tensors["fpn/lateral3/kernel"].shape[3]
    )
    if is_v2 == is_coarse_from_p5:
        raise errors.UserError(
            "--checkpoint is neither of torchvision's RetinaNets: its heads have "
            f"{'group' if is_v2 else 'no'} normalization, and its P6 is made from "
            f"{'P5' if is_coarse_from_p5 else 'C5'}."
        )
    num_anchors = len(tensors["heads/box/deltas/bias"]) // 4
    num_classes = len(tensors["heads/class/logits/bias"]) // num_anchors
    # From (dx, dy, dw, dh) to (dy, dx, dh, dw).
    tensors |= detector.reorder(
        tensors, "heads/box/deltas", (num_anchors, 4), (1, 0, 3, 2)
    )
    if is_v2:  # Its convolutions have no bias, ours do.
        for path in [p for p in tensors if re.fullmatch(r"heads/.*/conv\d/kernel", p)]:
            zeros = np.zeros(tensors[path].shape[-1], np.float32)
            tensors.setdefault(path.replace("/kernel", "/bias"), zeros)
    version = "_v2" if is_v2 else ""
    return detector.Detector(
        f"torchvision's retinanet_resnet50_fpn{version}",
        f"coco_r50_800_torchvision{version}.gin",
        (
            f"NUM_CLASSES = {num_classes}",
            *detector.resnet_settings(tensors, _SOURCE),
            *detector.pyramid_settings(tensors),
        ),
        num_classes,
        tensors,
        epsilon,
    )
