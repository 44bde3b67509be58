"""Reads Labelme: a JSON file for each image, shapes of points in pixels."""

import math
import reprlib
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

# Rectangles need no word: theirs are the corners of the box, in any order.
_ENCLOSING = ("polygon", "oriented_rectangle", "rotation", "mask")
_NUM_NEEDED = {"polygon": 3}


def read(
    directory: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a folder of Labelme JSON files.

    A rectangle's corners may come in any order. Polygons, circles and the like become
    the boxes around them; lines and points are dropped; both are counted.

    Args:
      directory: the JSON files.
      images: the folder of images.
      categories: the classes; None for all that occur in the folder, sorted.

    Raises:
      UserError: no JSON file that can be read, or a class that is not known.
    """
    names = files.list_files(directory, ".json")
    parsed, findings = files.parse_each(directory, names, _parse)
    return assembly.assemble_files(
        parsed,
        categories,
        directory=directory,
        pictures=pictures,
        unit="shape",
        findings=findings,
    )


def _parse(content: bytes, name: str) -> assembly.Content:
    # The image itself may be inside; it is read from its file.
    found = documents.parse_json(content, name, without="imageData")
    for key, kind in (("imagePath", str), ("shapes", list)):
        if not isinstance(found.get(key), kind):
            raise errors.UserError(f"{key} is {found.get(key)!r}, no {kind.__name__}")
    objects, findings = [], []
    for number, shape in enumerate(found["shapes"], start=1):
        where = f"shape {number}"
        written = shape.get("label") if isinstance(shape, dict) else None
        label = annotation_fields.label(written)
        if not label:
            raise errors.UserError(
                f"{where} has the label {reprlib.repr(written)}, no text"
            )
        kind = shape.get("shape_type") or "polygon"
        box_xywh = _box(kind, shape.get("points"), where)
        if box_xywh is None or kind != "rectangle":
            what = shapes.NO_BOX if box_xywh is None else shapes.FRAMED
            findings.append(annotations.ConversionEvent(what, f"{name}, {where}", kind))
        if box_xywh is not None:
            objects.append(assembly.LabeledBox(label, box_xywh, number))
    size = files.sides(found.get("imageHeight"), found.get("imageWidth"), "imageHeight")
    file_name = name_matching.plain_path(found["imagePath"])
    picture = assembly.ReadImage(file_name, *size, objects, name)
    return assembly.Content(picture, findings)


def _box(
    kind: str, points: Any, where: str
) -> tuple[float, float, float, float] | None:
    """Returns the box around a shape; None if it encloses nothing."""
    try:
        points = [(float(x), float(y)) for x, y in points]
    except (TypeError, ValueError) as error:
        raise errors.UserError(
            f"{where} has points {points!r}, not [[x, y], ...]"
        ) from error
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    elif kind == "rectangle":
        if len(points) < 2:
            raise errors.UserError(
                f"{where} is a rectangle of {len(points)} points, not 2"
            )
    elif kind not in _ENCLOSING or len(points) < _NUM_NEEDED.get(kind, 2):
        return None
    return shapes.frame(points)
