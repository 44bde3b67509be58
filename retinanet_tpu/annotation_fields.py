"""Reads optional and loosely typed fields of annotations.

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
# A thin diagonal object fills 1/200 of its box. A constant area fills less.
_MIN_FILL = 1e-3
_WHOLE = re.compile(r"-?[0-9]+\.0+")


def is_set(value: Any, where: str) -> bool:
    """Returns a flag, such as COCO's iscrowd. None counts as False.

    Args:
      value: The value in the file: a Boolean, 0 or 1, their text, true or false, yes or
        no, or None.
      where: The location and the name of the flag, for the error.

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
    """Returns an integer from a number or a text, or None for other values."""
    if isinstance(value, str):
        value = value.strip()
        digits = value.removeprefix("-")
        # No id has 100 digits, and int() of a million digits takes minutes.
        is_number = digits.isascii() and digits.isdecimal() and len(digits) < 100
        return int(value) if is_number else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if math.isfinite(value) and value == int(value) else None


def text(value: Any) -> str | None:
    """Returns a name from a text or a number, or None for other values."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    return str(value).strip()


def label(value: Any) -> str | None:
    """Returns the name of a class from a text or a number, or None for a fraction.

    Whole numbers lose their decimals: 1.0 becomes "1". Programs write such decimals for
    tables with empty cells.
    """
    name = text(value)
    if name is not None and _WHOLE.fullmatch(name):
        return name.partition(".")[0]
    return None if isinstance(value, float) else name


def areas(
    annotated: Sequence[Any], sizes: Sequence[tuple[float, float]]
) -> list[float | None]:
    """Returns the area of each object, or None if it does not fit its box.

    An outline fills a part of its box. These areas are constants or in another unit:
    - an area above that of the box, or of 0 or below
    - an area below a thousandth of the box
    - the same area for all boxes of a file, if it is the area of none of them

    Args:
      annotated: The areas of a file, numbers or their text.
      sizes: The width and height of their boxes, px.
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
    box_area = width * height
    # Boxes of programs that count pixels inclusively are smaller by one.
    largest = (width + 1) * (height + 1)
    if number <= 1 < box_area - 1:
        return False  # A placeholder of 0 or 1.
    return number > 0 and _MIN_FILL * box_area <= number <= largest


def _number(value: Any) -> float:
    """Returns a number, or the number in a text, or NaN for other values."""
    try:
        return math.nan if isinstance(value, bool) else float(value)
    except (OverflowError, TypeError, ValueError):
        return math.nan
