"""The one record that every format of annotations becomes, and COCO's file of it.

Boxes are in the frame of the image as it is shown, that is after its EXIF rotation:
that is what people draw on. Only where an annotation gives the size of the image as
it is stored, and that differs, its boxes are taken to be in that frame.
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
    """One box of an image, as annotated."""

    annotation_id: int
    category_id: int
    # Left, top, width, height: px of the image, or shares of its sides (is_norm).
    box_xywh: tuple[float, float, float, float]
    area: float  # px^2 of the object's outline, or of its box
    is_crowd: bool
    source_line: int = 0  # which record or line of the image's `source`


class AnnotatedImage(NamedTuple):
    """One image and its objects, in whatever format they were annotated."""

    image_id: int
    file_name: str  # relative to the folder of images
    height: int  # as annotated; 0 where the annotation does not say
    width: int
    objects: tuple[AnnotatedObject, ...]
    source: str = ""  # the annotation file
    unit: str = ""  # what `source_line` counts there: "line", "object"
    is_norm: bool = False  # boxes are shares of the image's sides


class ConversionEvent(NamedTuple):
    """Something in the data that a person should look at."""

    kind: str  # events of a kind are counted together
    location: str  # file and line, or record
    detail: str = ""
    image: str = ""  # file name of the image it is about, as in AnnotatedImage


class AnnotatedSet(NamedTuple):
    """What annotation files say; categories are COCO's dicts of id and name."""

    images: list[AnnotatedImage]
    categories: list[dict[str, Any]]
    events: Sequence[ConversionEvent] = ()


def source_line_of(image: AnnotatedImage, item: AnnotatedObject) -> str:
    """Returns where an object was annotated: file and line, or record."""
    if not image.source:
        return f"{image.file_name}, box {item.annotation_id}"
    return f"{image.source}, {image.unit} {item.source_line}"


def stem(path: str) -> str:
    """Returns a path without its extension, its folders kept."""
    return os.path.splitext(path)[0]


def source_name(file_name: str) -> str:
    """Returns the name that all augmented versions of an image share.

    Roboflow writes NAME_jpg.rf.HASH.jpg for each version of NAME.jpg, in any folder.
    Other names are returned as they are.
    """
    version = _ROBOFLOW_VERSION.fullmatch(os.path.basename(stem(file_name)))
    return version["source"] if version else file_name


def sources_of_versions(file_names: Iterable[str]) -> set[str]:
    """Returns the source names of those files that are versions of an image."""
    sources = ((name, source_name(name)) for name in file_names)
    return {source for name, source in sources if source != name}


def images_without_annotation(
    image_names: Iterable[str], annotated: set[str]
) -> list[ConversionEvent]:
    """Returns a finding for each image that no annotation speaks of.

    Args:
      image_names: the folder's images.
      annotated: names of images that have one, with or without their extension.
    """
    return [
        ConversionEvent(UNANNOTATED, name, image=name)
        for name in sorted(image_names)
        if name not in annotated and stem(name) not in annotated
    ]


def write_coco(annotated: AnnotatedSet, path: str, *, description: str) -> None:
    """Writes a COCO detection file, the same bytes for the same images."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(_beginning(description))
        _write_list(file, map(_image_entry, annotated.images))
        file.write(', "annotations": ')
        _write_list(file, _object_entries(annotated.images))
        file.write(f', "categories": {json.dumps(annotated.categories)}}}\n')


def has_description(path: str, description: str) -> bool:
    """Returns whether a file is one that `write_coco` wrote with a description."""
    expected = _beginning(description).encode()
    with tf.io.gfile.GFile(path, "rb") as file:
        return file.read(len(expected)) == expected


def _beginning(description: str) -> str:
    # pycocotools >= 2.0.9 refuses a file without `info`.
    return f'{{"info": {json.dumps({"description": description})}, "images": '


def _write_list(file: tf.io.gfile.GFile, entries: Iterable[dict[str, Any]]) -> None:
    """Writes a JSON list bit by bit, as the whole text is larger than the records."""
    file.write("[")
    for position, entry in enumerate(entries):
        file.write((", " if position else "") + json.dumps(entry))
    file.write("]")


def _image_entry(image: AnnotatedImage) -> dict[str, Any]:
    return {
        "id": image.image_id,
        "file_name": image.file_name,
        "height": image.height,
        "width": image.width,
    }


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
