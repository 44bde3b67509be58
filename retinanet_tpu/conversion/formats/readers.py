"""Reads annotations of every format into an `AnnotatedSet`."""

import functools
from collections.abc import Sequence
from typing import Any, Protocol

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


class _ReadByName(Protocol):
    """A function that reads annotations that contain class names."""

    def __call__(
        self,
        path: str,
        /,
        *,
        image_folder: files.ImageFolder,
        categories: list[dict[str, Any]] | None = None,
    ) -> annotations.AnnotatedSet: ...


# Formats whose annotations contain class names; --names sets the order of the classes.
_BY_NAME: dict[str, _ReadByName] = {
    "voc": voc.read,
    "csv": csv_table.read,
    "labelme": labelme.read,
    "via": via.read,
    "createml": createml.read,
    "cvat": cvat.read,
    "labelstudio": label_studio.read,
}
# The formats of --format, and those of them that accept --names, --classes,
# --class_attribute, --image_labels and --drop_other_classes.
FORMATS = ("coco", "yolo", "openimages", *_BY_NAME)
TAKE_NAMES = tuple(_BY_NAME)
TAKE_CLASSES = ("yolo", "openimages")
TAKE_CLASS_ATTRIBUTE = ("via",)
TAKE_IMAGE_LABELS = ("openimages",)
TAKE_DROP_OTHER_CLASSES = ("openimages",)


def read(
    kind: str,
    path: str,
    *,
    image_folder: files.ImageFolder,
    names: Sequence[str] | None = None,
    classes: str | None = None,
    class_attribute: str | None = None,
    image_labels: str | None = None,
    drop_other_classes: bool = False,
) -> annotations.AnnotatedSet:
    """Reads annotations.

    Args:
      kind: The format, one of FORMATS.
      path: The file or folder of annotations.
      image_folder: The folder of images.
      names: The classes in order, for the formats of TAKE_NAMES. None selects the
        classes that the file declares or that occur in it.
      classes: The file of class names, for the formats of TAKE_CLASSES. None searches
        YOLO's file beside the labels.
      class_attribute: The attribute that contains the class, for the formats of
        TAKE_CLASS_ATTRIBUTE. None selects the only attribute.
      image_labels: The file of verified classes of images, for the formats of
        TAKE_IMAGE_LABELS.
      drop_other_classes: Whether to skip boxes of classes that `classes` does not name,
        for the formats of TAKE_DROP_OTHER_CLASSES.

    Raises:
      UserError: The annotations cannot be read.
      MissingFileError: The file or folder does not exist.
    """
    if kind == "coco":
        annotated = coco.read(path, image_folder=image_folder)
    elif kind == "yolo":
        yolo_classes = yolo.read_classes(classes or yolo.find_classes(path))
        annotated = yolo.read(path, image_folder=image_folder, classes=yolo_classes)
    elif kind == "openimages":
        if classes is None:
            raise errors.UserError(
                "--format=openimages requires --classes=DESCRIPTIONS.csv."
            )
        class_list = openimages.read_classes(classes)
        annotated = openimages.read(
            path,
            image_folder=image_folder,
            classes=class_list,
            image_labels=image_labels,
            drop_other_classes=drop_other_classes,
        )
    else:
        categories = None if names is None else assembly.number_classes(names)
        read_fn = _BY_NAME[kind]
        if class_attribute:
            read_fn = functools.partial(via.read, class_attribute=class_attribute)
        annotated = read_fn(path, image_folder=image_folder, categories=categories)
    return assembly.drop_no_classes(annotated)
