"""Computes the boxes around shapes: polygons, ellipses, rotated boxes and masks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from retinanet_tpu import errors

FRAMED = "shapes stored as the boxes around them"
NO_BOX = "shapes that enclose nothing, dropped"

Box = tuple[float, float, float, float]


def frame(points: Iterable[Sequence[float]]) -> Box:
    """Returns left, top, width and height of the box around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    if not all(map(math.isfinite, (*xs, *ys))):  # min and max pass over NaN.
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def polygon(xs: Sequence[float], ys: Sequence[float], where: str) -> Box:
    """Returns the box around a polygon.

    Raises:
      UserError: There are fewer than three points, or an x without a y.
    """
    if len(xs) != len(ys):
        raise errors.UserError(f"{where} has {len(xs)} x and {len(ys)} y.")
    if len(xs) < 3:
        raise errors.UserError(f"{where} is a polygon of {len(xs)} points.")
    return frame(zip(xs, ys, strict=True))


def ellipse(x: float, y: float, rx: float, ry: float, degrees: float = 0) -> Box:
    """Returns the box around an ellipse.

    Args:
      x: The center.
      y: The center.
      rx: Half the axis that is horizontal before the rotation.
      ry: Half the other axis.
      degrees: Rotation around the center, clockwise on the screen.
    """
    if rx <= 0 or ry <= 0:
        return x - rx, y - ry, 2 * rx, 2 * ry  # So that the size shows what is wrong.
    cos, sin = _direction(degrees)
    half_width, half_height = (
        math.hypot(rx * cos, ry * sin),
        math.hypot(rx * sin, ry * cos),
    )
    return x - half_width, y - half_height, 2 * half_width, 2 * half_height


def rectangle(box_xywh: Box, degrees: float, *, pivot: tuple[float, float]) -> Box:
    """Returns the box around a rotated rectangle.

    Args:
      box_xywh: The rectangle before the rotation.
      degrees: Rotation, clockwise on the screen.
      pivot: The point that stays in place, in shares of the rectangle's sides.
    """
    left, top, width, height = box_xywh
    if degrees % 360 == 0 or width <= 0 or height <= 0:
        return box_xywh  # Exact; and a box of negative size must show.
    cos, sin = _direction(degrees)
    px, py = pivot[0] * width, pivot[1] * height
    points = [
        (left + px + dx * cos - dy * sin, top + py + dx * sin + dy * cos)
        for dx in (-px, width - px)
        for dy in (-py, height - py)
    ]
    return frame(points)


def segmentation_box(segmentation: Any) -> Box | None:
    """Returns the box around a COCO segmentation, or None if it encloses nothing.

    Args:
      segmentation: Polygons as lists of x, y, x, y, ... in px, or a mask as a dict of
        `size` (height, width) and `counts`, a list or its compressed text.
    """
    try:
        if isinstance(segmentation, dict):
            return _mask_box(segmentation)
        return _polygon_box(segmentation)
    except (IndexError, KeyError, OverflowError, TypeError, ValueError):
        return None


def _direction(degrees: float) -> tuple[float, float]:
    """Returns cosine and sine; NaN for a rotation that is not finite."""
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
    """Returns the box around the ones; runs go down the columns, zeros first."""
    height, width = map(int, mask["size"])
    counts = mask["counts"]
    if isinstance(counts, str):
        counts = _decompressed(counts)
    columns, rows, end = [], [], 0
    for position, count in enumerate(counts):
        start, end = end, end + int(count)
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
    """Returns the counts in pycocotools' text: 5 bits a character, then differences.

    pycocotools reads beyond the end of a text that is cut off, so its own function is
    no choice for files of other people.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(f"{character!r} in a mask")
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("a mask that is cut off")
    return counts
