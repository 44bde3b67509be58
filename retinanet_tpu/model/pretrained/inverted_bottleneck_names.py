"""The names that timm and torchvision give the tensors of inverted bottlenecks.

EfficientNet and MobileNetV3 have the same names in each library.
"""

import re
from collections.abc import Iterable, Sequence

from retinanet_tpu.model.pretrained import key_mapping

TIMM_FIRST = "blocks.0.0.conv_dw.weight"
TIMM_UNUSED = re.compile(r"(conv_head|bn2|norm_head|classifier)\.")
# The last convolution, whose number depends on the network, and the classifier.
TORCHVISION_UNUSED = re.compile(r"features\.[1-9]\d*\.[01]\.\w+$|classifier\.")

_TIMM_STEM = re.compile(r"(conv_stem|bn1)\.(\w+)")
_TIMM_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(\w+|se\.\w+)\.(\w+)")
_TIMM_SQUEEZE = {
    "se.conv_reduce": "squeeze_excite/squeeze",
    "se.conv_expand": "squeeze_excite/excite",
}
# A block without an expanding convolution numbers its normalizations differently.
_TIMM_EXPANDED = {
    "conv_pw": "expand",
    "bn1": "norm_expand",
    "conv_dw": "depthwise",
    "bn2": "norm_depthwise",
    "conv_pwl": "project",
    "bn3": "norm_project",
    **_TIMM_SQUEEZE,
}
_TIMM_SEPARABLE = {
    "conv_dw": "depthwise",
    "bn1": "norm_depthwise",
    "conv_pw": "project",
    "bn2": "norm_project",
    **_TIMM_SQUEEZE,
}
_TIMM_LAST_CONV = re.compile(r"((?:.*\.)?blocks\.\d+\.0\.)conv\.weight")
_TORCHVISION_STEM = re.compile(r"features\.0\.([01])\.(\w+)")
_TORCHVISION_BLOCK = re.compile(
    r"features\.(\d+)(?:\.(\d+))?\.block\.(\d)\.(\w+)\.(\w+)"
)


def timm_paths(names: Sequence[str]) -> dict[str, str]:
    """Returns our paths of timm's names.

    Args:
      names: The names without a prefix.
    """
    matches = {n: match for n in names if (match := _TIMM_BLOCK.fullmatch(n))}
    indices = _numbered((int(m[1]), int(m[2])) for m in matches.values())
    expanded = {m.group(1, 2) for m in matches.values() if m[3] == "conv_pwl"}
    paths: dict[str, str | None] = {}
    for name in names:
        if stem := _TIMM_STEM.fullmatch(name):
            layer = "conv" if stem[1] == "conv_stem" else "norm"
            paths[name] = key_mapping.torch_path(f"stem/{layer}", stem[2])
        elif match := matches.get(name):
            is_expanded = match.group(1, 2) in expanded
            layers = _TIMM_EXPANDED if is_expanded else _TIMM_SEPARABLE
            block = f"block{indices[int(match[1]), int(match[2])]}"
            if match[3] in layers:
                path = f"{block}/{layers[match[3]]}"
                paths[name] = key_mapping.torch_path(path, match[4])
    return {name: path for name, path in paths.items() if path}


def timm_last_block(names: Iterable[str]) -> str | None:
    """Returns the prefix of timm's last block if that is a convolution, or None.

    MobileNetV3 has such a block, EfficientNet has its convolution outside of blocks.

    Args:
      names: The names, with or without a prefix.
    """
    matches = (_TIMM_LAST_CONV.fullmatch(name) for name in names)
    return next((match[1] for match in matches if match), None)


def torchvision_paths(names: Sequence[str]) -> dict[str, str]:
    """Returns our paths of torchvision's names.

    Args:
      names: The names without a prefix.
    """
    matches = {n: match for n in names if (match := _TORCHVISION_BLOCK.fullmatch(n))}
    keys = {n: (int(m[1]), int(m[2] or 0)) for n, m in matches.items()}
    indices = _numbered(keys.values())
    # The parts of a block are numbered; which of them it has depends on the block.
    parts: dict[tuple[int, int], dict[int, str]] = {}
    for name, match in matches.items():
        kind = "squeeze" if match[4] in ("fc1", "fc2") else "conv"
        parts.setdefault(keys[name], {})[int(match[3])] = kind
    paths: dict[str, str | None] = {}
    for name in names:
        if stem := _TORCHVISION_STEM.fullmatch(name):
            layer = "norm" if int(stem[1]) else "conv"
            paths[name] = key_mapping.torch_path(f"stem/{layer}", stem[2])
        elif match := matches.get(name):
            part = _torchvision_part(parts[keys[name]], int(match[3]), match[4])
            if part:
                path = f"block{indices[keys[name]]}/{part}"
                paths[name] = key_mapping.torch_path(path, match[5])
    return {name: path for name, path in paths.items() if path}


def _torchvision_part(kinds: dict[int, str], part: int, item: str) -> str | None:
    """Returns our layer of an item of a block's part, or None.

    Args:
      kinds: "conv" or "squeeze" by the number of the part.
      part: The number of the part.
      item: "fc1" or "fc2" of squeeze-and-excitation; else "0", the convolution, or "1",
        the normalization.
    """
    if kinds[part] == "squeeze":
        layers = {"fc1": "squeeze_excite/squeeze", "fc2": "squeeze_excite/excite"}
        return layers.get(item)
    convs = sorted(number for number, kind in kinds.items() if kind == "conv")
    layer = ("expand", "depthwise", "project")[-len(convs) :][convs.index(part)]
    return {"0": layer, "1": f"norm_{layer}"}.get(item)


def _numbered(keys: Iterable[tuple[int, int]]) -> dict[tuple[int, int], int]:
    """Returns the number of each block in the network by (stage, block)."""
    return {key: index for index, key in enumerate(sorted(set(keys)))}
