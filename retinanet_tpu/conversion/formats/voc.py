"""Reads Pascal VOC: an XML file for each image, boxes in pixels, classes by name."""

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
_TURNED = ("cx", "cy", "w", "h", "angle")  # roLabelImg


def read(
    directory: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a folder of Pascal VOC XML files.

    Coordinates are taken as they stand; `difficult` is ignored. An object without a
    <bndbox> gets the box around its polygon.

    Args:
      directory: the XML files.
      images: the folder of images.
      categories: the classes; None for all that occur in the folder, sorted.

    Raises:
      UserError: no XML file that can be read, or a class that is not known.
    """
    names = files.list_files(directory, ".xml")
    parsed, findings = files.parse_each(directory, names, _parse)
    return assembly.assemble_files(
        parsed,
        categories,
        directory=directory,
        pictures=pictures,
        unit="object",
        findings=findings,
    )


def _parse(content: bytes, name: str) -> assembly.Content:
    root = documents.parse_xml(content)
    objects, findings = [], []
    for number, element in enumerate(root.iter("object"), start=1):
        where = f"object {number}"
        label = annotation_fields.label(element.findtext("name"))
        if not label:
            raise errors.UserError(f"{where} has no <name>")
        box_xywh = _box(element, where)
        if box_xywh is None:
            finding = annotations.ConversionEvent(
                annotations.NO_BOX, f"{name}, {where}", label
            )
            findings.append(finding)
            continue
        if element.find("bndbox") is None:
            what = assembly.FROM_OUTLINE
            findings.append(annotations.ConversionEvent(what, f"{name}, {where}"))
        objects.append(assembly.LabeledBox(label, box_xywh, number))
    size = files.sides(
        root.findtext("size/height"), root.findtext("size/width"), "<size>"
    )
    file_name = name_matching.plain_path(root.findtext("filename") or "")
    return assembly.Content(
        assembly.ReadImage(file_name, *size, objects, name), findings
    )


def _box(element: xml.etree.ElementTree.Element, where: str) -> shapes.Box | None:
    """Returns the box of an object, that around its outline, or None."""
    corners = [element.findtext(f"bndbox/{side}") for side in _SIDES]
    if None not in corners:
        return assembly.corners_to_xywh(*files.numbers(corners, where))
    turned = [element.findtext(f"robndbox/{side}") for side in _TURNED]
    if None not in turned:
        cx, cy, width, height, angle = files.numbers(turned, where)
        box_xywh = cx - width / 2, cy - height / 2, width, height
        return shapes.rectangle(box_xywh, math.degrees(angle), pivot=(0.5, 0.5))
    outline = element.find("polygon")
    if outline is None:
        outline = element.find("segmentation")
    # <x1> <y1> <x2> ... (Roboflow), or <pt><x> <y></pt> ... (LabelMe).
    points = [] if outline is None else list(outline.iter())
    xs, ys = (
        [e.text for e in points if re.fullmatch(rf"{axis}\d*", e.tag)] for axis in "xy"
    )
    if len(xs) < 2 or len(xs) != len(ys):
        return None
    xs, ys = files.numbers(xs, where), files.numbers(ys, where)
    return shapes.frame(zip(xs, ys, strict=True))
