"""Checks optional and loosely typed fields of annotations.

Annotation files are written by many programs: numbers appear as text, flags as words,
and areas as constants.
"""

import math
import re
import reprlib
from collections.abc import Sequence
from typing import Any

from retinanet_tpu import errors

_TRUE = {"1", "true", "yes", "y", "t"}
_FALSE = {"", "0", "false", "no", "n", "f", "none", "null"}
# A thin diagonal object fills 1/200 of its box; a constant in place of an area less.
_MIN_FILL = 1e-3
_WHOLE = re.compile(r"-?[0-9]+\.0+")


def is_set(value: Any, where: str) -> bool:
    """Returns a flag, such as COCO's iscrowd; absent values count as False.

    Args:
      value: A Boolean, 0 or 1, their text, true or false, yes or no, or None.
      where: The place and the name of the flag, for the error.

    Raises:
      UserError: The value is none of these.
    """
    if value is None or isinstance(value, bool):
        return bool(value)
    text = str(value).strip().lower()
    if isinstance(value, int | float | str):
        text = text.removesuffix(".0")
        if text in _TRUE | _FALSE:
            return text in _TRUE
    raise errors.UserError(
        f"{where} {reprlib.repr(value)}; expected 0 or 1, true or false."
    )


def integer(value: Any) -> int | None:
    """Returns an integer that is written as number or as text; None for others."""
    if isinstance(value, str):
        value = value.strip()
        digits = value.removeprefix("-")
        # More digits than any id has; int() of a million digits takes minutes.
        is_number = digits.isascii() and digits.isdecimal() and len(digits) < 100
        return int(value) if is_number else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def text(value: Any) -> str | None:
    """Returns a name that is written as text or as number; None for others."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()


def label(value: Any) -> str | None:
    """Returns the name of a class as `text` does; None for a fraction.

    Whole numbers lose their decimals, which tables with gaps write: 1.0 becomes "1".
    """
    name = text(value)
    if name is not None and _WHOLE.fullmatch(name):
        return name.partition(".")[0]
    return None if isinstance(value, float) else name


def areas(
    annotated: Sequence[Any], sizes: Sequence[tuple[float, float]]
) -> list[float | None]:
    """Returns the area of each object; None where it cannot be that of its box.

    An outline fills a part of its box. An area beyond the box, of 0 or below, or of a
    thousandth of the box is a constant or in another unit. So is one number for all
    boxes of a file that is the area of none. Programs that count pixels inclusively
    have boxes smaller by one.

    Args:
      annotated: The areas of a file, numbers or their text.
      sizes: Width and height of their boxes, px.
    """
    numbers = [_number(value) for value in annotated]
    is_constant = (
        len(numbers) > 2
        and len(set(numbers)) == 1
        and len({*sizes}) > 1
        and not any(math.isclose(numbers[0], w * h, rel_tol=0.01) for w, h in sizes)
    )
    return [
        number if _is_area(number, *size) and not is_constant else None
        for number, size in zip(numbers, sizes, strict=True)
    ]


def _is_area(number: float, width: float, height: float) -> bool:
    box_area, largest = width * height, (width + 1) * (height + 1)
    if number <= 1 < box_area - 1:
        return False  # 0 or 1 in place of an area.
    return number > 0 and _MIN_FILL * box_area <= number <= largest


def _number(value: Any) -> float:
    """Returns a number or the number in a text, NaN for anything else."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        return math.nan
