"""Detects objects with a trained model in a program of your own.

  import retinanet_tpu
  model = retinanet_tpu.load("run1/export/latest")
  detections = model(["a.jpg", "b.jpg"])

The functions print and log nothing about images, and write no files.
"""

import os
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias, TypeGuard, overload

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import image_files
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.evaluation import visualize
from retinanet_tpu.serving import artifacts, batching, multi_view

# uint8 [H, W, 3], RGB, or the path of an image file.
Image: TypeAlias = np.ndarray | str | os.PathLike[str]

_IMAGE = "a NumPy array uint8 [H, W, 3], RGB, or the path of a file"
_EXPECTED = (
    "an export, a .onnx, .tflite or .xml file, the directory of a run, or a checkpoint "
    "such as run1/model.ckpt-400"
)
_CHECKPOINT = re.compile(r"(model\.ckpt-[0-9]+)(\.index|\.data-[0-9]{5}-of-[0-9]{5})?")


class ImageDetections(NamedTuple):
    """The objects detected in one image, in falling order of their scores.

    Attributes:
      boxes_yxyx: float32 [D, 4], (ymin, xmin, ymax, xmax) in pixels of the image.
      scores: float32 [D] in [0, 1].
      class_ids: int32 [D], the ids of the dataset.
      names: The D names of the classes; the id as text if the model has no name for it.
    """

    boxes_yxyx: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    names: list[str]


