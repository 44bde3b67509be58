"""Computes the boxes around shapes: polygons, ellipses, rotated boxes and masks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from retinanet_tpu import errors

FRAMED = "shapes stored as the boxes around them"
NO_BOX = "shapes that enclose nothing, dropped"

Box = tuple[float, float, float, float]


def frame(points: Iterable[Sequence[float]]) -> Box:
    """Returns left, top, width and height of the box around points.

    Args:
      points: The points (x, y), at least one.

    Returns:
      The box, in the unit of the points. All four numbers are NaN if a coordinate is
      not finite.
    """
    xs, ys = zip(*points, strict=True)
    if not all(map(math.isfinite, (*xs, *ys))):  # min and max skip NaN.
        return math.nan, math.nan, math.nan, math.nan
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def polygon(xs: Sequence[float], ys: Sequence[float], where: str) -> Box:
    """Returns the box around a polygon.

    Args:
      xs: The x coordinates of the corners.
      ys: The y coordinates of the corners.
      where: The file and line or record, for errors.

    Raises:
      UserError: There are fewer than three points, or the numbers of x and y differ.
    """
    if len(xs) != len(ys):
        raise errors.UserError(
            f"{where} has {len(xs)} x and {len(ys)} y; expected as many x as y."
        )
    if len(xs) < 3:
        raise errors.UserError(
            f"{where} is a polygon of {len(xs)} points; expected at least 3."
        )
    return frame(zip(xs, ys, strict=True))


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> Box:
    """Returns the box around an ellipse.

    Args:
      x: The x coordinate of the center.
      y: The y coordinate of the center.
      rx: The radius that is horizontal before the rotation.
      ry: The other radius.
      degrees: The rotation around the center, clockwise on the screen.
    """
    if rx <= 0 or ry <= 0:
        # Later checks report boxes without a positive size.
        return x - rx, y - ry, 2 * rx, 2 * ry
    cos, sin = _direction(degrees)
    half_width = math.hypot(rx * cos, ry * sin)
    half_height = math.hypot(rx * sin, ry * cos)
    return x - half_width, y - half_height, 2 * half_width, 2 * half_height


def rectangle(box_xywh: Box, degrees: float, *, pivot: tuple[float, float]) -> Box:
    """Returns the box around a rotated rectangle.

    Args:
      box_xywh: The rectangle before the rotation.
      degrees: The rotation, clockwise on the screen.
      pivot: The center of the rotation (x, y), in fractions of the rectangle's sides.
    """
    left, top, width, height = box_xywh
    if degrees % 360 == 0 or width <= 0 or height <= 0:
        # Unrotated boxes stay exact. Later checks report boxes of negative size.
        return box_xywh
    cos, sin = _direction(degrees)
    px = pivot[0] * width
    py = pivot[1] * height
    points = [
        (left + px + dx * cos - dy * sin, top + py + dx * sin + dy * cos)
        for dx in (-px, width - px)
        for dy in (-py, height - py)
    ]
    return frame(points)


def segmentation_box(segmentation: Any) -> Box | None:
    """Returns the box around a COCO segmentation.

    Args:
      segmentation: The polygons, as lists of x, y, x, y, ... in px; or a mask, as a
        dict of `size` (height, width) and `counts` (a list or its compressed text).

    Returns:
      The box in px, or None if the segmentation encloses nothing or is invalid.
    """
    try:
        if isinstance(segmentation, dict):
            return _mask_box(segmentation)
        return _polygon_box(segmentation)
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None


def _direction(degrees: float) -> tuple[float, float]:
    """Returns the cosine and sine; NaN for a rotation that is not finite."""
    if not math.isfinite(degrees):
        return math.nan, math.nan
    quarter, rest = divmod(degrees, 90)
    if rest:
        return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((1, 0), (0, 1), (-1, 0), (0, -1))[int(quarter) % 4]  # Exact.


def _polygon_box(polygons: list) -> Box | None:
    if polygons and not isinstance(polygons[0], list):
        polygons = [polygons]
    flat = [float(value) for polygon in polygons for value in polygon]
    if len(flat) < 4 or any(len(p) % 2 for p in polygons):
        return None
    return frame(zip(flat[::2], flat[1::2], strict=True))


def _mask_box(mask: dict[str, Any]) -> Box | None:
    """Returns the box around the ones of a run-length encoded mask.

    The runs go down the columns; the first run counts zeros.
    """
    height, width = map(int, mask["size"])
    counts = mask["counts"]
    if isinstance(counts, str):
        counts = _decompressed(counts)
    columns: list[int] = []
    rows: list[int] = []
    end = 0
    for position, count in enumerate(counts):
        start = end
        end += int(count)
        if int(count) < 0 or end > height * width:
            return None
        if position % 2 and count:
            columns += [start // height, (end - 1) // height]
            is_one_column = columns[-1] == columns[-2]
            rows += [start % height, (end - 1) % height]
            rows += [] if is_one_column else [0, height - 1]
    if not columns:
        return None
    left, top = min(columns), min(rows)
    return left, top, max(columns) + 1 - left, max(rows) + 1 - top


def _decompressed(text: str) -> list[int]:
    """Returns the counts of a mask in pycocotools' compressed text.

    Each character holds 5 bits. From the fourth count on, the text contains the
    difference to the count two positions before. pycocotools' own function is not
    used, because it reads beyond the end of truncated text.
    """
    counts: list[int] = []
    value = 0
    shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"invalid character {character!r} in a mask")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = 0
        shift = 0
    if shift:
        raise ValueError("the mask is truncated")
    return counts
