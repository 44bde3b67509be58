"""Exported models of any format: uint8 images in, Detections out.

  artifact = artifacts.load(artifacts.find("run1/export/latest"))
  detections = artifact.detect(images)
  first = artifacts.select_image(detections, 0, min_score=0.3)

Boxes are in pixels of the images, classes are the dataset's ids.
"""

import dataclasses
import os
import re

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.serving import runtimes, thresholds

_LOADERS = {
    ".onnx": ("ONNX", runtimes.load_onnx),
    ".tflite": ("TFLite", runtimes.load_tflite),
    ".xml": ("OpenVINO", runtimes.load_openvino),
}
EXTENSIONS = tuple(_LOADERS)
_EXTENSIONS_TEXT = f"{', '.join(EXTENSIONS[:-1])} or {EXTENSIONS[-1]}"
# The lowest score that is displayed, for a model without Artifact.threshold.
DEFAULT_THRESHOLD = 0.3


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A loaded exported model, or the model of a checkpoint.

    Attributes:
      path: The path of the file, SavedModel or checkpoint.
      kind: "SavedModel", "ONNX", "TFLite", "OpenVINO" or "checkpoint".
      categories: The dataset's classes; None if the export has no categories.json, and
        an ONNX or OpenVINO file none in its metadata.
      detect_fn: The function that `detect` calls; it requires B > 0.
      threshold: The score of the highest F1 in the checkpoint's evaluation; None if it
        was not evaluated.
    """

    path: str
    kind: str
    categories: category_map.Categories | None
    detect_fn: runtimes.DetectFn
    threshold: float | None = None

    @property
    def names(self) -> dict[int, str]:
        """Returns dataset id -> name, {} without categories."""
        entries = self.categories.categories if self.categories else ()
        return {entry.id: entry.name for entry in entries}

    def detect(self, images: np.ndarray) -> structures.Detections:
        """Returns the detections in images of one size.

        Args:
          images: uint8 [B, H, W, 3], RGB; B may be 0.
        Returns:
          Detections of NumPy arrays: boxes in px of the images, the dataset's ids.
        Raises:
          UserError: The images have another type or shape, or the export rejects them.
        """
        images = np.asarray(images)
        shape = list(images.shape)
        is_rgb = images.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3
        if not is_rgb or 0 in shape[1:]:
            raise errors.UserError(
                f"The images are {images.dtype} {shape}; give non-empty uint8 "
                "[B, H, W, 3]."
            )
        if not shape[0]:
            return structures.Detections(
                boxes_yxyx=np.zeros([0, 0, 4], np.float32),
                scores=np.zeros([0, 0], np.float32),
                classes=np.zeros([0, 0], np.int32),
                num_detections=np.zeros([0], np.int32),
            )
        return self.detect_fn(images)


def select_image(
    detections: structures.Detections, row: int, *, min_score: float = 0.0
) -> structures.Detections:
    """Returns the detections of one image of a batch, without padding.

    Args:
      detections: The result of `Artifact.detect`.
      row: The index of the image in the batch.
      min_score: The lowest score that is kept. Detections of NO_CATEGORY are dropped.
    Returns:
      Detections without the batch dimension.
    """
    count = int(detections.num_detections[row])
    boxes_yxyx = detections.boxes_yxyx[row][:count]
    scores = detections.scores[row][:count]
    classes = detections.classes[row][:count]
    is_kept = (scores >= min_score) & (classes != category_map.NO_CATEGORY)
    return structures.Detections(
        boxes_yxyx[is_kept], scores[is_kept], classes[is_kept], int(is_kept.sum())
    )


def find(path: str, *, label: str = "--model=") -> str:
    """Returns the path of the artifact that a path refers to.

    Args:
      path: A .onnx, .tflite or .xml file, a SavedModel, an export (its SavedModel, or
        its only file), or a folder of exports named by 10 digits (the newest is used).
      label: The text before the path in messages.
    Raises:
      MissingFileError: There is no artifact.
      UserError: The file is no artifact, or there are several and no SavedModel.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        if path.endswith(EXTENSIONS):
            return path
        raise errors.UserError(
            f"{label}{path} is a file, but no {_EXTENSIONS_TEXT}; for a SavedModel "
            "give its directory."
        )
    directory = find_export(path, label=label)
    if tf.saved_model.contains_saved_model(directory):
        return directory
    files = _list_files(directory)
    if len(files) == 1:
        return os.path.join(directory, files[0])
    raise errors.UserError(
        f"{label}{path} is ambiguous: {directory} has {', '.join(files)} "
        "and no SavedModel; give one of the files."
    )