class Detector:
    """A trained model; call it with images. `load` makes it."""

    def __init__(self, artifact: artifacts.Artifact):
        """Initializes the detector.

        Args:
          artifact: The loaded model.
        """
        self._artifact = artifact

    @property
    def names(self) -> dict[int, str]:
        """The names of the classes by id; {} if the export has no categories.json."""
        return self._artifact.names

    @property
    def kind(self) -> str:
        """The kind: "SavedModel", "ONNX", "TFLite" or "checkpoint"."""
        return self._artifact.kind

    @property
    def path(self) -> str:
        """The path of the SavedModel, file or checkpoint that was loaded."""
        return self._artifact.path

    def __repr__(self) -> str:
        """Returns the kind, the path and the number of classes."""
        return f"<Detector: {self.kind} {self.path}, {len(self.names)} classes>"

    @overload
    def __call__(  # type: ignore[overload-overlap]  # A str is an Iterable[str].
        self, images: Image, *, min_score: float = ..., batch_size: int = ...
    ) -> ImageDetections: ...

    @overload
    def __call__(
        self, images: Iterable[Image], *, min_score: float = ..., batch_size: int = ...
    ) -> list[ImageDetections]: ...

    def __call__(
        self,
        images: Image | Iterable[Image],
        *,
        min_score: float = 0.0,
        batch_size: int = 8,
    ) -> ImageDetections | list[ImageDetections]:
        """Returns the detections in one image or in several.

        Args:
          images: One image, or a list or another iterable of images. An image is an
            array uint8 [H, W, 3], RGB, of any size, or the path of a file. Files are
            rotated by their EXIF orientation.
          min_score: The lowest score that is returned. 0 returns all detections of the
            model, of which most are weak; 0.3 is a usual value for drawings.
          batch_size: The most images of one size that are processed together.
        Returns:
          The detections of the image; for an iterable, a list in the order of the
          images.
        Raises:
          UserError: An array has another type or shape, a file cannot be read, or the
            export rejects an image. Contains the position of the image.
        """
        if batch_size < 1:
            raise errors.UserError(f"batch_size is {batch_size}; it must be >= 1.")
        if _is_image(images):
            array = _read_image(images, "The image")
            return self._detect(array[None], min_score)[0]
        if not isinstance(images, Iterable):
            raise errors.UserError(
                f"images is a {type(images).__name__}; give {_IMAGE}, or a list."
            )
        arrays = enumerate(batching.map_in_threads(_read_item, enumerate(images)))
        results: dict[int, ImageDetections] = {}
        for batch in batching.batch_by_size(arrays, batch_size):
            try:
                detected = self._detect(batch.images, min_score)
            except errors.UserError as error:
                positions = ", ".join(map(str, batch.ids))
                raise errors.UserError(f"Images at {positions}: {error}") from error
            results.update(zip(batch.ids, detected, strict=True))
        return [results[position] for position in range(len(results))]

    def with_views(
        self,
        *,
        flip: bool = False,
        scales: Sequence[float] | None = None,
        tile_size: int | None = None,
        tile_overlap: float = 0.2,
        merge: str = "fusion",
        iou_threshold: float = 0.55,
        max_detections: int | None = None,
    ) -> "Detector":
        """Returns a detector that merges the detections in several views of an image.

        Args:
          flip: Whether each view is also mirrored left to right.
          scales: The sizes of the image relative to the model's input, such as
            (0.8, 1, 1.25). None is 1, the whole image, without tiles and no scale with
            tiles.
          tile_size: The side of square tiles, px of the image; None for no tiles.
          tile_overlap: The part of a tile that at least overlaps the next, in [0, 1).
          merge: "fusion" averages boxes and scores, "nms" keeps the best box.
          iou_threshold: The IoU above which boxes of two views are of one object.
          max_detections: The most detections of an image; None for the model's number.
        Raises:
          UserError: A value is out of range, or there is no view.
        """
        settings = multi_view.Views(
            flip=flip,
            scales=None if scales is None else tuple(scales),
            tile_size=tile_size,
            tile_overlap=tile_overlap,
            merge=merge,
            iou_threshold=iou_threshold,
            max_detections=max_detections,
        )
        return Detector(multi_view.wrap(self._artifact, settings))

    def draw(
        self, image: Image, detections: ImageDetections, *, min_score: float = 0.3
    ) -> np.ndarray:
        """Draws a box with name and score for each detection.

        Args:
          image: The image, as in a call; not changed.
          detections: Its detections.
          min_score: The lowest score that is drawn.
        Returns:
          uint8 [H, W, 3], RGB.
        Raises:
          UserError: The array has another type or shape, or the file cannot be read.
        """
        return visualize.draw_detections(
            _read_image(image, "The image"),
            detections.boxes_yxyx,
            detections.scores,
            detections.class_ids,
            names=self.names,
            min_score=min_score,
        )

    def _detect(self, images: np.ndarray, min_score: float) -> list[ImageDetections]:
        """Returns the detections in images of one size."""
        detections = self._artifact.detect(images)
        names = self.names
        results = []
        for row in range(len(images)):
            boxes_yxyx, scores, class_ids, _ = artifacts.select_image(
                detections, row, min_score=min_score
            )
            class_names = [names.get(int(i), str(i)) for i in class_ids]
            results.append(ImageDetections(boxes_yxyx, scores, class_ids, class_names))
        return results


def load(path: str | os.PathLike[str]) -> Detector:
    """Loads an export of any format, or a checkpoint.

    The newest export or checkpoint of a directory is loaded. A checkpoint computes in
    float32 and detects the same as its exports.

    Args:
      path: A SavedModel, a .onnx, .tflite or .xml file, an export or a folder of
        exports such as run1/export/latest; or the directory of a run, or a checkpoint
        of it such as run1/model.ckpt-400.
    Raises:
      MissingFileError: The path or a file of the run does not exist, or a folder has
        neither export nor run.
      MissingPackageError: The runtime of the format is not installed.
      UserError: A file is corrupt or no detector of this package, or an export has
        several files and no SavedModel.
    """
    return Detector(load_artifact(os.fspath(path)))


