"""Reads Labelme: one JSON file per image, shapes of points in pixels."""

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

# Shapes that enclose an area, besides rectangles and circles.
_ENCLOSING = ("polygon", "oriented_rectangle", "rotation", "mask")
_MIN_POINTS = {"polygon": 3}  # By shape; 2 for others.


def read(
    directory: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a folder of Labelme JSON files.

    The corners of a rectangle may have any order. Polygons, circles and other shapes
    with an area are replaced by the boxes around them. Lines and points are dropped.
    Replaced and dropped shapes are counted.

    Args:
      directory: The folder of JSON files.
      image_folder: The folder of images.
      categories: The classes; None for all that occur in the folder, sorted.

    Raises:
      UserError: The folder contains no JSON file, none can be read, or a class is
        unknown.
      MissingFileError: The folder does not exist.
    """
    return assembly.read_folder(
        directory,
        ".json",
        _parse,
        categories,
        image_folder=image_folder,
        unit="shape",
    )


def _parse(content: bytes, name: str) -> assembly.Content:
    """Returns the annotations of one file."""
    # imageData is a copy of the image; the image is read from its own file.
    entry = documents.parse_json(content, name, without="imageData")
    for key, expected in (("imagePath", str), ("shapes", list)):
        if not isinstance(entry.get(key), expected):
            raise errors.UserError(
                f"{key} is {entry.get(key)!r}; expected {expected.__name__}"
            )
    objects: list[assembly.LabeledBox] = []
    events: list[annotations.ConversionEvent] = []
    for number, shape in enumerate(entry["shapes"], start=1):
        where = f"shape {number}"
        written = shape.get("label") if isinstance(shape, dict) else None
        label = annotation_fields.label(written)
        if not label:
            raise errors.UserError(
                f"{where} has the label {reprlib.repr(written)}; expected text"
            )
        kind = shape.get("shape_type") or "polygon"
        box_xywh = _box(kind, shape.get("points"), where)
        if box_xywh is None or kind != "rectangle":
            event_kind = shapes.NO_BOX if box_xywh is None else shapes.FRAMED
            events.append(
                annotations.ConversionEvent(event_kind, f"{name}, {where}", kind)
            )
        if box_xywh is not None:
            objects.append(assembly.LabeledBox(label, box_xywh, number))
    size = files.image_size(
        entry.get("imageHeight"), entry.get("imageWidth"), "imageHeight"
    )
    file_name = name_matching.plain_path(entry["imagePath"])
    image = assembly.ReadImage(file_name, *size, objects, name)
    return assembly.Content(image, events)


def _box(kind: str, values: Any, where: str) -> shapes.Box | None:
    """Returns the box around a shape; None if it encloses nothing."""
    try:
        points = [(float(x), float(y)) for x, y in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(
            f"{where} has points {reprlib.repr(values)}; expected [[x, y], ...]"
        ) from error
    if kind == "circle" and len(points) == 2:
        (x, y), edge = points
        radius = math.dist((x, y), edge)
        points = [(x - radius, y - radius), (x + radius, y + radius)]
    elif kind == "rectangle":
        if len(points) < 2:
            raise errors.UserError(
                f"{where} is a rectangle of {len(points)} points; expected 2"
            )
    elif kind not in _ENCLOSING or len(points) < _MIN_POINTS.get(kind, 2):
        return None
    return shapes.frame(points)
