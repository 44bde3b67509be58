"""Parses untrusted JSON and XML, and checks the types of their fields."""

import reprlib
import xml.etree.ElementTree
import xml.parsers.expat
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from retinanet_tpu import annotation_fields, errors, json_files
from retinanet_tpu.conversion.formats import files

_MAX_DEPTH = 100  # Levels of nested elements; annotations have six.
_MAX_SHOWN = 100  # Characters of a value that an error shows.
_TYPE_NAMES: dict[type, str] = {str: "text", list: "a list", dict: "an object"}
_Value = TypeVar("_Value")
# Called on an object of a JSON file.
VisitFn = Callable[[dict[str, Any]], None]


def parse_xml(content: bytes, *, where: str = "") -> xml.etree.ElementTree.Element:
    """Parses an XML file without entities.

    Nested entities let a small file expand to any size, so they are an error.

    Args:
      content: The bytes of the file.
      where: The location that error messages begin with, with its colon and space.

    Raises:
      UserError: The file is not XML, is truncated, defines entities, or is nested too
        deeply.
    """
    builder = xml.etree.ElementTree.TreeBuilder()
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _MAX_DEPTH:
            raise errors.UserError(f"{where}nested more than {_MAX_DEPTH} deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    def refuse_entity(*_: Any) -> None:
        raise errors.UserError(f"{where}defines entities; remove its <!ENTITY>")

    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse_entity
    try:
        parser.Parse(content.lstrip(), True)  # Whitespace before <?xml is invalid.
    except errors.UserError:
        raise
    # LookupError, ValueError: an encoding that Python or the parser does not support.
    except (xml.parsers.expat.ExpatError, LookupError, ValueError) as error:
        raise errors.UserError(f"{where}not XML, or cut off: {error}") from error
    return builder.close()


def parse_json(
    content: bytes,
    path: str,
    *,
    without: str,
    visit_fn: VisitFn = lambda entry: None,
) -> dict[str, Any]:
    """Returns the object in a JSON file, {} if the file contains another value.

    Args:
      content: The bytes of the file.
      path: The name of the file, for error messages.
      without: The key to leave out at every level, because it is large and unused.
      visit_fn: The function to call on each object before the key is left out.

    Raises:
      UserError: The file is not JSON, is truncated or is nested too deeply.
    """

    def shorten(entry: dict[str, Any]) -> dict[str, Any]:
        visit_fn(entry)
        entry.pop(without, None)
        return entry

    value = load_json(content, path, object_hook=shorten)
    return value if isinstance(value, dict) else {}


def load_json(
    content: bytes | str,
    path: str,
    *,
    object_hook: Callable[[dict[str, Any]], Any] | None = None,
) -> Any:
    """Returns the value in a JSON file.

    Args:
      content: The bytes of the file, or its text.
      path: The name of the file, for error messages.
      object_hook: The function that replaces each object, as in `json.loads`.

    Raises:
      UserError: The file is not JSON, is truncated or is nested too deeply.
    """
    text = content if isinstance(content, str) else files.decode(content, path)
    return json_files.parse(text, path, object_hook=object_hook)


def expect(value: Any, kind: type[_Value], where: str) -> _Value:
    """Checks the type of a JSON value, and returns the value.

    Args:
      value: The value.
      kind: The expected type: str, list or dict.
      where: The name and location of the value, for error messages.

    Raises:
      UserError: The value has another type.
    """
    if not isinstance(value, kind):
        shown = reprlib.repr(value)[:_MAX_SHOWN]
        raise errors.UserError(f"{where} is {shown}; expected {_TYPE_NAMES[kind]}.")
    return value


def get(
    entry: Mapping[str, Any], keys: Sequence[str], kind: type[_Value], where: str
) -> _Value:
    """Returns the value of the first key that a JSON object contains.

    Args:
      entry: The object.
      keys: The alternative keys, in order of precedence.
      kind: The expected type of the value: str, list or dict.
      where: The location of the object, for error messages.

    Raises:
      UserError: The object contains none of the keys, or the value has another type.
    """
    for key in keys:
        if key in entry:
            return expect(entry[key], kind, f"{where}: {key}")
    has = ", ".join(list(entry)[:10]) or "nothing"
    raise errors.UserError(f"{where} lacks {' or '.join(keys)}; it has {has}.")


def numbers(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> list[float]:
    """Returns the numbers that a JSON object or an XML element's attributes contain.

    Args:
      entry: The object, or the attributes.
      keys: The keys of the numbers. All are required.
      where: The location of the object, for error messages.

    Returns:
      The numbers, in the order of the keys.

    Raises:
      UserError: A key is missing, or its value is not a number.
    """
    keys = tuple(keys)
    absent = [key for key in keys if entry.get(key) is None]
    if absent:
        raise errors.UserError(f"{where} lacks {', '.join(absent)}.")
    return number_list([entry[key] for key in keys], where)


def number_list(values: Any, where: str) -> list[float]:
    """Returns the items of a JSON list as numbers; texts of digits are converted.

    Args:
      values: The list.
      where: The name and location of the list, for error messages.

    Raises:
      UserError: `values` is not a list, or an item is not a number.
    """
    for value in expect(values, list, where):
        if isinstance(value, bool):
            raise errors.UserError(f"{where}: expected a number, got {value!r}")
    return files.numbers(values, where)


def label(value: Any, where: str) -> str:
    """Returns the name of a class, "" if absent. Numbers are converted to text.

    Args:
      value: The name; None if absent.
      where: The location of the name, for error messages.

    Raises:
      UserError: The value is neither text nor a number.
    """
    name = annotation_fields.label("" if value is None else value)
    return expect(value, str, f"{where}: class") if name is None else name
