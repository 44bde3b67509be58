"""Reads Pascal VOC: one XML file per image, boxes in pixels, classes by name."""

import math
import re
import xml.etree.ElementTree
from typing import Any

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import (
    assembly,
    documents,
    files,
    name_matching,
    shapes,
)
from retinanet_tpu.data import annotations

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_ROTATED_BOX = ("cx", "cy", "w", "h", "angle")  # Written by roLabelImg.


def read(
    directory: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a folder of Pascal VOC XML files.

    Coordinates are not changed; `difficult` is ignored. An object without a <bndbox>
    gets the box around its polygon.

    Args:
      directory: The folder of XML files.
      image_folder: The folder of images.
      categories: The classes. None selects all classes that occur, sorted.

    Raises:
      UserError: No XML file can be read, or a class is unknown.
    """
    return assembly.read_folder(
        directory,
        ".xml",
        _parse,
        categories,
        image_folder=image_folder,
        unit="object",
    )


def _parse(content: bytes, name: str) -> assembly.Content:
    root = documents.parse_xml(content)
    objects: list[assembly.LabeledBox] = []
    events: list[annotations.ConversionEvent] = []
    for number, element in enumerate(root.iter("object"), start=1):
        where = f"object {number}"
        label = annotation_fields.label(element.findtext("name"))
        if not label:
            raise errors.UserError(f"{where} has no <name>")
        box_xywh = _box(element, where)
        source = f"{name}, {where}"
        if box_xywh is None:
            event = annotations.ConversionEvent(annotations.NO_BOX, source, label)
            events.append(event)
            continue
        if element.find("bndbox") is None:
            event = annotations.ConversionEvent(assembly.FROM_OUTLINE, source)
            events.append(event)
        objects.append(assembly.LabeledBox(label, box_xywh, number))
    size = files.image_size(
        root.findtext("size/height"), root.findtext("size/width"), "<size>"
    )
    file_name = name_matching.plain_path(root.findtext("filename") or "")
    return assembly.Content(assembly.ReadImage(file_name, *size, objects, name), events)


def _box(element: xml.etree.ElementTree.Element, where: str) -> shapes.Box | None:
    """Returns the box of an object, else the box around its outline, else None."""
    corners = [element.findtext(f"bndbox/{side}") for side in _SIDES]
    if None not in corners:
        return assembly.corners_to_xywh(*files.numbers(corners, where))
    rotated = [element.findtext(f"robndbox/{name}") for name in _ROTATED_BOX]
    if None not in rotated:
        cx, cy, width, height, angle = files.numbers(rotated, where)
        box_xywh = cx - width / 2, cy - height / 2, width, height
        return shapes.rectangle(box_xywh, math.degrees(angle), pivot=(0.5, 0.5))
    outline = element.find("polygon")
    if outline is None:
        outline = element.find("segmentation")
    # <x1> <y1> <x2> ... (Roboflow), or <pt><x> <y></pt> ... (LabelMe).
    points = [] if outline is None else list(outline.iter())
    x_texts, y_texts = (
        [e.text for e in points if re.fullmatch(rf"{axis}\d*", e.tag)] for axis in "xy"
    )
    if len(x_texts) < 2 or len(x_texts) != len(y_texts):
        return None
    xs = files.numbers(x_texts, where)
    ys = files.numbers(y_texts, where)
    return shapes.frame(zip(xs, ys, strict=True))
