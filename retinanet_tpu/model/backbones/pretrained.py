"""Gives a ResNet the weights of another project, or of another run.

Converted, a backbone computes what the model did that the weights come from. Folded
into its variables, exactly, are biases before a normalization, another epsilon, and the
order of colors. Settings of the run, and checked, are where blocks stride, how the
stem's pool pads, and what pixels become; a gin file for each origin sets them.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import layers
from retinanet_tpu.model.backbones import key_mapping, resnet, weight_files

IMAGENET = "imagenet"
_ROOT = "backbone/"
_FIRST_CONV = re.compile(r"stage(\d)/block(\d+)/conv1/kernel")


class _Origin(NamedTuple):
    """What weights of another project expect of the network that gets them."""

    name: str
    gin_file: str  # sets what follows, without rename_fn and epsilon
    settings: dict[str, bool]  # of ResNet
    mean_rgb: tuple[float, ...]  # of pixels in 0..255
    stddev_rgb: tuple[float, ...]
    rename_fn: Callable
    epsilon: float  # of its batch norms


TORCH = _Origin(
    "torchvision or timm",
    "model/pretrained_torchvision.gin",
    {"stride_in_1x1": False, "symmetric_pool_padding": True},
    (255 * 0.485, 255 * 0.456, 255 * 0.406),
    (255 * 0.229, 255 * 0.224, 255 * 0.225),
    key_mapping.from_torch,
    1e-5,
)
KERAS = _Origin(
    "Keras",
    "model/pretrained_keras.gin",
    {"stride_in_1x1": True, "symmetric_pool_padding": True},
    (123.68, 116.779, 103.939),
    (1.0, 1.0, 1.0),
    key_mapping.from_keras,
    1.001e-5,
)
_READERS = {weight_files.SAFETENSORS_SUFFIX: (weight_files.read_safetensors, TORCH)}
_READERS |= {s: (weight_files.read_torch, TORCH) for s in weight_files.TORCH_SUFFIXES}
_READERS |= {s: (weight_files.read_keras, KERAS) for s in weight_files.KERAS_SUFFIXES}


def load(
    backbone: resnet.ResNet,
    checkpoint: str,
    *,
    normalize_fn: Callable,
    read_run_fn: Callable[[str], Mapping[str, np.ndarray]],
) -> str:
    """Assigns pretrained weights to all variables of a backbone.

    Args:
      backbone: gets them.
      checkpoint: "imagenet" for Keras's own of this depth; a .h5 or .keras file of
        keras.applications; a .safetensors or torch file of torchvision or timm; else
        what read_run_fn takes, a checkpoint of a detector.
      normalize_fn: what the network makes of pixels, RGB in 0..255.
      read_run_fn: from a path to tensors by path, "backbone/stem/conv/kernel" say.
    Returns:
      What was loaded, in words.
    Raises:
      MissingFileError: there is no such file.
      UserError: it is of another network, or expects other settings.
    Source: the settings are those of each project's own code.
    """
    variables = {_name(variable): variable for variable in backbone.variables}
    if checkpoint == IMAGENET:
        tensors, origin = weight_files.download_keras(_depth(variables)), KERAS
    elif not is_run(checkpoint):
        if not tf.io.gfile.exists(checkpoint):
            raise errors.MissingFileError(
                f"BACKBONE_CHECKPOINT {checkpoint} does not exist."
            )
        read_fn, origin = _READERS[_suffix(checkpoint)]
        tensors = read_fn(checkpoint)
    else:
        tensors, origin = _read_run(checkpoint, read_run_fn), None
    if origin:
        tensors, unknown = origin.rename_fn(tensors)
        biases = {n: tensors.pop(n) for n in list(tensors) if n.endswith("/bias")}
        _check_shapes(variables, tensors, unknown, checkpoint)
        _check_settings(backbone, origin, normalize_fn, checkpoint)
        tensors = _folded(backbone, tensors, biases, origin.epsilon)
    else:
        _check_shapes(variables, tensors, [], checkpoint)
    for name, variable in variables.items():
        variable.assign(np.asarray(tensors[name], np.float32))
    text = f"{_description(variables)} of {origin.name if origin else 'a detector'}"
    logging.info("Backbone from %s: %s", checkpoint, text)
    return text


def is_run(checkpoint: str) -> bool:
    """Returns whether `load` leaves a checkpoint to its read_run_fn."""
    return checkpoint != IMAGENET and _suffix(checkpoint) not in _READERS


def _suffix(path):
    return path[path.rfind(".") :]


def _read_run(checkpoint, read_run_fn):
    """Returns the backbone of a detector of this project."""
    try:
        tensors = read_run_fn(checkpoint)
    except FileNotFoundError as error:
        raise errors.MissingFileError(
            f"BACKBONE_CHECKPOINT {checkpoint} is no checkpoint of a run; it may also "
            f"be '{IMAGENET}', or a file of {', '.join(sorted(_READERS))}."
        ) from error
    return {
        name.removeprefix(_ROOT): tensor
        for name, tensor in tensors.items()
        if name.startswith(_ROOT)
    }


def _folded(backbone, tensors, biases, epsilon):
    """Returns tensors whose normalizations have swallowed the biases and an epsilon.

    Gamma takes the epsilon, not the variance: nothing turns negative, and a batch whose
    moments are near the moving ones is normalized as at the origin, too.
    """
    tensors = dict(tensors)
    for norm in backbone.submodules:
        if not isinstance(norm, layers.BatchNorm):
            continue
        path = _name(norm.gamma).removesuffix("/gamma")
        conv = path.replace("norm_shortcut", "shortcut").replace("/norm", "/conv")
        variance = np.float64(tensors[f"{path}/moving_variance"])
        ratio = np.sqrt((variance + norm.epsilon) / (variance + epsilon))
        tensors[f"{path}/gamma"] = tensors[f"{path}/gamma"] * ratio
        bias = np.float64(biases.get(f"{conv}/bias", 0.0))
        tensors[f"{path}/moving_mean"] = tensors[f"{path}/moving_mean"] - bias
    return tensors


def _check_shapes(variables, tensors, unknown, checkpoint):
    """Raises UserError if names or shapes are not those of the backbone."""
    wanted = {name: tuple(variable.shape) for name, variable in variables.items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = [
        name
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    wrong = [
        f"{name} is {found.get(name, 'absent')}, not {wanted.get(name, 'used')}"
        for name in names
    ] + [f"{name} has no place" for name in unknown]
    if not wrong:
        return
    ours, theirs = _description(wanted), _description(found)
    hint = "Give it weights of this architecture, or set ResNet.width."
    if ours != theirs:
        hint = f"This is {theirs}, the backbone {ours}"
        depth = _depth(found)
        hint += f": set ResNet.depth = {depth}." if depth else "."
    elif all("shortcut/" in name for name in names) and not unknown:
        hint = f"Include {TORCH.gin_file}, which sets ResNet.identity_first_shortcut."
    raise errors.UserError(
        f"{len(wrong)} tensors of BACKBONE_CHECKPOINT {checkpoint} differ, first: "
        f"{'; '.join(wrong[:4])}. {hint}"
    )


def _check_settings(backbone, origin, normalize_fn, checkpoint):
    """Raises UserError if the same weights would compute something else here."""
    wrong = [
        f"ResNet.{name} is {getattr(backbone, name)}, not {value}"
        for name, value in origin.settings.items()
        if getattr(backbone, name) != value
    ]
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    made = np.asarray(normalize_fn(pixels), np.float64)
    expected = (pixels - np.array(origin.mean_rgb)) / origin.stddev_rgb
    # A tenth of a gray level: gin files have means of a few digits.
    if np.any(np.abs(made - expected) * origin.stddev_rgb > 0.1):
        wrong.append(
            f"`normalize` makes black and white {np.round(made, 3).tolist()}, not "
            f"{np.round(expected, 3).tolist()}"
        )
    if wrong:
        raise errors.UserError(
            f"BACKBONE_CHECKPOINT {checkpoint} is of {origin.name}, but "
            f"{'; '.join(wrong)}. Include {origin.gin_file}, which sets all of it."
        )


def _description(names: Iterable[str]) -> str:
    """Returns what network has variables of these names."""
    depth = _depth(names)
    return f"a ResNet-{depth}" if depth else "no ResNet of a known depth"


def _depth(names):
    """Returns the depth of the ResNet with such variables, or None."""
    blocks = [match[1] for name in names if (match := _FIRST_CONV.fullmatch(name))]
    counts = tuple(blocks.count(stage) for stage in "2345")
    is_bottleneck = "stage2/block1/conv3/kernel" in names
    kinds = {kind: depth for depth, kind in resnet.DEPTHS.items()}
    return kinds.get((counts, is_bottleneck))


def _name(variable):
    return replicas.variable_path(variable).removeprefix(_ROOT)