def find_export(path: str, *, label: str = "--model=") -> str:
    """Returns the directory of the export that a directory refers to.

    Args:
      path: An export, or a folder of exports named by 10 digits (the newest is used).
      label: The text before the path in messages.
    Raises:
      MissingFileError: There is no export.
    """
    for directory in list_exports(path):
        if tf.saved_model.contains_saved_model(directory) or _list_files(directory):
            return directory
    names = sorted(_list_directory(path), reverse=True)
    raise errors.MissingFileError(
        f"{label}{path} contains no saved_model.pb, {_EXTENSIONS_TEXT}, and no "
        "folder named by 10 digits that does; it contains "
        f"{', '.join(names) or 'nothing'}. Run `python -m retinanet_tpu.export` or "
        "correct the path."
    )


def list_exports(path: str) -> list[str]:
    """Returns the directories that may be the export that a directory refers to.

    Args:
      path: An export, or a folder of exports named by 10 digits.
    Returns:
      The directory, then the folders of 10 digits in it, the newest first.
    """
    names = sorted(_list_directory(path), reverse=True)
    versions = [name for name in names if re.fullmatch(r"\d{10}", name)]
    return [path, *(os.path.join(path, version) for version in versions)]


def find_all(path: str, *, label: str = "--model=") -> list[str]:
    """Returns the paths of all artifacts of an export, the SavedModel first.

    Args:
      path: See `find`. A file is the only artifact of its export.
      label: The text before the path in messages.
    Raises:
      MissingFileError, UserError: See `find`.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        return [find(path, label=label)]
    directory = find_export(path, label=label)
    saved_models = [directory] if tf.saved_model.contains_saved_model(directory) else []
    files = [os.path.join(directory, name) for name in _list_files(directory)]
    return saved_models + files


def load(path: str, *, num_threads: int | None = None) -> Artifact:
    """Loads an artifact and checks its inputs and outputs.

    Args:
      path: The path that `find` returned.
      num_threads: The number of CPU threads; None leaves it to the runtime. For a
        SavedModel they are TensorFlow's own, for the whole process.
    Raises:
      UserError: A file is corrupt, not a detector of this package, or for TensorRT;
        its runtime is missing; or TensorFlow already runs with other threads.
    """
    kind, load_fn = _LOADERS.get(
        os.path.splitext(path)[1], ("SavedModel", runtimes.load_saved_model)
    )
    detect_fn, metadata = load_fn(path, num_threads=num_threads)
    categories = read_categories(path)
    if categories is None and category_map.FILE_NAME in metadata:
        source = f"{category_map.FILE_NAME} in the metadata of {path}"
        categories = category_map.from_json(metadata[category_map.FILE_NAME], source)
    return Artifact(path, kind, categories, detect_fn, thresholds.read(path))


def read_categories(path: str) -> category_map.Categories | None:
    """Returns the categories beside an artifact or checkpoint; None without them.

    Args:
      path: The path of the SavedModel, file, checkpoint or directory.
    """
    directory = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    for folder in ("assets.extra", ""):
        file = os.path.join(directory, folder, category_map.FILE_NAME)
        if tf.io.gfile.exists(file):
            return category_map.read(file)
    return None


def _list_files(directory: str) -> list[str]:
    """Returns the sorted names of the files in a directory that `load` accepts."""
    names = sorted(_list_directory(directory))
    return [name for name in names if name.endswith(EXTENSIONS)]


def _list_directory(path: str) -> list[str]:
    if not tf.io.gfile.isdir(path):
        return []
    return [name.rstrip("/") for name in tf.io.gfile.listdir(path)]
