"""The parts that all maps of names share, from tensors of other projects to ours.

Each family of networks has a module with its origins: `resnet_weights`,
`efficientnet_weights`, `mobilenet_v3_weights`.
"""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.model.pretrained import weight_files

Tensors = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
# Returns whether tensors by these names are of an origin.
RecognizeFn = Callable[[Tensors], bool]
# From tensors by a project's names to tensors by our paths, and the unknown names.
RenameFn = Callable[[Tensors], tuple[dict[str, np.ndarray], list[str]]]
# From a project's names to our paths below "backbone/". Unknown names are absent.
PathsFn = Callable[[Sequence[str]], Mapping[str, str]]

TORCHVISION_GIN = "model/pretrained_torchvision.gin"
TENSORFLOW_GIN = "model/pretrained_tensorflow.gin"
INCEPTION_GIN = "model/pretrained_inception.gin"

_TORCH_CONV_LEAVES = {"weight": "kernel", "bias": "bias"}
_TORCH_NORM_LEAVES = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}
_TORCH_COUNTER = re.compile(r".*\.num_batches_tracked$")


class Pixels(NamedTuple):
    """The normalization of pixels in 0..255, RGB.

    Attributes:
      mean_rgb: The mean, which is subtracted.
      stddev_rgb: The standard deviation.
    """

    mean_rgb: tuple[float, float, float]
    stddev_rgb: tuple[float, float, float]


IMAGENET_PIXELS = Pixels(
    (255 * 0.485, 255 * 0.456, 255 * 0.406), (255 * 0.229, 255 * 0.224, 255 * 0.225)
)
INCEPTION_PIXELS = Pixels((127.5,) * 3, (127.5,) * 3)  # From -1 to 1.
UNIT_PIXELS = Pixels((0.0,) * 3, (255.0,) * 3)  # From 0 to 1.


class Origin(NamedTuple):
    """A project with pretrained weights, and the settings that they require.

    Attributes:
      name: The name for messages.
      gin_file: The gin file that sets the settings and the pixels, or "".
      settings: The settings of the backbone, such as {"ResNet.stride_in_1x1": True}.
      pixels: The normalization of pixels.
      epsilon: The epsilon of the project's batch normalizations.
      recognize_fn: Returns whether tensors by their names are those of the project.
        Several origins may have the same names; the run's settings then select one.
      rename_fn: Returns the tensors by our paths.
    """

    name: str
    gin_file: str
    settings: Mapping[str, bool]
    pixels: Pixels
    epsilon: float
    recognize_fn: RecognizeFn
    rename_fn: RenameFn


class Network(NamedTuple):
    """A network that variables belong to.

    Attributes:
      text: The network in words, such as "a ResNet-50".
      setting: The binding that makes it, such as "ResNet.depth = 50".
      width_setting: The setting of its width, such as "ResNet.width", or "".
      keras_application: The same network of Keras, if there is one.
    """

    text: str
    setting: str
    width_setting: str = ""
    keras_application: weight_files.KerasApplication | None = None


def from_torch(
    tensors: Tensors, *, first: str, unused: re.Pattern[str], paths_fn: PathsFn
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns tensors of a PyTorch project by our paths, and the unknown names.

    If the backbone is a part of a larger model ("module.", "backbone.body."), the other
    parts are dropped, and so are counts of batches.

    Args:
      tensors: The tensors by the project's names; kernels [out, in, H, W].
      first: A name that every such network has.
      unused: The beginnings of the names to drop, such as those of a classifier.
      paths_fn: Returns the paths of the other names.
    Returns:
      The tensors by path below "backbone/", with kernels [H, W, in, out], or
      [H, W, C, 1] of depthwise convolutions; and the unknown names.
    """
    prefixes = [name.removesuffix(first) for name in tensors if _ends(name, first)]
    prefix = min(prefixes, key=len, default="")
    names = {
        name.removeprefix(prefix): name
        for name in tensors
        if name.startswith(prefix)
        and not unused.match(name.removeprefix(prefix))
        and not _TORCH_COUNTER.match(name)
    }
    paths = paths_fn(list(names))
    renamed = {
        path: _torch_layout(path, tensors[names[name]]) for name, path in paths.items()
    }
    return renamed, [full for name, full in names.items() if name not in paths]


def from_keras(
    tensors: Tensors, *, unused: re.Pattern[str], paths_fn: PathsFn
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns tensors of a Keras application by our paths, and the unknown names.

    Args:
      tensors: The tensors by Keras's names, see `weight_files.read_keras`.
      unused: The beginnings of the names to drop.
      paths_fn: Returns the paths of the other names.
    """
    names = [name for name in tensors if not unused.match(name)]
    paths = paths_fn(names)
    renamed = {path: tensors[name] for name, path in paths.items()}
    return renamed, [name for name in names if name not in paths]


def has_name(names: Collection[str], suffix: str) -> bool:
    """Returns whether a name is this one, alone or after a prefix and a dot.

    Args:
      names: The names of tensors.
      suffix: The name without a prefix.
    """
    return any(_ends(name, suffix) for name in names)


def torch_path(layer: str, leaf: str) -> str | None:
    """Returns the path of a tensor of PyTorch, or None if there is no such tensor.

    Args:
      layer: Our path of the layer, such as "stem/conv".
      leaf: The last part of PyTorch's name, such as "running_var".
    """
    is_norm = layer.rpartition("/")[2].startswith("norm")
    our_leaf = (_TORCH_NORM_LEAVES if is_norm else _TORCH_CONV_LEAVES).get(leaf)
    return our_leaf and f"{layer}/{our_leaf}"


def _ends(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith(f".{suffix}")


def _torch_layout(path: str, tensor: np.ndarray) -> np.ndarray:
    """Returns a tensor of PyTorch with the axes of TensorFlow."""
    if not path.endswith("/kernel") or tensor.ndim != 4:
        return tensor
    is_depthwise = path.endswith("depthwise/kernel")
    return tensor.transpose((2, 3, 0, 1) if is_depthwise else (2, 3, 1, 0))
