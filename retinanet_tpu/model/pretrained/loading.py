"""Loads weights of another project or of another run into a backbone.

A loaded backbone computes the same features as the model that the weights are from.
Three differences are folded into the variables, exactly: biases before a normalization,
the epsilon of normalizations, and the order of colors. Others must be equal in the
run's settings, and are checked: where blocks stride, how layers pad, and how pixels are
normalized. A gin file for each origin sets these.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import layers, norms
from retinanet_tpu.model.pretrained import (
    efficientnet_weights,
    key_mapping,
    mobilenet_v3_weights,
    resnet_weights,
    weight_files,
)

IMAGENET = "imagenet"
_ROOT = "backbone/"
_FAMILIES = (resnet_weights, efficientnet_weights, mobilenet_v3_weights)
_ORIGINS = tuple(origin for family in _FAMILIES for origin in family.ORIGINS)
KERAS_APPLICATIONS = tuple(
    application
    for family in _FAMILIES
    for application in family.KERAS_APPLICATIONS.values()
)

# From the path of a checkpoint to tensors by path.
ReadRunFn = Callable[[str], Mapping[str, np.ndarray]]

_READERS = {weight_files.SAFETENSORS_SUFFIX: weight_files.read_safetensors}
_READERS |= dict.fromkeys(weight_files.TORCH_SUFFIXES, weight_files.read_torch)
_SUFFIXES = (*_READERS, *weight_files.KERAS_SUFFIXES)


def load(
    backbone: tf.Module,
    checkpoint: str,
    *,
    normalize_fn: layers.NormalizeFn,
    read_run_fn: ReadRunFn,
) -> str:
    """Assigns pretrained weights to all variables of a backbone.

    Args:
      backbone: The backbone to assign to.
      checkpoint: The weights. "imagenet" are Keras's weights of this network. Or a .h5
        or .keras file of keras.applications, a .safetensors or torch file of
        torchvision, timm or a package of EfficientNet, or a checkpoint of a detector
        for read_run_fn.
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
    source = "a detector"
    if is_run(checkpoint):
        tensors = _read_run(checkpoint, read_run_fn)
        _check_shapes(variables, tensors, [], checkpoint)
    else:
        tensors = _read_file(checkpoint, _network(_shapes(variables)))
        origins = _recognized(tensors, checkpoint)
        tensors, unknown = origins[0].rename_fn(tensors)
        biases = {n: tensors.pop(n) for n in _folded_biases(tensors, variables)}
        _check_shapes(variables, tensors, unknown, checkpoint)
        origin = matching_origin(
            backbone, origins, normalize_fn=normalize_fn, checkpoint=checkpoint
        )
        tensors = _fold(backbone, tensors, biases, origin.epsilon)
        source = origin.name
    for name, variable in variables.items():
        variable.assign(np.asarray(tensors[name], np.float32))
    network = _network(_shapes(variables))
    text = f"{network.text if network else 'a network'} of {source}"
    logging.info("Backbone from %s: %s", checkpoint, text)
    return text


def is_run(checkpoint: str) -> bool:
    """Returns whether `load` reads a checkpoint by its read_run_fn.

    Args:
      checkpoint: See `load`.
    """
    return checkpoint != IMAGENET and _suffix(checkpoint) not in _SUFFIXES


def _suffix(path: str) -> str:
    """Returns the part of a path from the last dot on."""
    return path[path.rfind(".") :]


def _read_file(
    checkpoint: str, network: key_mapping.Network | None
) -> dict[str, np.ndarray]:
    """Returns the tensors of a file, or of Keras's download, by their own names."""
    own = network.keras_application if network else None
    if checkpoint == IMAGENET:
        if own is None:
            known = ", ".join(dict.fromkeys(a.name for a in KERAS_APPLICATIONS))
            backbone = network.text if network else "an unknown network"
            raise errors.UserError(
                f"Keras has ImageNet weights of {known}; the backbone is {backbone}. "
                "Set its depth or variant, or BACKBONE_CHECKPOINT to a file."
            )
        return weight_files.download_keras(own)
    if not tf.io.gfile.exists(checkpoint):
        raise errors.MissingFileError(
            f"BACKBONE_CHECKPOINT {checkpoint} does not exist."
        )
    if _suffix(checkpoint) in weight_files.KERAS_SUFFIXES:
        first = (own,) if own else ()
        return weight_files.read_keras(checkpoint, (*first, *KERAS_APPLICATIONS))
    return _READERS[_suffix(checkpoint)](checkpoint)


def _recognized(
    tensors: key_mapping.Tensors, checkpoint: str
) -> list[key_mapping.Origin]:
    """Returns the origins that have tensors of these names, at least one."""
    origins = [origin for origin in _ORIGINS if origin.recognize_fn(tensors)]
    if not origins:
        raise errors.UserError(
            f"BACKBONE_CHECKPOINT {checkpoint} has tensors of unknown names, such as "
            f"{sorted(tensors)[:4]}. Use ResNets, EfficientNets or MobileNetV3 of "
            "torchvision, timm, Keras, efficientnet_pytorch or "
            "efficientnet_lite_pytorch."
        )
    return origins


def _read_run(checkpoint: str, read_run_fn: ReadRunFn) -> dict[str, np.ndarray]:
    """Returns the tensors of the backbone of a detector, by path below "backbone/"."""
    try:
        tensors = read_run_fn(checkpoint)
    except FileNotFoundError as error:
        raise errors.MissingFileError(
            f"BACKBONE_CHECKPOINT {checkpoint} is no checkpoint of a run; it may also "
            f"be '{IMAGENET}', or a file of {', '.join(sorted(_SUFFIXES))}."
        ) from error
    return {
        name.removeprefix(_ROOT): tensor
        for name, tensor in tensors.items()
        if name.startswith(_ROOT)
    }


