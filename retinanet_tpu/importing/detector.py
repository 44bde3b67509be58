"""A detector of another library, and how its tensors become those of a network."""

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import norms
from retinanet_tpu.model.backbones import resnet

# The number of differences that a message contains.
_NUM_LISTED = 8


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector of another library.

    Attributes:
      source: The name of the library and of the model, for messages.
      gin_file: The run whose network, anchors and pixels are those of the source.
      settings: The settings that the file determines, such as "NUM_CLASSES = 91".
      num_classes: The number of outputs of an anchor, with background.
      tensors: The tensors by the paths of our variables.
      epsilon: The epsilon of the source's batch normalizations.
    """

    source: str
    gin_file: str
    settings: tuple[str, ...]
    num_classes: int
    tensors: Mapping[str, np.ndarray]
    epsilon: float


def assign(network: tf.Module, detector: Detector) -> None:
    """Assigns the tensors of a detector to all variables of a network.

    Args:
      network: The network, made with the detector's gin_file and settings.
      detector: The detector.
    Raises:
      UserError: Names or shapes differ, or a value is not finite.
    """
    variables = {replicas.variable_path(v): v for v in network.variables}
    ours = {path: tuple(variable.shape) for path, variable in variables.items()}
    theirs = {path: tuple(x.shape) for path, x in detector.tensors.items()}
    wrong = [
        f"{path} is {theirs.get(path, 'absent')}, expected {ours.get(path, 'nothing')}"
        for path in sorted(ours.keys() | theirs.keys())
        if ours.get(path) != theirs.get(path)
    ]
    check_nothing_wrong(detector.source, wrong)
    tensors = _fold_epsilon(network, detector)
    wrong = [path for path, x in tensors.items() if not np.isfinite(x).all()]
    check_nothing_wrong(detector.source, [f"{x} is not finite" for x in wrong])
    for path, variable in variables.items():
        variable.assign(np.asarray(tensors[path], np.float32))


def check_nothing_wrong(source: str, wrong: Iterable[str]) -> None:
    """Raises UserError with the differences of a file, unless there are none.

    Args:
      source: The name of the library and of the model.
      wrong: The differences, each with its name.
    """
    wrong = list(wrong)
    if not wrong:
        return
    lines = wrong[:_NUM_LISTED]
    if len(wrong) > len(lines):
        lines.append(f"and {len(wrong) - len(lines)} more")
    raise errors.UserError(
        f"{len(wrong)} tensors of --checkpoint are not those of {source}:\n  "
        + "\n  ".join(lines)
        + "\nUse a file of this model as the library saves it, or set its layers with "
        "--gin_param."
    )


def resnet_settings(paths: Mapping[str, np.ndarray], source: str) -> list[str]:
    """Returns the settings of the ResNet that has these variables.

    Args:
      paths: The tensors by path.
      source: The name of the library and of the model, for messages.
    Raises:
      UserError: No ResNet has these numbers of blocks.
    """
    counts = tuple(
        sum(
            f"backbone/stage{stage}/block{block}/conv1/kernel" in paths
            for block in range(1, len(paths))
        )
        for stage in range(2, 6)
    )
    is_bottleneck = "backbone/stage2/block1/conv3/kernel" in paths
    depths = {kind: depth for depth, kind in resnet.DEPTHS.items()}
    if (counts, is_bottleneck) not in depths:
        block = "bottlenecks" if is_bottleneck else "basic blocks"
        raise errors.UserError(
            f"--checkpoint of {source} has stages of {counts} {block}, which is no "
            f"ResNet of a known depth: {sorted(resnet.DEPTHS)}."
        )
    width = paths["backbone/stem/conv/kernel"].shape[-1]
    depth = depths[counts, is_bottleneck]
    return [f"ResNet.depth = {depth}", f"ResNet.width = {width}"]


def pyramid_settings(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the settings of FPN and heads that have these variables.

    Args:
      tensors: The tensors by path.
    """
    pyramid_channels = tensors["fpn/lateral3/kernel"].shape[-1]
    return [f"FPN.num_channels = {pyramid_channels}", *heads_settings(tensors)]


def heads_settings(tensors: Mapping[str, np.ndarray]) -> list[str]:
    """Returns the settings of the heads that have these variables.

    Args:
      tensors: The tensors by path.
    """
    num_convs = sum(f"heads/class/conv{i}/kernel" in tensors for i in range(1, 100))
    *_, num_channels, _ = tensors["heads/class/logits/kernel"].shape
    return [f"Heads.num_channels = {num_channels}", f"Heads.num_convs = {num_convs}"]


def reorder(
    tensors: Mapping[str, np.ndarray],
    name: str,
    shape: tuple[int, ...],
    order: tuple[int, ...],
    swap: tuple[int, int] | None = None,
) -> dict[str, np.ndarray]:
    """Returns the last convolution of a tower with its output channels reordered.

    Args:
      tensors: The tensors by path.
      name: The path of the convolution.
      shape: The parts of the output channels, such as (scales, ratios, 4).
      order: The indices of the last part that come first, second, ...
      swap: Two parts to exchange, such as scales and ratios. None for no exchange.
    """
    result = {}
    for leaf in ("kernel", "bias"):
        tensor = tensors[f"{name}/{leaf}"]
        parts = tensor.reshape(*tensor.shape[:-1], *shape)[..., list(order)]
        if swap:
            first = tensor.ndim - 1
            parts = parts.swapaxes(first + swap[0], first + swap[1])
        result[f"{name}/{leaf}"] = parts.reshape(tensor.shape)
    return result


def _fold_epsilon(network: tf.Module, detector: Detector) -> dict[str, np.ndarray]:
    """Returns the tensors with the source's epsilon folded into the gammas.

    As gamma / sqrt(variance + epsilon) keeps its value, so does the output.
    """
    tensors = dict(detector.tensors)
    for norm in network.submodules:
        if not isinstance(norm, norms.BatchNorm) or norm.epsilon == detector.epsilon:
            continue
        path = replicas.variable_path(norm.gamma).removesuffix("/gamma")
        variance = np.float64(tensors[f"{path}/moving_variance"])
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = np.sqrt((variance + norm.epsilon) / (variance + detector.epsilon))
        tensors[f"{path}/gamma"] = tensors[f"{path}/gamma"] * ratio
    return tensors
