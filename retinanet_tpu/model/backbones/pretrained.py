"""Loads weights of another project or of another run into a ResNet.

A loaded backbone computes the same features as the model that the weights are from.
Three differences are folded into the variables, exactly: biases before a normalization,
the epsilon of normalizations, and the order of colors. Three others must be equal in
the run's settings, and are checked: where blocks stride, how the stem's pool pads, and
how pixels are normalized. A gin file for each origin sets these.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
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


# From tensors by a project's names to tensors by our paths, and the unknown names.
RenameFn = Callable[[Mapping[str, np.ndarray]], tuple[dict[str, np.ndarray], list[str]]]
# From the path of a checkpoint to tensors by path.
ReadRunFn = Callable[[str], Mapping[str, np.ndarray]]


class _Origin(NamedTuple):
    """A project with pretrained weights, and the settings that they require.

    Attributes:
      name: The name for messages.
      gin_file: The gin file of settings, mean_rgb and stddev_rgb.
      settings: The settings of ResNet.
      mean_rgb: The mean that is subtracted from pixels in 0..255.
      stddev_rgb: The standard deviation of pixels in 0..255.
      rename_fn: Returns the tensors by our paths.
      epsilon: The epsilon of the project's batch normalizations.
    """

    name: str
    gin_file: str
    settings: dict[str, bool]
    mean_rgb: tuple[float, ...]
    stddev_rgb: tuple[float, ...]
    rename_fn: RenameFn
    epsilon: float


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
    backbone: tf.Module,
    checkpoint: str,
    *,
    normalize_fn: layers.NormalizeFn,
    read_run_fn: ReadRunFn,
) -> str:
    """Assigns pretrained weights to all variables of a backbone.

    Args:
      backbone: The backbone to assign to, a `resnet.ResNet` or a module with its paths
        and settings.
      checkpoint: The weights. "imagenet" are Keras's weights of this depth. Or a .h5
        or .keras file of keras.applications, a .safetensors or torch file of
        torchvision or timm, or a checkpoint of a detector for read_run_fn.
      normalize_fn: Returns the network's input from pixels, RGB in 0..255.
      read_run_fn: Returns the tensors of a checkpoint by path, e.g.
        "backbone/stem/conv/kernel".
    Returns:
      A description of the loaded weights for messages.
    Raises:
      MissingFileError: The file does not exist.
      UserError: The weights are of another network, or require other settings.
    Source: The settings are those in the code of each project.
    """
    variables = {_name(variable): variable for variable in backbone.variables}
    origin: _Origin | None = None
    if checkpoint == IMAGENET:
        tensors = weight_files.download_keras(_depth(variables))
        origin = KERAS
    elif not is_run(checkpoint):
        if not tf.io.gfile.exists(checkpoint):
            raise errors.MissingFileError(
                f"BACKBONE_CHECKPOINT {checkpoint} does not exist."
            )
        read_fn, origin = _READERS[_suffix(checkpoint)]
        tensors = read_fn(checkpoint)
    else:
        tensors = _read_run(checkpoint, read_run_fn)
    if origin:
        tensors, unknown = origin.rename_fn(tensors)
        biases = {n: tensors.pop(n) for n in list(tensors) if n.endswith("/bias")}
        _check_shapes(variables, tensors, unknown, checkpoint)
        _check_settings(backbone, origin, normalize_fn, checkpoint)
        tensors = _fold(backbone, tensors, biases, origin.epsilon)
    else:
        _check_shapes(variables, tensors, [], checkpoint)
    for name, variable in variables.items():
        variable.assign(np.asarray(tensors[name], np.float32))
    text = f"{_description(variables)} of {origin.name if origin else 'a detector'}"
    logging.info("Backbone from %s: %s", checkpoint, text)
    return text


def is_run(checkpoint: str) -> bool:
    """Returns whether `load` reads a checkpoint by its read_run_fn.

    Args:
      checkpoint: See `load`.
    """
    return checkpoint != IMAGENET and _suffix(checkpoint) not in _READERS


def _suffix(path: str) -> str:
    """Returns the part of a path from the last dot on."""
    return path[path.rfind(".") :]


def _read_run(checkpoint: str, read_run_fn: ReadRunFn) -> dict[str, np.ndarray]:
    """Returns the tensors of the backbone of a detector, by path below "backbone/"."""
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


def _fold(
    backbone: tf.Module,
    tensors: Mapping[str, np.ndarray],
    biases: Mapping[str, np.ndarray],
    epsilon: float,
) -> dict[str, np.ndarray]:
    """Returns tensors with biases and an epsilon folded into the normalizations.

    The epsilon is folded into gamma, not into the variance. So no variance becomes
    negative, and a batch with moments near the moving ones is normalized as in the
    original model.
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


