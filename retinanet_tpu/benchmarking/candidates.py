"""Finds the formats of an export that are measured, and the checkpoint beside them."""

import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import tensorflow as tf
from pycocotools.coco import COCO

from retinanet_tpu import detector, errors
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.serving import annotated_images, artifacts, formats

_NAMES = {
    "saved_model": "SavedModel",
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "tensorrt": "ONNX for TensorRT",
    "tflite": "TFLite float32",
    "tflite_float16": "TFLite float16",
    "tflite_int8": "TFLite int8",
}
# Names by file, in the order of the table.
_NAMES_BY_FILE = {formats.FORMATS[key].file: name for key, name in _NAMES.items()}
_TENSORRT_FILE = formats.FORMATS["tensorrt"].file
# An export's other files, such as its ONNX file, are not part of its SavedModel.
_SAVED_MODEL_PARTS = ("saved_model.pb", "fingerprint.pb", "variables", "assets")


class Candidate(NamedTuple):
    """A model that is measured.

    Attributes:
      name: The name in the table.
      path: The path of the file, SavedModel or checkpoint.
      num_bytes: Its size on disk; None for a checkpoint, which also contains the state
        of the optimizer.
      is_checkpoint: Whether it is a checkpoint.
      is_runnable: Whether it can run outside TensorRT.
    """

    name: str
    path: str
    num_bytes: int | None = None
    is_checkpoint: bool = False
    is_runnable: bool = True

    @property
    def is_saved_model(self) -> bool:
        """Returns True for a SavedModel."""
        return not self.is_checkpoint and not self.path.endswith(artifacts.EXTENSIONS)

    @property
    def directory(self) -> str:
        """Returns the directory of the export."""
        return self.path if self.is_saved_model else os.path.dirname(self.path)


def find(paths: Sequence[str]) -> list[Candidate]:
    """Returns the formats of exports, each once.

    Args:
      paths: The exports, folders of exports (the newest is used) and files.
    Raises:
      MissingFileError, UserError: A path is no export, see `artifacts.find_all`; or no
        format can run here.
    """
    found = []
    for path in paths:
        normalized = path.rstrip("/") or path
        if not tf.io.gfile.exists(normalized):
            raise errors.MissingFileError(
                f"--model={path} does not exist; give an export, such as "
                "run1/export/latest."
            )
        found += sorted(artifacts.find_all(normalized, label="--model="), key=_order)
    results = [_make(file) for file in dict.fromkeys(found)]
    if not any(candidate.is_runnable for candidate in results):
        raise errors.UserError(
            f"--model={','.join(paths)} has only {_TENSORRT_FILE}, which needs "
            "TensorRT; export another format too."
        )
    if len({candidate.directory for candidate in results}) == 1:
        return results
    return [x._replace(name=f"{x.directory}: {x.name}") for x in results]


def checkpoint(path: str) -> Candidate:
    """Returns a checkpoint, or the newest one of a run.

    Args:
      path: The checkpoint or the directory of the run.
    Raises:
      MissingFileError: There is no complete checkpoint, or config.gin is missing.
    """
    prefix = detector.checkpoint_prefix(path) or checkpoints.latest(path.rstrip("/"))
    if prefix is None or not checkpoints.is_complete(prefix):
        raise errors.MissingFileError(
            f"--checkpoint={path} is no complete checkpoint and no run with one; give "
            "the directory of a run, or a checkpoint such as run1/model.ckpt-400."
        )
    detector.check_has_config(prefix)
    return Candidate("checkpoint", prefix, is_checkpoint=True)


def check_categories(candidates: Iterable[Candidate], truth: COCO | None) -> None:
    """Checks that the classes of all models and annotations are the same.

    Args:
      candidates: The models.
      truth: The annotations; None without them.
    Raises:
      UserError: The categories differ.
    """
    by_directory = {x.directory: x for x in candidates}
    known: list[tuple[str, category_map.Categories]] = []
    for candidate in by_directory.values():
        categories = artifacts.read_categories(candidate.path)
        if truth is not None:
            annotated_images.check_categories(candidate.path, categories, truth)
        if categories is not None:
            known.append((candidate.path, categories))
    for path, categories in known[1:]:
        first_path, first = known[0]
        if _ids_and_names(categories) != _ids_and_names(first):
            raise errors.UserError(
                f"{path} has other categories than {first_path}; compare models of the "
                "same dataset."
            )


def _ids_and_names(categories: category_map.Categories) -> set[tuple[int, str]]:
    return {(entry.id, entry.name) for entry in categories.categories}


def _order(path: str) -> tuple[int, str]:
    names = list(_NAMES_BY_FILE.values())
    name = _name(path)
    return (names.index(name) if name in names else len(names), name)


def _name(path: str) -> str:
    if not path.endswith(artifacts.EXTENSIONS):
        return _NAMES["saved_model"]
    file = os.path.basename(path)
    return _NAMES_BY_FILE.get(file, file)


def _make(path: str) -> Candidate:
    name = _name(path)
    is_runnable = os.path.basename(path) != _TENSORRT_FILE
    if not tf.io.gfile.isdir(path):
        weights = os.path.splitext(path)[0] + ".bin"  # OpenVINO's second file.
        num_bytes = _num_bytes(path) + _num_bytes(weights)
        return Candidate(name, path, num_bytes, is_runnable=is_runnable)
    parts = [os.path.join(path, part) for part in _SAVED_MODEL_PARTS]
    return Candidate(name, path, sum(map(_num_bytes, parts)))


def _num_bytes(path: str) -> int:
    """Returns the size of a file or of all files in a directory; 0 if missing."""
    if tf.io.gfile.isdir(path):
        names = tf.io.gfile.listdir(path)
        return sum(_num_bytes(os.path.join(path, name)) for name in names)
    return int(tf.io.gfile.stat(path).length) if tf.io.gfile.exists(path) else 0
