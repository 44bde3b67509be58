"""Checks values of gin files against the type annotations of parameters."""

import collections.abc
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

# The functions and classes that gin configures, by name.
Configurables = Mapping[str, Callable[..., Any]]


class Reference(NamedTuple):
    """A reference to a configurable: `@name` or `@name()`.

    Attributes:
      name: The name, with its scope.
      is_called: Whether it has parentheses.
      target: The function or class; None if it is unknown.
    """

    name: str
    is_called: bool
    target: Callable[..., Any] | None


class Range(NamedTuple):
    """The range of a setting that is None or has one or more numbers.

    Attributes:
      words: The range in words, which follow "must be".
      contains: Returns whether a number is in the range.
    """

    words: str
    contains: Callable[[float], bool]

    def has(self, value: Any) -> bool:
        """Returns whether a value is in the range; None is in every range."""
        if isinstance(value, tuple | list | dict):
            values = value.values() if isinstance(value, dict) else value
            return all(map(self.has, values))
        return not isinstance(value, int | float) or self.contains(value)


_WORDS = {
    int: "a whole number",
    float: "a number",
    str: "a string in quotes",
    bool: "True or False",
    type(None): "None",
}


def annotations(target: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's or class's parameters, by name."""
    is_record = hasattr(target, "_fields") or hasattr(target, "__dataclass_fields__")
    is_class = inspect.isclass(target) and not is_record
    return typing.get_type_hints(target.__init__ if is_class else target)


def default_parts(known: Configurables) -> dict[str, str]:
    """Returns the configurables that are defaults of others, by setting.

    The names contain modules, because a user's configurable may have the same name.

    Args:
      known: The functions and classes by name.
    """
    names = {target: f"{target.__module__}.{name}" for name, target in known.items()}
    return {
        f"{names[target]}.{parameter.name}": names[parameter.default]
        for target in known.values()
        for parameter in inspect.signature(target).parameters.values()
        if callable(parameter.default) and parameter.default in names
    }


def fits(value: Any, annotation: Any) -> bool:
    """Returns whether a value has the type of an annotation.

    Args:
      value: A literal, a `Reference`, or a container of these.
      annotation: A type, union, tuple, sequence, mapping or callable; any other
        annotation fits every value.
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
        return isinstance(value, dict) and all(
            all(map(fits, item, arguments)) for item in value.items()
        )
    if inspect.isclass(origin) and issubclass(origin, collections.abc.Collection):
        return isinstance(value, tuple | list) and all(
            fits(element, arguments[0]) for element in value
        )
    # A literal is neither a function nor an object of a class.
    is_known = inspect.isclass(annotation) or origin is collections.abc.Callable
    return not is_known


def words(annotation: Any) -> str:
    """Returns an annotation in words, which follow "must be"."""
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
    if len(arguments) == 2:
        return f"a dictionary {{{': '.join(map(words, arguments))}}}"
    if arguments:
        return f"a list, each element {words(arguments[0])}"
    return f"@{getattr(annotation, '__name__', annotation)}()"


def hint(value: Any, annotation: Any) -> str:
    """Returns how to write a value that does not fit, "" if that is unclear.

    Args:
      value: The value, of another type than the annotation.
      annotation: The annotation of the parameter.
    """
    candidates: list[Any] = []
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
            return f" Write {format_value(candidate)}."
    return ""


def format_value(value: Any) -> str:
    """Returns a value in gin's notation."""
    if isinstance(value, Reference):
        return f"@{value.name}" + "()" * value.is_called
    return repr(value)


def _reference_fits(reference, kind):
    is_callable = kind is collections.abc.Callable or kind is Callable
    if not reference.is_called:
        return is_callable or not inspect.isclass(kind)
    if kind in _WORDS or is_callable:
        # The type of a function's result is unknown. An object is not a literal.
        return not inspect.isclass(reference.target)
    if not inspect.isclass(reference.target) or not inspect.isclass(kind):
        return True
    return issubclass(reference.target, kind)


def _number(kind, text):
    try:
        return kind(text)
    except ValueError:
        return None