def _check_shapes(
    variables: Mapping[str, tf.Variable],
    tensors: Mapping[str, np.ndarray],
    unknown: Sequence[str],
    checkpoint: str,
) -> None:
    """Raises UserError if names or shapes are not those of the backbone."""
    ours = {name: tuple(variable.shape) for name, variable in variables.items()}
    theirs = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    names = [
        name
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    wrong = [
        f"{name} is {theirs.get(name, 'absent')}, not {ours.get(name, 'used')}"
        for name in names
    ] + [f"{name} is unknown" for name in unknown]
    if not wrong:
        return
    hint = "Use weights of this architecture, or set ResNet.width."
    if _description(ours) != _description(theirs):
        hint = f"This is {_description(theirs)}, the backbone {_description(ours)}"
        depth = _depth(theirs)
        hint += f": set ResNet.depth = {depth}." if depth else "."
    elif all("shortcut/" in name for name in names) and not unknown:
        hint = f"Include {TORCH.gin_file}, which sets ResNet.identity_first_shortcut."
    raise errors.UserError(
        f"{len(wrong)} tensors of BACKBONE_CHECKPOINT {checkpoint} differ, first: "
        f"{'; '.join(wrong[:4])}. {hint}"
    )


def _check_settings(
    backbone: tf.Module,
    origin: _Origin,
    normalize_fn: layers.NormalizeFn,
    checkpoint: str,
) -> None:
    """Raises UserError if the weights require other settings than the run has."""
    wrong = [
        f"ResNet.{name} is {getattr(backbone, name)}, not {value}"
        for name, value in origin.settings.items()
        if getattr(backbone, name) != value
    ]
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    normalized = np.asarray(normalize_fn(pixels), np.float64)
    expected = (pixels - np.array(origin.mean_rgb)) / origin.stddev_rgb
    # A tenth of a gray level, because gin files contain rounded means.
    if np.any(np.abs(normalized - expected) * origin.stddev_rgb > 0.1):
        wrong.append(
            "`normalize` returns for black and white "
            f"{np.round(normalized, 3).tolist()}, not {np.round(expected, 3).tolist()}"
        )
    if wrong:
        raise errors.UserError(
            f"BACKBONE_CHECKPOINT {checkpoint} is of {origin.name}, but "
            f"{'; '.join(wrong)}. Include {origin.gin_file}, which sets all of these."
        )


def _description(names: Collection[str]) -> str:
    """Returns the network that has variables of these names, in words."""
    depth = _depth(names)
    return f"a ResNet-{depth}" if depth else "no ResNet of a known depth"


def _depth(names: Collection[str]) -> int | None:
    """Returns the depth of the ResNet with variables of these names, or None."""
    blocks = [match[1] for name in names if (match := _FIRST_CONV.fullmatch(name))]
    counts = tuple(blocks.count(stage) for stage in "2345")
    is_bottleneck = "stage2/block1/conv3/kernel" in names
    kinds = {kind: depth for depth, kind in resnet.DEPTHS.items()}
    return kinds.get((counts, is_bottleneck))


def _name(variable: tf.Variable) -> str:
    """Returns the path of a variable below "backbone/"."""
    return replicas.variable_path(variable).removeprefix(_ROOT)
