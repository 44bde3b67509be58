"""Runs models on the images of a COCO annotation file.

files = annotated_images.find(truth, "coco/val2017")
for detections, image_ids in annotated_images.detect(
    artifact, files, batch_size=8, meter=meter
):
    ...
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools.coco import COCO

from retinanet_tpu import annotation_fields, errors, structures
from retinanet_tpu.data import category_map, image_decoding
from retinanet_tpu.serving import artifacts, batching


class ImageFile(NamedTuple):
    """The file of an image.

    Attributes:
      image_id: The id of the image.
      path: The path of the file.
      size: The annotated height and width, px; None without them.
    """

    image_id: int
    path: str
    size: tuple[int, int] | None = None


def check_categories(
    path: str, categories: category_map.Categories | None, truth: COCO
) -> None:
    """Checks, before a long evaluation, that detections can be compared.

    Args:
      path: The path of the model, for messages.
      categories: The categories of the model; None if it has no categories.json.
      truth: The annotations.
    Raises:
      UserError: The annotations have other categories than the model.
    """
    if categories is None:
        logging.warning(
            "%s has no categories.json beside it; its category ids may not be those of "
            "the annotations.",
            path,
        )
        return
    names = {entry.id: entry.name for entry in categories.categories}
    annotated_names = {i: category["name"] for i, category in truth.cats.items()}
    differing = sorted({i for i, _ in names.items() ^ annotated_names.items()})
    if differing:
        first = differing[0]
        raise errors.UserError(
            f"Model and annotations differ in {len(differing)} categories, such as id "
            f"{first}: {names.get(first)} in {path}, "
            f"{annotated_names.get(first)} in the annotations. Use a model and "
            "annotations of the same dataset."
        )


def find(truth: COCO, images_dir: str) -> list[ImageFile]:
    """Returns the file of each annotated image.

    Args:
      truth: The annotations.
      images_dir: The folder that the file names of the annotations are relative to.
    Raises:
      UserError: An image has no file name, or files are missing.
    """
    names = {image_id: _file_name(image) for image_id, image in truth.imgs.items()}
    # Listing a remote folder is one request; checking each image takes thousands.
    folders = {os.path.dirname(name) for name in names.values()}
    existing = {
        os.path.join(folder, name)
        for folder in folders
        if tf.io.gfile.isdir(os.path.join(images_dir, folder))
        for name in tf.io.gfile.listdir(os.path.join(images_dir, folder))
    }
    missing = [name for name in names.values() if name not in existing]
    if missing:
        raise errors.UserError(
            f"--images={images_dir} lacks {len(missing)} of {len(names)} annotated "
            f"images, such as {missing[0]}."
        )
    return [
        ImageFile(image_id, os.path.join(images_dir, name), _size(truth.imgs[image_id]))
        for image_id, name in names.items()
    ]


def load(file: ImageFile) -> np.ndarray:
    """Reads an image with the decoder of the input pipeline.

    Args:
      file: The file.
    Returns:
      uint8 [H, W, 3], RGB, with the pixels that evaluation reads from a record.
    Raises:
      UserError: The image cannot be read, or has another size than annotated.
    """
    path, size = file.path, file.size
    try:
        with tf.io.gfile.GFile(path, "rb") as content:
            stored = image_decoding.prepare(content.read())
    except image_decoding.UnusableError as error:
        raise errors.UserError(
            f"{path} cannot be read: {error}; repair the file."
        ) from error
    if size and (stored.height, stored.width) != size:
        raise errors.UserError(
            f"{path} is {stored.height} px high and {stored.width} wide"
            f"{', rotated upright,' if stored.has_swapped_sides else ''} but annotated "
            "as "
            f"{size[0]} and {size[1]}; evaluate on the images that were annotated."
        )
    pixels = tf.io.decode_image(stored.encoded, channels=3, expand_animations=False)
    return pixels.numpy()


def detect(
    artifact: artifacts.Artifact,
    files: Sequence[ImageFile],
    *,
    batch_size: int,
    meter: batching.Meter,
) -> Iterator[tuple[structures.Detections, np.ndarray]]:
    """Yields the detections in all images, with the image ids.

    Args:
      artifact: The model.
      files: The files of the images.
      batch_size: The most images of one size that are processed together.
      meter: The meter that counts the images.
    Raises:
      UserError: An image is corrupt or of another size than annotated.
    """
    images = batching.map_in_threads(_load_with_id, files)
    for batch, detections in batching.detect_batches(
        artifact, images, batch_size=batch_size, meter=meter
    ):
        yield detections, np.array(batch.ids)


def _load_with_id(file: ImageFile) -> tuple[int, np.ndarray]:
    return file.image_id, load(file)


def _file_name(image: dict[str, Any]) -> str:
    name = image.get("file_name")
    if not isinstance(name, str) or not name:
        raise errors.UserError(
            f"--annotations: image {image['id']} has the file_name {name!r}; expected "
            "the path of its file below --images."
        )
    return name


def _size(image: dict[str, Any]) -> tuple[int, int] | None:
    height = annotation_fields.integer(image.get("height"))
    width = annotation_fields.integer(image.get("width"))
    return (height, width) if height and width else None
