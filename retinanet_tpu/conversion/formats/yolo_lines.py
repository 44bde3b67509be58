"""Reads lines of YOLO label files: boxes, polygons, or boxes with keypoints.

A line is a class number and shares of the image's sides. Four shares are a box by its
center. More are a polygon, or a box and keypoints of two or three numbers; only
`kpt_shape` in data.yaml distinguishes the two.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import files, shapes

_TOLERANCE = 0.01  # Shares are rounded; a box may reach over the edge by that.
_VISIBILITY = (0.0, 1.0, 2.0)  # not labeled, hidden, visible
# So many lines that all fit keypoints are no coincidence of polygons.
_MANY = 8
_FOUR_POINTS = 8


class Line(NamedTuple):
    """A line of a label file."""

    label: str  # the class number
    shares: tuple[float, ...]
    number: int  # of the line in its file


def parse(
    content: bytes, name: str, *, keypoints: tuple[int, int] | None
) -> list[Line]:
    """Reads the lines of a label file.

    Args:
      content: The file.
      name: Its name, for errors.
      keypoints: Number and dimension of the keypoints, as in `kpt_shape`; (0, 0) for
        polygons, None where it is not known.

    Raises:
      UserError: A line holds no numbers, or not as many as it may.
    """
    lines = []
    for number, text in enumerate(files.decode(content, name).splitlines(), start=1):
        if not (fields := text.split()):
            continue
        where = f"line {number}"
        label, *shares = files.numbers(fields, where)
        count = len(shares)
        if not label.is_integer() or not (count == 4 or _is_known(count, keypoints)):
            more = f" and {keypoints} keypoints" if keypoints and keypoints[0] else ""
            if count == 5:
                more += ", without a confidence behind them"
            raise errors.UserError(
                f"{where} is {_shortened(text)!r}; expected class cx cy width height"
                f"{more}"
            )
        lines.append(Line(str(int(label)), tuple(shares), number))
    return lines


def box(line: Line, *, is_polygon: bool) -> shapes.Box:
    """Returns left, top, width and height of a line, in shares."""
    if is_polygon and len(line.shares) > 4:
        return shapes.frame(zip(line.shares[::2], line.shares[1::2], strict=True))
    cx, cy, width, height = line.shares[:4]
    return cx - width / 2, cy - height / 2, width, height


def may_be_keypoints(lines: Sequence[Line], *, has_yaml: bool) -> bool:
    """Returns whether longer lines may be boxes with keypoints instead of polygons.

    Args:
      lines: Those of a data set that have more than a box.
      has_yaml: There is a data.yaml, which for keypoints should have had `kpt_shape`:
        polygons are assumed unless the numbers speak clearly against it.
    """
    shares = [line.shares for line in lines]
    if not shares or not all(_is_inside(s[:4]) for s in shares):
        return False
    if all(_has_visibility(s) for s in shares):
        return True
    counts = {len(s) for s in shares}
    if len(counts) > 1 or not all(_encloses(s) for s in shares):
        return False
    if counts == {_FOUR_POINTS}:
        num_turned = sum(map(_is_parallelogram, shares))
        return not has_yaml and num_turned <= len(shares) / 2  # Else oriented boxes.
    return not has_yaml or (len(shares) >= _MANY and min(counts) > _FOUR_POINTS)


def kpt_shape(value: Any, path: str) -> tuple[int, int] | None:
    """Returns number and dimension of keypoints from a data.yaml; None if not given.

    Raises:
      UserError: The value is no pair of a number and 2 or 3.
    """
    if value in (None, ""):
        return None
    pair = [annotation_fields.integer(v) for v in value] if len(value) == 2 else []
    if not pair or None in pair or pair[0] < 0 or (pair[0] and pair[1] not in (2, 3)):
        raise errors.UserError(
            f"{path} has kpt_shape {value}; expected [number, 2] or [number, 3]."
        )
    return pair[0], pair[1]


def _is_known(count: int, keypoints: tuple[int, int] | None) -> bool:
    """Returns whether a line of more than a box may have so many shares."""
    if keypoints and keypoints[0]:
        return count == 4 + keypoints[0] * keypoints[1]
    is_polygon = count >= 6 and count % 2 == 0
    return is_polygon or (keypoints is None and count >= 7 and (count - 4) % 3 == 0)


def _is_inside(box_cxcywh: Sequence[float]) -> bool:
    cx, cy, width, height = box_cxcywh
    sides = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    inside = all(-_TOLERANCE <= side <= 1 + _TOLERANCE for side in sides)
    return inside and width > 0 and height > 0


def _has_visibility(shares: Sequence[float]) -> bool:
    """Returns whether every third number after the box is 0, 1 or 2."""
    flags = shares[6::3]
    return len(shares) % 3 == 1 and all(flag in _VISIBILITY for flag in flags)


def _encloses(shares: Sequence[float]) -> bool:
    """Returns whether all points after the box lie in it or are 0, 0: not labeled."""
    cx, cy, width, height = shares[:4]
    points = zip(shares[4::2], shares[5::2], strict=False)
    return len(shares) % 2 == 0 and all(
        (x == y == 0)
        or (
            abs(x - cx) <= width / 2 + _TOLERANCE
            and abs(y - cy) <= height / 2 + _TOLERANCE
        )
        for x, y in points
    )


def _is_parallelogram(shares: Sequence[float]) -> bool:
    x0, y0, x1, y1, x2, y2, x3, y3 = shares
    return max(abs(x0 + x2 - x1 - x3), abs(y0 + y2 - y1 - y3)) <= _TOLERANCE


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= 60 else f"{text[:60]}…"
