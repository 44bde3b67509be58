"""Exported models, whatever their format: uint8 images in, Detections out.

  artifact = artifacts.load(artifacts.find("run1/export/latest"))
  found = artifact.detect(images)
  first = artifacts.objects(found, 0, min_score=0.3)

Boxes are in pixels of the images, classes are the data set's ids.
"""

import dataclasses
import os
import re
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.serving import runtimes

_LOADERS = {
    ".onnx": ("ONNX", runtimes.load_onnx),
    ".tflite": ("TFLite", runtimes.load_tflite),
}


@dataclasses.dataclass(frozen=True)
class Artifact:
    """An exported model, loaded.

    Attributes:
      path: where it came from.
      kind: "SavedModel", "ONNX" or "TFLite".
      categories: the data set's classes; None where they did not come with it.
      detect_fn: uint8 [B, H, W, 3] with B > 0 -> Detections, see `detect`.
    """

    path: str
    kind: str
    categories: category_map.Categories | None
    detect_fn: Callable[[np.ndarray], structures.Detections]

    @property
    def names(self) -> dict[int, str]:
        """Returns dataset id -> name, {} where there are no categories."""
        entries = self.categories.categories if self.categories else ()
        return {entry.id: entry.name for entry in entries}

    def detect(self, pictures: np.ndarray) -> structures.Detections:
        """Returns the objects of images of one size.

        Args:
          images: uint8 [B, H, W, 3], RGB; B may be 0.
        Returns:
          Detections of NumPy arrays: boxes in px of the images, ids of the data set.
        Raises:
          UserError: the images are anything else.
        """
        pictures = np.asarray(pictures)
        shape = list(pictures.shape)
        is_rgb = pictures.dtype == np.uint8 and len(shape) == 4 and shape[3] == 3
        if not is_rgb or 0 in shape[1:]:
            raise errors.UserError(
                f"The images are {pictures.dtype} {shape}; give uint8 [B, H, W, 3] "
                "with something to see."
            )
        if not shape[0]:
            return structures.Detections(
                boxes_yxyx=np.zeros([0, 0, 4], np.float32),
                scores=np.zeros([0, 0], np.float32),
                classes=np.zeros([0, 0], np.int32),
                num_detections=np.zeros([0], np.int32),
            )
        return self.detect_fn(pictures)


def objects(
    detections: structures.Detections, row: int, *, min_score: float = 0.0
) -> structures.Detections:
    """Returns the objects of one image of a batch, without padding.

    Args:
      detections: what `Artifact.detect` returned.
      row: which image.
      min_score: what is below it is dropped, and all of NO_CATEGORY.
    Returns:
      Detections without the batch dimension.
    """
    count = int(detections.num_detections[row])
    boxes_yxyx, scores, classes = (values[row][:count] for values in detections[:3])
    kept = (scores >= min_score) & (classes != category_map.NO_CATEGORY)
    return structures.Detections(
        boxes_yxyx[kept], scores[kept], classes[kept], int(kept.sum())
    )


def find(path: str) -> str:
    """Returns the artifact that a path stands for.

    Args:
      path: a .onnx or .tflite file, a SavedModel, an export (its SavedModel, else the
        only file in it), or a folder of exports named by 10 digits (of the newest).
    Raises:
      UserError: there is none, or there are several files to choose from.
    """
    if tf.io.gfile.exists(path) and not tf.io.gfile.isdir(path):
        if path.endswith(tuple(_LOADERS)):
            return path
        raise errors.UserError(
            f"--model={path} is a file, but no .onnx or .tflite; a SavedModel is named "
            "by its directory."
        )
    names = sorted(_names(path), reverse=True)
    versions = [name for name in names if re.fullmatch(r"\d{10}", name)]
    for directory in (path, *(os.path.join(path, version) for version in versions)):
        if tf.saved_model.contains_saved_model(directory):
            return directory
        files = sorted(n for n in _names(directory) if n.endswith(tuple(_LOADERS)))
        if len(files) == 1:
            return os.path.join(directory, files[0])
        if files:
            raise errors.UserError(
                f"--model={path} leaves a choice: {directory} has {', '.join(files)} "
                "and no SavedModel; name a file."
            )
    raise errors.UserError(
        f"--model={path} holds no saved_model.pb, .onnx or .tflite, and no folder "
        f"named by 10 digits that does; found {', '.join(names) or 'nothing'}. Run "
        "`python -m retinanet_tpu.export` or correct the path."
    )


def load(path: str, *, num_threads: int | None = None) -> Artifact:
    """Loads an artifact and makes sure that it can be called.

    Args:
      path: what `find` returned.
      num_threads: of the CPU to use; None leaves it to the runtime. For a SavedModel
        they are TensorFlow's own, of the whole process.
    Raises:
      UserError: the file is damaged, no detector of ours, or for TensorRT; its runtime
        is missing; or TensorFlow already runs with another num_threads.
    """
    kind, load_fn = _LOADERS.get(
        os.path.splitext(path)[1], ("SavedModel", runtimes.load_saved_model)
    )
    detect_fn = load_fn(path, num_threads=num_threads)
    return Artifact(path, kind, _read_categories(path), detect_fn)


def _read_categories(path: str) -> category_map.Categories | None:
    directory = path if tf.io.gfile.isdir(path) else os.path.dirname(path)
    for folder in ("assets.extra", ""):
        file = os.path.join(directory, folder, category_map.FILE_NAME)
        if tf.io.gfile.exists(file):
            return category_map.read(file)
    return None


def _names(directory: str) -> list[str]:
    if not tf.io.gfile.isdir(directory):
        return []
    return [name.rstrip("/") for name in tf.io.gfile.listdir(directory)]
