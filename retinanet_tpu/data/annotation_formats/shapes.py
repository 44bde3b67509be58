"""Computes the boxes around the shapes that annotation tools draw."""

import math
from collections.abc import Sequence

from retinanet_tpu import errors
from retinanet_tpu.data.annotation_formats import outlines

FRAMED = "shapes stored as the boxes around them"
NO_BOX = "shapes that enclose nothing, dropped"

Box = outlines.Box


def polygon(xs: Sequence[float], ys: Sequence[float], where: str) -> Box:
    """Returns the box around a polygon.

    Raises:
      UserError: There are fewer than three points, or an x without a y.
    """
    if len(xs) != len(ys):
        raise errors.UserError(f"{where} has {len(xs)} x and {len(ys)} y.")
    if len(xs) < 3:
        raise errors.UserError(f"{where} is a polygon of {len(xs)} points.")
    return outlines.frame(zip(xs, ys, strict=True))


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
    return outlines.frame(points)


def _direction(degrees: float) -> tuple[float, float]:
    """Returns cosine and sine; NaN for a rotation that is not finite."""
    if not math.isfinite(degrees):
        return math.nan, math.nan
    quarter, rest = divmod(degrees, 90)
    if rest:
        return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return ((1, 0), (0, 1), (-1, 0), (0, -1))[int(quarter) % 4]  # Exact.
