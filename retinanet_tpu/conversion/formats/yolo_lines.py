"""Reads lines of YOLO label files: boxes, polygons, or boxes with keypoints.

A line contains a class number and fractions of the image's sides. Four fractions are
the center and size of a box. More fractions are a polygon, or a box and keypoints of
two or three numbers each. Only `kpt_shape` in data.yaml distinguishes the two cases.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import files, shapes

_TOLERANCE = 0.01  # Rounding may move a box over the image's edge by this fraction.
_VISIBILITY = (0.0, 1.0, 2.0)  # not labeled, hidden, visible
# It is unlikely that this many polygons look like keypoints by coincidence.
_MANY_LINES = 8
_FOUR_POINTS = 8  # The length of four points x, y.


class Line(NamedTuple):
    """A line of a label file.

    Attributes:
      label: The class number.
      fractions: The numbers after the class, in fractions of the image's sides.
      number: The line number in the file, from 1.
    """

    label: str
    fractions: tuple[float, ...]
    number: int


def parse(
    content: bytes, name: str, *, keypoints: tuple[int, int] | None
) -> list[Line]:
    """Reads the lines of a label file.

    Args:
      content: The content of the file.
      name: The name of the file, for errors.
      keypoints: The number and dimension of the keypoints, as in `kpt_shape`; (0, 0)
        for polygons, None if unknown.

    Raises:
      UserError: A field is not a number, or a line has an invalid number of fields.
    """
    lines = []
    for number, text in enumerate(files.decode(content, name).splitlines(), start=1):
        if not (fields := text.split()):
            continue
        where = f"line {number}"
        label, *fractions = files.numbers(fields, where)
        count = len(fractions)
        if not label.is_integer() or not (count == 4 or _is_valid(count, keypoints)):
            more = f" and {keypoints} keypoints" if keypoints and keypoints[0] else ""
            if count == 5:
                more += ", without a confidence after them"
            raise errors.UserError(
                f"{where} is {_shortened(text)!r}; expected class cx cy width height"
                f"{more}"
            )
        lines.append(Line(str(int(label)), tuple(fractions), number))
    return lines


def box(line: Line, *, is_polygon: bool) -> shapes.Box:
    """Returns the box of a line.

    Args:
      line: The line.
      is_polygon: True if longer lines are polygons, False if they contain keypoints.

    Returns:
      Left, top, width and height, in fractions of the image's sides.
    """
    fractions = line.fractions
    if is_polygon and len(fractions) > 4:
        return shapes.frame(zip(fractions[::2], fractions[1::2], strict=True))
    cx, cy, width, height = fractions[:4]
    return cx - width / 2, cy - height / 2, width, height


def may_be_keypoints(lines: Sequence[Line], *, has_yaml: bool) -> bool:
    """Returns True if longer lines may be boxes with keypoints, not polygons.

    Args:
      lines: All lines of a data set that are longer than a box.
      has_yaml: True if there is a data.yaml without `kpt_shape`. Lines are then
        polygons, unless the numbers clearly contradict it.
    """
    rows = [line.fractions for line in lines]
    if not rows or not all(_is_inside(row[:4]) for row in rows):
        return False
    if all(_has_visibility(row) for row in rows):
        return True
    counts = {len(row) for row in rows}
    if len(counts) > 1 or not all(_encloses(row) for row in rows):
        return False
    if counts == {_FOUR_POINTS}:
        # Parallelograms are oriented boxes, which are polygons.
        num_oriented = sum(map(_is_parallelogram, rows))
        return not has_yaml and num_oriented <= len(rows) / 2
    return not has_yaml or (len(rows) >= _MANY_LINES and min(counts) > _FOUR_POINTS)


def kpt_shape(value: Any, path: str) -> tuple[int, int] | None:
    """Returns the number and dimension of keypoints in a data.yaml.

    Args:
      value: The value of `kpt_shape`, or None.
      path: The data.yaml, for errors.

    Returns:
      The pair, or None if the value is absent.

    Raises:
      UserError: The value is not a pair of a number and 2 or 3.
    """
    if value in (None, ""):
        return None
    if len(value) == 2:
        number, dimension = (annotation_fields.integer(v) for v in value)
        if (
            number is not None
            and dimension is not None
            and number >= 0
            and (number == 0 or dimension in (2, 3))
        ):
            return number, dimension
    raise errors.UserError(
        f"{path} has kpt_shape {value}; expected [number, 2] or [number, 3]."
    )


def _is_valid(count: int, keypoints: tuple[int, int] | None) -> bool:
    """Returns True if a line with more than a box may contain so many numbers."""
    if keypoints and keypoints[0]:
        return count == 4 + keypoints[0] * keypoints[1]
    is_polygon = count >= 6 and count % 2 == 0
    return is_polygon or (keypoints is None and count >= 7 and (count - 4) % 3 == 0)


def _is_inside(box_cxcywh: Sequence[float]) -> bool:
    cx, cy, width, height = box_cxcywh
    sides = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    inside = all(-_TOLERANCE <= side <= 1 + _TOLERANCE for side in sides)
    return inside and width > 0 and height > 0


def _has_visibility(fractions: Sequence[float]) -> bool:
    """Returns True if every third number after the box is 0, 1 or 2."""
    flags = fractions[6::3]
    return len(fractions) % 3 == 1 and all(flag in _VISIBILITY for flag in flags)


def _encloses(fractions: Sequence[float]) -> bool:
    """Returns True if all points after the box are in it or are 0, 0 (unlabeled)."""
    cx, cy, width, height = fractions[:4]
    points = zip(fractions[4::2], fractions[5::2], strict=False)
    return len(fractions) % 2 == 0 and all(
        (x == y == 0)
        or (
            abs(x - cx) <= width / 2 + _TOLERANCE
            and abs(y - cy) <= height / 2 + _TOLERANCE
        )
        for x, y in points
    )


def _is_parallelogram(fractions: Sequence[float]) -> bool:
    x0, y0, x1, y1, x2, y2, x3, y3 = fractions
    return max(abs(x0 + x2 - x1 - x3), abs(y0 + y2 - y1 - y3)) <= _TOLERANCE


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:60]}…"
