"""Reads the data.yaml of a YOLO data set."""

from collections.abc import Iterator
from typing import Any

import yaml

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files

# The 13,204 names of V3Det take 0.3 MB.
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20  # Of lists in lists; such files have two levels.
# libyaml is ten times as fast; a build of PyYAML may lack it. Neither makes objects
# of tags, and numbers, dates and `no` stay texts.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read(path: str) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping.

    The events of PyYAML's parser are used, not its constructors: those follow aliases
    and nested lists without bound, and let the last of two equal keys win.

    Args:
      path: The file.

    Returns:
      The mapping. Every value is a text, a list or a dict with texts as keys; a key
      without a value has "".

    Raises:
      MissingFileError: There is no such file.
      UserError: It is no YAML, no mapping, too large or nested too deep, a key occurs
        twice, or it uses aliases or %TAG.
    """
    text = files.read_text(path)
    if len(text) > _MAX_BYTES:
        raise errors.UserError(
            f"{path} has {len(text):,} characters; a data.yaml of at most "
            f"{_MAX_BYTES:,} was expected. Give another file with --classes."
        )
    if "\n%TAG" in "\n" + text:  # libyaml compares each with all others.
        raise errors.UserError(f"{path} has a line with %TAG; remove it.")
    try:
        found = _document(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1
        raise errors.UserError(
            f"{path} is not YAML, line {line}: {error.problem}."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise errors.UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(found, dict):
        raise errors.UserError(
            f"{path} holds no mapping; expected lines such as `names: [cat, dog]`."
        )
    return found


def _document(events: Iterator[yaml.Event]) -> Any:
    """Returns the first document; None if there is none."""
    for event in events:
        if not isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            found = None
            if not isinstance(event, yaml.StreamEndEvent):
                found = _value(event, events, depth=0)
            for rest in events:  # The parser finds errors only when asked to go on.
                if isinstance(rest, yaml.DocumentStartEvent):
                    raise ValueError("it holds a second document after `---`")
            return found
    return None


def _value(event: yaml.Event, events: Iterator[yaml.Event], *, depth: int) -> Any:
    line = event.start_mark.line + 1
    if isinstance(event, yaml.AliasEvent):
        raise ValueError(f"line {line} has an alias (*name); write the value itself")
    if depth > _MAX_DEPTH:
        raise ValueError(f"line {line} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_values(events, depth=depth))
    found = {}
    for key in (inside := _values(events, depth=depth)):
        value = next(inside)
        if not isinstance(key, str):
            raise ValueError(f"below line {line} is a key that is no text")
        if key in found:
            raise ValueError(f"below line {line} is the key {key!r} twice")
        found[key] = value
    return found


def _values(events: Iterator[yaml.Event], *, depth: int) -> Iterator[Any]:
    """Yields what a list or mapping holds, up to its end."""
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            return
        yield _value(event, events, depth=depth + 1)
