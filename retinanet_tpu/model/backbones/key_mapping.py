"""Maps the names and layouts of Keras's and PyTorch's ResNets to ours."""

import re
from collections.abc import Mapping

import numpy as np

_TORCH_LEAVES = {
    "conv": {"weight": "kernel", "bias": "bias"},
    "norm": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
}
_TORCH_STEM = re.compile(r"(conv|bn)1\.(\w+)")
_TORCH_BLOCK = re.compile(r"layer([1-4])\.(\d+)\.(conv|bn|downsample\.)(\d)\.(\w+)")
_TORCH_UNUSED = re.compile(r"(fc|head|classifier)\.|.*\.num_batches_tracked$")
_TORCH_FIRST = "layer1.0.conv1.weight"
_KERAS_STEM = re.compile(r"conv1_(conv|bn)/(\w+)")
_KERAS_BLOCK = re.compile(r"conv([2-5])_block(\d+)_(\d)_(conv|bn)/(\w+)")
_KERAS_UNUSED = re.compile(r"predictions/")


def from_torch(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns tensors of torchvision or timm by our paths, and the unknown names.

    Classifiers and counts of batches are dropped. If the backbone is a part of a larger
    model ("module.", "backbone.body."), so are the other parts.

    Args:
      tensors: The tensors by torchvision's or timm's names; kernels [out, in, H, W].
    Returns:
      The tensors by path below "backbone/", with kernels [H, W, in, out] and biases of
      convolutions; and the names that no ResNet has.
    """
    prefixes = [
        n.removesuffix(_TORCH_FIRST) for n in tensors if n.endswith(_TORCH_FIRST)
    ]
    prefix = min(prefixes, key=len, default="")
    renamed: dict[str, np.ndarray] = {}
    unknown = []
    for full_name, tensor in tensors.items():
        name = full_name.removeprefix(prefix)
        if not full_name.startswith(prefix) or _TORCH_UNUSED.match(name):
            continue
        path = _torch_path(name)
        if path is None:
            unknown.append(full_name)
        else:
            is_kernel = path.endswith("/kernel") and tensor.ndim == 4
            renamed[path] = tensor.transpose(2, 3, 1, 0) if is_kernel else tensor
    return renamed, unknown


def from_keras(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns tensors of Keras by our paths, for RGB images, and the unknown names.

    Args:
      tensors: The tensors by Keras's names, see `weight_files.read_keras`.
    Returns:
      The tensors by path below "backbone/", and the names that no ResNet has.
    """
    renamed: dict[str, np.ndarray] = {}
    unknown = []
    for name, tensor in tensors.items():
        if _KERAS_UNUSED.match(name):
            continue
        path = _keras_path(name)
        if path is None:
            unknown.append(name)
        else:
            # Keras's models were trained on BGR images.
            is_stem = path == "stem/conv/kernel"
            renamed[path] = tensor[:, :, ::-1] if is_stem else tensor
    return renamed, unknown


def _torch_path(name: str) -> str | None:
    """Returns our path of a tensor of torchvision or timm, or None."""
    if match := _TORCH_STEM.fullmatch(name):
        kind, leaf = match.groups()
        stage, block, index = 1, 0, 1
    elif match := _TORCH_BLOCK.fullmatch(name):
        stage = int(match[1]) + 1
        block = int(match[2]) + 1
        kind = match[3]
        index = int(match[4])
        leaf = match[5]
        if kind == "downsample.":
            # Of the shortcut, 0 is the convolution and 1 the normalization.
            kind = "bn" if index else "conv"
            index = 0
    else:
        return None
    kind = "norm" if kind == "bn" else kind
    our_leaf = _TORCH_LEAVES[kind].get(leaf)
    return our_leaf and _path(stage, block, index, kind, our_leaf)


def _keras_path(name: str) -> str | None:
    """Returns our path of a tensor of Keras, or None."""
    if match := _KERAS_STEM.fullmatch(name):
        kind, leaf = match.groups()
        stage, block, index = 1, 0, 1
    elif match := _KERAS_BLOCK.fullmatch(name):
        stage = int(match[1])
        block = int(match[2])
        index = int(match[3])
        kind = match[4]
        leaf = match[5]
    else:
        return None
    kind = "norm" if kind == "bn" else kind
    return _path(stage, block, index, kind, leaf)


def _path(stage: int, block: int, index: int, kind: str, leaf: str) -> str:
    """Returns our path. Stage 1 is the stem, index 0 is the shortcut."""
    if stage == 1:
        return f"stem/{kind}/{leaf}"
    if index:
        layer = f"{kind}{index}"
    else:
        layer = "shortcut" if kind == "conv" else "norm_shortcut"
    return f"stage{stage}/block{block}/{layer}/{leaf}"
