"""The libraries whose detectors can be imported, and how a file is recognized."""

from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.importing import (
    coco,
    detector,
    keras_names,
    model_garden,
    model_garden_spinenet,
    torchvision,
)
from retinanet_tpu.model.pretrained import weight_files

_NUM_NAMES = 4  # The number of names that a message contains.


class _Source(NamedTuple):
    """A library.

    Attributes:
      is_source: Returns whether tensors of these names are of the library.
      convert: Returns the detector of a file's tensors, and of the names of Keras's
        variables by the names of the tensors.
    """

    is_source: Callable[[Collection[str]], bool]
    convert: Callable[[Mapping[str, np.ndarray], Mapping[str, str]], detector.Detector]


_SOURCES = (
    _Source(torchvision.is_source, lambda x, _: torchvision.convert(x)),
    _Source(model_garden_spinenet.is_source, model_garden_spinenet.convert),
    _Source(model_garden.is_source, lambda x, _: model_garden.convert(x)),
)


def read(path: str) -> detector.Detector:
    """Returns the detector of a file, recognized from the names of its tensors.

    Args:
      path: A .pth, .pt, .bin or .safetensors file; or the prefix or the .index file of
        a TensorFlow checkpoint, or a directory with one.
    Raises:
      MissingFileError: There is no such file.
      UserError: The file is of no known detector.
    """
    tensors, variable_names = _read_tensors(path)
    for source in _SOURCES:
        if source.is_source(tensors):
            return source.convert(tensors, variable_names)
    names = ", ".join(sorted(tensors)[:_NUM_NAMES])
    raise errors.UserError(
        f"--checkpoint {path} is no detector of torchvision (retinanet_resnet50_fpn, "
        "retinanet_resnet50_fpn_v2) or of TensorFlow Model Garden (RetinaNet with "
        f"ResNet and FPN, or with SpineNet). It has {len(tensors)} tensors, such as "
        f"{names}. Weights of a backbone are set with BACKBONE_CHECKPOINT."
    )


def categories(num_classes: int, path: str | None) -> category_map.Categories:
    """Returns the categories of a detector.

    Args:
      num_classes: The number of outputs of an anchor. Output 0 is the background.
      path: A categories.json. None means COCO's categories if there are 91 outputs,
        else names such as "class 1".
    Raises:
      MissingFileError: There is no such file.
      UserError: The file has another number of classes.
    """
    if path is not None:
        result = category_map.read(path)
        result.check_num_classes(num_classes)
        return result
    result = coco.categories()
    if num_classes == result.num_classes:
        return result
    return category_map.from_coco(
        [{"id": i, "name": f"class {i}"} for i in range(1, num_classes)],
        index_by_id=True,
    )


def _read_tensors(path: str) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Returns the tensors of a file by name, and the names of Keras's variables."""
    if path.endswith((weight_files.SAFETENSORS_SUFFIX, *weight_files.TORCH_SUFFIXES)):
        if not tf.io.gfile.exists(path):
            raise errors.MissingFileError(f"--checkpoint {path} does not exist.")
        is_torch = path.endswith(tuple(weight_files.TORCH_SUFFIXES))
        read_fn = weight_files.read_torch if is_torch else weight_files.read_safetensors
        return read_fn(path), {}
    prefix = path.removesuffix(".index").rstrip("/")
    if tf.io.gfile.isdir(prefix):
        prefix = _only_checkpoint(prefix)
    tensors = checkpoints.read(prefix)
    graph: object = tensors.get(keras_names.OBJECT_GRAPH)
    names: dict[str, str] = {}
    if isinstance(graph, bytes):
        names = keras_names.read(graph)
    arrays = {name: x for name, x in tensors.items() if isinstance(x, np.ndarray)}
    return arrays, names


def _only_checkpoint(directory: str) -> str:
    """Returns the prefix of the newest checkpoint of a directory."""
    latest = tf.train.latest_checkpoint(directory)
    names = [n for n in tf.io.gfile.listdir(directory) if n.endswith(".index")]
    if latest is None and len(names) == 1:
        latest = f"{directory}/{names[0].removesuffix('.index')}"
    if latest is None:
        raise errors.MissingFileError(
            f"--checkpoint {directory} has {len(names)} checkpoints, expected one or a "
            "file `checkpoint` that names the newest; set the prefix of one."
        )
    return latest
