"""Parses XML of any origin, and checks the types of fields of XML and JSON."""

import reprlib
import xml.etree.ElementTree
import xml.parsers.expat
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import files

_MAX_DEPTH = 100  # Of elements in elements; annotations have six levels.
_MAX_SHOWN = 100  # Characters of a value that an error shows.
_KINDS = {str: "text", list: "a list", dict: "an object"}


def parse_xml(content: bytes, *, where: str = "") -> xml.etree.ElementTree.Element:
    """Parses an XML file; refuses entities, which a small file can make endless.

    Args:
      content: The file.
      where: What errors begin with.

    Raises:
      UserError: The file is no XML, is cut off, defines entities, or is nested too
        deep.
    """
    builder, depth = xml.etree.ElementTree.TreeBuilder(), 0

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

    def refuse(*_) -> None:
        raise errors.UserError(f"{where}defines entities; remove its <!ENTITY>")

    parser = xml.parsers.expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = start
    parser.EndElementHandler = end
    parser.CharacterDataHandler = builder.data
    parser.EntityDeclHandler = refuse
    try:
        parser.Parse(content.lstrip(), True)  # Blanks before <?xml are an error.
    except errors.UserError:
        raise
    # The latter two: encodings that Python or the parser does not have.
    except (xml.parsers.expat.ExpatError, LookupError, ValueError) as error:
        raise errors.UserError(f"{where}not XML, or cut off: {error}") from error
    return builder.close()


def is_a(value: Any, kind: type, where: str) -> Any:
    """Returns a value of a JSON file.

    Args:
      value: The value.
      kind: str, list or dict.
      where: What it is and where it stands, for errors.

    Raises:
      UserError: The value is of another type.
    """
    if not isinstance(value, kind):
        raise errors.UserError(
            f"{where} is {reprlib.repr(value)[:_MAX_SHOWN]}; expected {_KINDS[kind]}."
        )
    return value


def get(entry: Mapping[str, Any], keys: Sequence[str], kind: type, where: str) -> Any:
    """Returns the value of the first of some keys that an object has.

    Raises:
      UserError: The object has none of the keys, or the value is of another type.
    """
    for key in keys:
        if key in entry:
            return is_a(entry[key], kind, f"{where}: {key}")
    has = ", ".join(list(entry)[:10]) or "nothing"
    raise errors.UserError(f"{where} lacks {' or '.join(keys)}; it has {has}.")


def numbers(entry: Mapping[str, Any], keys: Iterable[str], where: str) -> list[float]:
    """Returns the numbers of some keys of an object or of an element's attributes.

    Raises:
      UserError: A key is missing, or its value is no number.
    """
    keys = tuple(keys)
    absent = [key for key in keys if entry.get(key) is None]
    if absent:
        raise errors.UserError(f"{where} lacks {', '.join(absent)}.")
    return number_list([entry[key] for key in keys], where)


def number_list(values: Any, where: str) -> list[float]:
    """Returns a list of numbers; a text of digits counts as one.

    Raises:
      UserError: It is no list, or an item is no number.
    """
    for value in is_a(values, list, where):
        if isinstance(value, bool):
            raise errors.UserError(f"{where}: expected a number, got {value!r}")
    return files.numbers(values, where)


def label(value: Any, where: str) -> str:
    """Returns the name of a class; "" where there is none. A number becomes text.

    Raises:
      UserError: The value is neither text nor a number.
    """
    name = annotation_fields.label("" if value is None else value)
    return is_a(value, str, f"{where}: class") if name is None else name
