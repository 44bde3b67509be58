"""Reads annotations of any format into the one record of all."""

from collections.abc import Sequence

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import (
    assembly,
    coco,
    createml,
    csv_table,
    cvat,
    files,
    label_studio,
    labelme,
    openimages,
    via,
    voc,
    yolo,
)
from retinanet_tpu.data import annotations

# Formats whose annotations name the classes, and that take an order of them.
_BY_NAME = {
    "voc": voc.read,
    "csv": csv_table.read,
    "labelme": labelme.read,
    "via": via.read,
    "createml": createml.read,
    "cvat": cvat.read,
    "labelstudio": label_studio.read,
}
FORMATS = ("coco", "yolo", "openimages", *_BY_NAME)
TAKE_NAMES = tuple(_BY_NAME)
TAKE_CLASSES = ("yolo", "openimages")
TAKE_CLASS_ATTRIBUTE = ("via",)


def read(
    kind: str,
    path: str,
    *,
    pictures: files.ImageFolder,
    names: Sequence[str] | None = None,
    classes: str | None = None,
    class_attribute: str | None = None,
) -> annotations.AnnotatedSet:
    """Reads annotations.

    Args:
      kind: One of FORMATS.
      path: The file or folder of annotations.
      images: The folder of images.
      names: The classes in order, for TAKE_NAMES; None for those that the file
        declares or that occur.
      classes: The file of class names, for TAKE_CLASSES; None to look for YOLO's
        beside the labels.
      class_attribute: The attribute that names the class, for TAKE_CLASS_ATTRIBUTE;
        None if there is one.

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
        options = {"class_attribute": class_attribute} if class_attribute else {}
        annotated = _BY_NAME[kind](
            path, pictures=pictures, categories=categories, **options
        )
    return assembly.without_no_classes(annotated)
