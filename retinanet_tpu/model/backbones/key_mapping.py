"""What a ResNet's variables are called by Keras and by PyTorch, and lie in memory."""

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
    """Returns a state dict by our names, in our layout, and the names without a place.

    Classifiers and counts of batches are left out, as is what lies beside a backbone in
    a larger model ("module.", "backbone.body.").

    Args:
      tensors: kernels [out, in, H, W], by torchvision's and timm's names.
    Returns:
      Kernels [H, W, in, out], by path below "backbone/"; biases of convolutions, too.
    """
    found = [n.removesuffix(_TORCH_FIRST) for n in tensors if n.endswith(_TORCH_FIRST)]
    prefix = min(found, key=len, default="")
    renamed, unknown = {}, []
    for whole_name, tensor in tensors.items():
        name = whole_name.removeprefix(prefix)
        is_beside = not whole_name.startswith(prefix)
        if is_beside or _TORCH_UNUSED.match(name):
            continue
        path = _torch_path(name)
        if path is None:
            unknown.append(whole_name)
        else:
            is_kernel = path.endswith("/kernel") and tensor.ndim == 4
            renamed[path] = tensor.transpose(2, 3, 1, 0) if is_kernel else tensor
    return renamed, unknown


def from_keras(
    tensors: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns what `weight_files.read_keras` gives by our names, for RGB; see above."""
    renamed, unknown = {}, []
    for name, tensor in tensors.items():
        if _KERAS_UNUSED.match(name):
            continue
        path = _keras_path(name)
        if path is None:
            unknown.append(name)
        else:
            # Its models were trained on BGR.
            is_stem = path == "stem/conv/kernel"
            renamed[path] = tensor[:, :, ::-1] if is_stem else tensor
    return renamed, unknown


def _torch_path(name):
    if match := _TORCH_STEM.fullmatch(name):
        kind, leaf = match.groups()
        stage, block, index = 1, 0, 1
    elif match := _TORCH_BLOCK.fullmatch(name):
        stage, block, kind, index, leaf = match.groups()
        stage, block, index = int(stage) + 1, int(block) + 1, int(index)
        if kind == "downsample.":
            kind, index = "bn" if index else "conv", 0
    else:
        return None
    kind = "norm" if kind == "bn" else kind
    leaf = _TORCH_LEAVES[kind].get(leaf)
    return leaf and _path(stage, block, index, kind, leaf)


def _keras_path(name):
    if match := _KERAS_STEM.fullmatch(name):
        kind, leaf = match.groups()
        stage, block, index = 1, 0, 1
    elif match := _KERAS_BLOCK.fullmatch(name):
        stage, block, index, kind, leaf = match.groups()
    else:
        return None
    kind = "norm" if kind == "bn" else kind
    return _path(int(stage), int(block), int(index), kind, leaf)


def _path(stage, block, index, kind, leaf):
    """Returns our name; stage 1 is the stem, index 0 the shortcut."""
    if stage == 1:
        return f"stem/{kind}/{leaf}"
    if index:
        layer = f"{kind}{index}"
    else:
        layer = "shortcut" if kind == "conv" else "norm_shortcut"
    return f"stage{stage}/block{block}/{layer}/{leaf}"
