"""Reads annotations of any format into the one record of all."""

from collections.abc import Sequence

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import (
    assembly,
    coco,
    csv_table,
    files,
    labelme,
    openimages,
    voc,
    yolo,
)

# Formats whose annotations name the classes, and that take an order of them.
_BY_NAME = {"voc": voc.read, "csv": csv_table.read, "labelme": labelme.read}
FORMATS = ("coco", "voc", "yolo", "csv", "labelme", "openimages")
TAKE_NAMES = tuple(_BY_NAME)
TAKE_CLASSES = ("yolo", "openimages")


def read(
    kind: str,
    path: str,
    *,
    pictures: files.Pictures,
    names: Sequence[str] | None = None,
    classes: str | None = None,
) -> annotations.AnnotatedSet:
    """Reads annotations.

    Args:
      kind: One of FORMATS.
      path: The file or folder of annotations.
      pictures: The folder of images.
      names: The classes in order, for TAKE_NAMES; None for all that occur, sorted.
      classes: The file of class names, for TAKE_CLASSES; None to look for YOLO's
        beside the labels.

    Raises:
      UserError: The annotations cannot be read.
      MissingFileError: There is no such file or folder.
    """
    if kind == "coco":
        annotated = coco.read(path, pictures=pictures)
    elif kind == "yolo":
        described = yolo.read_classes(classes or yolo.find_classes(path))
        annotated = yolo.read(path, pictures=pictures, classes=described)
    elif kind == "openimages":
        if classes is None:
            raise errors.UserError(
                "--format=openimages needs --classes=DESCRIPTIONS.csv."
            )
        listed = openimages.read_classes(classes)
        annotated = openimages.read(path, pictures=pictures, classes=listed)
    else:
        categories = None if names is None else assembly.number_classes(names)
        annotated = _BY_NAME[kind](path, pictures=pictures, categories=categories)
    return assembly.without_no_classes(annotated)
