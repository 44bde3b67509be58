"""Checks a value from a gin file against the type annotation of a parameter."""

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple


class Reference(NamedTuple):
    """`@name` or, if it is called, `@name()`."""

    name: str
    is_called: bool
    target: Callable | None  # None if it is not known


class Range(NamedTuple):
    """Which numbers a setting may be; None passes."""

    words: str  # follows "must be"
    contains: Callable[[float], bool]

    def has(self, value: Any) -> bool:
        """Returns whether a number, or each number of a list, lies in the range."""
        if isinstance(value, tuple | list):
            return all(map(self.has, value))
        return not isinstance(value, int | float) or self.contains(value)


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a text in quotes",
    bool: "True or False",
    type(None): "None",
}


def annotations(target: Callable) -> dict[str, Any]:
    """Returns the annotations of a function's or class's parameters, by name."""
    is_record = hasattr(target, "_fields") or hasattr(target, "__dataclass_fields__")
    is_class = inspect.isclass(target) and not is_record
    return typing.get_type_hints(target.__init__ if is_class else target)


def fits(value: Any, annotation: Any) -> bool:
    """Returns whether a value may be passed where an annotation stands.

    Args:
      value: A literal, a `Reference`, or a container of these.
      annotation: Types, unions, tuples, sequences, mappings and callables are checked;
        any other annotation fits everything.
    """
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (Any, object):
        return True
    if origin is typing.Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, choice) for choice in arguments)
    if isinstance(value, Reference):
        return _reference_fits(value, origin or annotation)
    if annotation in (int, float):
        kinds = (int, float) if annotation is float else int
        is_number = isinstance(value, kinds) and not isinstance(value, bool)
        return is_number and math.isfinite(value)
    if annotation in (str, bool, type(None)):
        return isinstance(value, annotation)
    if origin is tuple and Ellipsis not in arguments:
        return (
            isinstance(value, tuple | list)
            and len(value) == len(arguments)
            and all(map(fits, value, arguments))
        )
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Mapping):
        return isinstance(value, dict)
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Collection):
        return isinstance(value, tuple | list) and all(
            fits(element, arguments[0]) for element in value
        )
    # A literal is neither a function nor an object of a class.
    is_known = inspect.isclass(annotation) or origin is collections.abc.Callable
    return not is_known


def words(annotation: Any) -> str:
    """Returns what an annotation expects, in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in _WORDS:
        return _WORDS[annotation]
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(choice) for choice in arguments)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, arguments))}"
    if origin is tuple and Ellipsis not in arguments:
        return f"({', '.join(words(x) for x in arguments)})"
    if origin is collections.abc.Callable or annotation is Callable:
        return "a function, @name"
    if arguments:
        return f"a list, each element {words(arguments[0])}"
    return f"@{getattr(annotation, '__name__', annotation)}()"


def hint(value: Any, annotation: Any) -> str:
    """Returns how to write a value that does not fit, "" where that is unclear."""
    candidates = []
    if isinstance(value, float) and value.is_integer():
        candidates = [int(value)]
    elif isinstance(value, str) and value in ("None", "True", "False"):
        candidates = [{"None": None, "True": True, "False": False}[value]]
    elif isinstance(value, str):
        candidates = [x for x in (_number(int, value), _number(float, value)) if x]
    elif isinstance(value, Reference):
        candidates = [value._replace(is_called=not value.is_called)]
    elif isinstance(value, tuple | list):
        is_whole = all(isinstance(x, float) and x.is_integer() for x in value)
        candidates = [tuple(map(int, value))] if is_whole else []
    for candidate in candidates:
        if fits(candidate, annotation):
            return f" Write {shown(candidate)}."
    return ""


def shown(value: Any) -> str:
    """Returns a value as gin writes it."""
    if isinstance(value, Reference):
        return f"@{value.name}" + "()" * value.is_called
    return repr(value)


def _reference_fits(reference, kind):
    is_callable = kind is collections.abc.Callable or kind is Callable
    if not reference.is_called:
        return is_callable or not inspect.isclass(kind)
    if kind in _WORDS or is_callable:
        # What a function returns is not known; an object is no literal.
        return not inspect.isclass(reference.target)
    if not inspect.isclass(reference.target) or not inspect.isclass(kind):
        return True
    return issubclass(reference.target, kind)


def _number(kind, text):
    try:
        return kind(text)
    except ValueError:
        return None
