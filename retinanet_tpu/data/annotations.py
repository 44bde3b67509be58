"""The records into which all annotation formats are read, and a COCO writer.

Boxes are in the frame of the upright image, after its EXIF rotation: annotation tools
show it that way. The exception are annotations with the size of the image before the
rotation, if that differs. Their boxes are in that frame.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

MISSING_IMAGE = "images missing on disk"
_ROBOFLOW_VERSION = re.compile(
    r"(?P<source>.+?)(_(jpe?g|png|bmp|webp|tiff?|gif|heic|avif))?\.rf\.[\w-]+",
    re.IGNORECASE,
)
UNREADABLE = "annotation files unreadable, their images left out"
UNANNOTATED = "images without annotation, left out"
BACKGROUND = "images without a label file, kept as background"
NO_BOX = "objects without box or outline, dropped"


class AnnotatedObject(NamedTuple):
    """One box of an image, as annotated.

    Attributes:
      annotation_id: The id of the annotation.
      category_id: The dataset id of the category.
      box_xywh: Left, top, width and height: px of the image, or fractions of its sides
        if the image's `is_norm` is set.
      area: The area of the object's outline, or of its box, px^2.
      is_crowd: Whether the box surrounds a group of uncounted objects.
      source_line: The line or the record in the image's `source`.
    """

    annotation_id: int
    category_id: int
    box_xywh: tuple[float, float, float, float]
    area: float
    is_crowd: bool
    source_line: int = 0


class AnnotatedImage(NamedTuple):
    """One image and its annotated objects.

    Attributes:
      image_id: The id of the image.
      file_name: The path of the image file, relative to the folder of the images.
      height: The annotated height, px; 0 if the annotation has none.
      width: The annotated width, px; 0 if the annotation has none.
      objects: The annotated boxes.
      source: The annotation file.
      unit: The unit that `source_line` counts, such as "line" or "object".
      is_norm: Whether boxes are fractions of the image's sides instead of px.
      positive_ids: The dataset ids of categories that were verified to be present.
      negative_ids: The dataset ids of categories that were verified to be absent.
    """

    image_id: int
    file_name: str
    height: int
    width: int
    objects: tuple[AnnotatedObject, ...]
    source: str = ""
    unit: str = ""
    is_norm: bool = False
    positive_ids: tuple[int, ...] = ()
    negative_ids: tuple[int, ...] = ()


class ConversionEvent(NamedTuple):
    """One issue of the data, or one change that the conversion made to it.

    Attributes:
      kind: The kind of the event. Events of one kind are counted together.
      location: The file and the line or record.
      detail: The values that caused the event.
      image: The file name of the image, as in AnnotatedImage, or "".
    """

    kind: str
    location: str
    detail: str = ""
    image: str = ""


class AnnotatedSet(NamedTuple):
    """The content of annotation files.

    Attributes:
      images: The annotated images.
      categories: COCO's category dicts, with id and name.
      events: The issues of the annotation files.
    """

    images: list[AnnotatedImage]
    categories: list[dict[str, Any]]
    events: Sequence[ConversionEvent] = ()


def source_line_of(image: AnnotatedImage, item: AnnotatedObject) -> str:
    """Returns the location of an annotation: file and line, or record."""
    if not image.source:
        return f"{image.file_name}, box {item.annotation_id}"
    return f"{image.source}, {image.unit} {item.source_line}"


def stem(path: str) -> str:
    """Returns a path without its extension; its folders are kept."""
    return os.path.splitext(path)[0]


def source_name(file_name: str) -> str:
    """Returns the name that all augmented versions of an image share.

    Roboflow writes NAME_jpg.rf.HASH.jpg for each version of NAME.jpg, in any folder.
    Other names are returned unchanged.
    """
    version = _ROBOFLOW_VERSION.fullmatch(os.path.basename(stem(file_name)))
    return version["source"] if version else file_name


def sources_of_versions(file_names: Iterable[str]) -> set[str]:
    """Returns the source names of the files that are augmented versions."""
    sources = ((name, source_name(name)) for name in file_names)
    return {source for name, source in sources if source != name}


def images_without_annotation(
    image_names: Iterable[str], annotated: set[str]
) -> list[ConversionEvent]:
    """Returns an event for each image that has no annotation.

    Args:
      image_names: The file names of all images.
      annotated: The names of the annotated images, with or without their extension.
    """
    return [
        ConversionEvent(UNANNOTATED, name, image=name)
        for name in sorted(image_names)
        if name not in annotated and stem(name) not in annotated
    ]


def write_coco(annotated: AnnotatedSet, path: str, *, description: str) -> None:
    """Writes a COCO detection file, the same bytes for the same images.

    Args:
      annotated: The images and categories.
      path: The local or remote file.
      description: The description in the file's `info`.
    """
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(_beginning(description))
        _write_list(file, map(_image_entry, annotated.images))
        file.write(', "annotations": ')
        _write_list(file, _object_entries(annotated.images))
        file.write(f', "categories": {json.dumps(annotated.categories)}}}\n')


def has_description(path: str, description: str) -> bool:
    """Returns whether `write_coco` wrote a file with this description."""
    expected = _beginning(description).encode()
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read(len(expected)) == expected


def _beginning(description: str) -> str:
    # pycocotools >= 2.0.9 rejects a file without `info`.
    return f'{{"info": {json.dumps({"description": description})}, "images": '


def _write_list(file: tf.io.gfile.GFile, entries: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON list entry by entry: its text may exceed the memory."""
    file.write("[")
    for position, entry in enumerate(entries):
        file.write((", " if position else "") + json.dumps(entry))
    file.write("]")


def _image_entry(image: AnnotatedImage) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "id": image.image_id,
        "file_name": image.file_name,
        "height": image.height,
        "width": image.width,
    }
    if image.positive_ids or image.negative_ids:  # LVIS has the second key, too.
        entry["pos_category_ids"] = list(image.positive_ids)
        entry["neg_category_ids"] = list(image.negative_ids)
    return entry


def _object_entries(images: list[AnnotatedImage]) -> Iterator[dict[str, Any]]:
    for image in images:
        for item in image.objects:
            yield {
                "id": item.annotation_id,
                "image_id": image.image_id,
                "category_id": item.category_id,
                "bbox": list(item.box_xywh),
                "area": item.area,
                "iscrowd": int(item.is_crowd),
            }
