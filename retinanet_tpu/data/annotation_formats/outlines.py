"""Computes boxes around outlines: polygons and COCO's run-length encoded masks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

Box = tuple[float, float, float, float]


def frame(points: Iterable[Sequence[float]]) -> Box:
    """Returns left, top, width and height of the box around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    if not all(map(math.isfinite, (*xs, *ys))):  # min and max pass over NaN.
        return (math.nan,) * 4
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


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


def turned_box(cx: float, cy: float, width: float, height: float, angle: float) -> Box:
    """Returns the upright box around a turned one; the angle is in radians."""
    cos, sin = abs(math.cos(angle)), abs(math.sin(angle))
    outer = width * cos + height * sin, width * sin + height * cos
    return cx - outer[0] / 2, cy - outer[1] / 2, *outer