def _folded_biases(
    tensors: key_mapping.Tensors, variables: Mapping[str, tf.Variable]
) -> list[str]:
    """Returns the paths of biases that the backbone has no variables for."""
    return [n for n in tensors if n.endswith("/bias") and n not in variables]


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
        if not isinstance(norm, norms.BatchNorm):
            continue
        path = _name(norm.gamma).removesuffix("/gamma")
        conv = _normalized_layer(path)
        variance = np.float64(tensors[f"{path}/moving_variance"])
        ratio = np.sqrt((variance + norm.epsilon) / (variance + epsilon))
        tensors[f"{path}/gamma"] = tensors[f"{path}/gamma"] * ratio
        bias = np.float64(biases.get(f"{conv}/bias", 0.0))
        tensors[f"{path}/moving_mean"] = tensors[f"{path}/moving_mean"] - bias
    return tensors


def _normalized_layer(norm: str) -> str:
    """Returns the path of the convolution before a normalization."""
    block, _, name = norm.rpartition("/")
    is_named = name.startswith("norm_")  # Such as norm_shortcut; not norm1.
    layer = name.removeprefix("norm_") if is_named else name.replace("norm", "conv")
    return f"{block}/{layer}"


def _check_shapes(
    variables: Mapping[str, tf.Variable],
    tensors: key_mapping.Tensors,
    unknown: Sequence[str],
    checkpoint: str,
) -> None:
    """Raises UserError if names or shapes are not those of the backbone."""
    ours, theirs = _shapes(variables), _shapes(tensors)
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
    if names and not unknown and all("shortcut/" in name for name in names):
        hint = (
            f"Include {resnet_weights.TORCH.gin_file}, which sets "
            "ResNet.identity_first_shortcut."
        )
    else:
        hint = _hint(_network(ours), _network(theirs))
    raise errors.UserError(
        f"{len(wrong)} tensors of BACKBONE_CHECKPOINT {checkpoint} differ, first: "
        f"{'; '.join(wrong[:4])}. {hint}"
    )


def _hint(ours: key_mapping.Network | None, theirs: key_mapping.Network | None) -> str:
    """Returns how to make the backbone the network of the weights."""
    if theirs and theirs != ours:
        backbone = ours.text if ours else "an unknown network"
        return f"This is {theirs.text}, the backbone {backbone}: set {theirs.setting}."
    hint = "Use weights of this architecture"
    if ours and ours.width_setting:
        hint += f", or set {ours.width_setting}"
    return f"{hint}."


def matching_origin(
    backbone: tf.Module,
    origins: Sequence[key_mapping.Origin],
    *,
    normalize_fn: layers.NormalizeFn,
    checkpoint: str,
) -> key_mapping.Origin:
    """Returns the first origin whose settings are those of the run.

    Args:
      backbone: The backbone to load into.
      origins: The possible origins.
      normalize_fn: See `load`.
      checkpoint: The weights, for messages.
    Raises:
      UserError: The weights require other settings.
    """
    differences = []
    for origin in origins:
        wrong = _differences(backbone, origin, normalize_fn)
        if not wrong:
            return origin
        differences.append((origin, wrong))
    fewest = min(len(wrong) for _, wrong in differences)
    messages = [
        f"is of {origin.name}, but {'; '.join(wrong)}. {_remedy(origin)}"
        for origin, wrong in differences
        if len(wrong) == fewest
    ]
    raise errors.UserError(
        f"BACKBONE_CHECKPOINT {checkpoint} {' Or it '.join(messages)}"
    )


def _remedy(origin: key_mapping.Origin) -> str:
    """Returns how to make the settings those of an origin."""
    if origin.gin_file:
        return f"Include {origin.gin_file}, which sets all of these."
    bindings = dict(origin.settings) | {
        f"normalize.{name}": tuple(round(value / 255, 7) for value in values)
        for name, values in origin.pixels._asdict().items()
    }
    return f"Set {', '.join(f'{name} = {x}' for name, x in bindings.items())}."


def _differences(
    backbone: tf.Module, origin: key_mapping.Origin, normalize_fn: layers.NormalizeFn
) -> list[str]:
    """Returns the settings of the run that are not those of an origin, in words."""
    wrong = []
    for name, expected in origin.settings.items():
        value = getattr(backbone, name.rpartition(".")[2])
        if value != expected:
            wrong.append(f"{name} is {value}, not {expected}")
    pixels = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    normalized = np.asarray(normalize_fn(pixels), np.float64)
    mean, stddev = map(np.array, origin.pixels)
    expected_pixels = (pixels - mean) / stddev
    # A tenth of a gray level, because gin files contain rounded means.
    if np.any(np.abs(normalized - expected_pixels) * stddev > 0.1):
        wrong.append(
            "`normalize` returns for black and white "
            f"{np.round(normalized, 3).tolist()}, not "
            f"{np.round(expected_pixels, 3).tolist()}"
        )
    return wrong


def _shapes(tensors: Mapping[str, np.ndarray | tf.Variable]) -> key_mapping.Shapes:
    """Returns the shapes of tensors by name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _network(shapes: key_mapping.Shapes) -> key_mapping.Network | None:
    """Returns the network of a family that has variables of these shapes, or None."""
    networks = (family.network(shapes) for family in _FAMILIES)
    return next((network for network in networks if network), None)


def _name(variable: tf.Variable) -> str:
    """Returns the path of a variable below "backbone/"."""
    return replicas.variable_path(variable).removeprefix(_ROOT)