def load_artifact(path: str, *, label: str = "") -> artifacts.Artifact:
    """Loads an export of any format, or a checkpoint, for a command.

    Args:
      path: The path, see `load`.
      label: The text before the path in messages, such as "--model=".
    Raises:
      MissingFileError, MissingPackageError, UserError: See `load`.
    """
    directory = path.rstrip("/") or path
    if checkpoint := checkpoint_prefix(path):
        return _load_checkpoint(os.path.dirname(checkpoint) or ".", checkpoint)
    if not tf.io.gfile.exists(directory):
        raise errors.MissingFileError(
            f"{label}{path} does not exist; give {_EXPECTED}."
        )
    if tf.io.gfile.exists(os.path.join(directory, gin_files.CONFIG_FILE)):
        return _load_checkpoint(directory, None)
    try:
        file = artifacts.find(directory, label=label)
    except errors.MissingFileError as error:
        raise errors.MissingFileError(
            f"{error} It is no run either, because it has no {gin_files.CONFIG_FILE}."
        ) from error
    return artifacts.load(file)


def checkpoint_prefix(path: str) -> str | None:
    """Returns the path prefix of a checkpoint; None if the path names none.

    Args:
      path: The prefix, such as run1/model.ckpt-400, or one of the checkpoint's files.
    """
    folder, name = os.path.split(path.rstrip("/"))
    match = _CHECKPOINT.fullmatch(name)
    return os.path.join(folder, match[1]) if match else None


def check_has_config(checkpoint: str) -> None:
    """Checks that the settings of a checkpoint are beside it.

    Args:
      checkpoint: The path prefix of the checkpoint.
    Raises:
      MissingFileError: There is no config.gin.
    """
    model_dir = os.path.dirname(checkpoint) or "."
    if not tf.io.gfile.exists(os.path.join(model_dir, gin_files.CONFIG_FILE)):
        raise errors.MissingFileError(
            f"{model_dir} has no {gin_files.CONFIG_FILE}, which contains the settings "
            f"of {checkpoint}; copy it from the directory of the run."
        )


def _load_checkpoint(model_dir: str, checkpoint: str | None) -> artifacts.Artifact:
    if checkpoint is not None:
        check_has_config(checkpoint)
    # Deferred, because the import registers the names of this package with gin.
    from retinanet_tpu.task import checkpoint_artifact

    return checkpoint_artifact.load(model_dir, checkpoint)


def _is_image(images: object) -> TypeGuard[Image]:
    # A NumPy array is one image; its wrong shapes are rejected with it.
    return isinstance(images, np.ndarray | str | os.PathLike)


def _read_item(item: tuple[int, Image]) -> np.ndarray:
    position, image = item
    return _read_image(image, f"The image at position {position}")


def _read_image(image: object, name: str) -> np.ndarray:
    """Returns uint8 [H, W, 3] of an array or a file.

    Raises:
      UserError: It is neither, or the file cannot be read.
    """
    if isinstance(image, str | os.PathLike):
        return image_files.load(os.fspath(image))
    if not isinstance(image, np.ndarray):
        raise errors.UserError(f"{name} is a {type(image).__name__}; give {_IMAGE}.")
    advice = _advice(image)
    if advice is None:
        return image
    raise errors.UserError(
        f"{name} is {image.dtype} {list(image.shape)}; expected uint8 [H, W, 3], RGB "
        f"in 0..255: {advice}."
    )


def _advice(image: np.ndarray) -> str | None:
    """Returns how to convert an array to an image; None if it is one."""
    if image.ndim == 4:
        return "for several images of one size, give list(images)"
    if image.ndim == 2:
        return "repeat its only channel, np.stack([image] * 3, axis=-1)"
    if image.ndim != 3:
        return "give height, width and channels"
    if not image.size:
        return "give an image that is not empty"
    if image.shape[2] == 1:
        return "repeat its only channel, np.repeat(image, 3, axis=2)"
    if image.shape[2] == 4:
        return "leave out its transparency, image[..., :3]"
    if image.shape[2] != 3:
        return "the last axis must be the channels"
    if np.issubdtype(image.dtype, np.floating) and np.nanmax(image) <= 1:
        return "scale it from 0..1, (image * 255).round().astype(np.uint8)"
    if image.dtype != np.uint8:
        return "if its values are in 0..255, image.astype(np.uint8)"
    return None
