"""Reads the data.yaml of a YOLO data set."""

from collections.abc import Iterator
from typing import Any

import yaml

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import files

# The 13,204 names of V3Det take 0.3 MB.
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 20  # Levels of nested lists; a data.yaml has two.
# libyaml is ten times as fast, but some builds of PyYAML do not have it. Neither loader
# constructs objects from tags, and numbers, dates and `no` remain texts.
_LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def read(path: str) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping.

    This function uses the events of PyYAML's parser. PyYAML's constructors expand
    aliases and nested lists without a limit, and accept repeated keys.

    Args:
      path: The YAML file.

    Returns:
      The mapping. Every value is a text, a list, or a dict whose keys are texts. A key
      without a value has the value "".

    Raises:
      MissingFileError: The file does not exist.
      UserError: The file is not YAML, is not a mapping, is too large, is nested too
        deeply, repeats a key, or uses aliases or %TAG.
    """
    text = files.read_text(path)
    if len(text) > _MAX_BYTES:
        raise errors.UserError(
            f"{path} has {len(text):,} characters; a data.yaml of at most "
            f"{_MAX_BYTES:,} was expected. Give another file with --classes."
        )
    # libyaml takes quadratic time for %TAG, as it compares each with all others.
    if "\n%TAG" in "\n" + text:
        raise errors.UserError(f"{path} has a line with %TAG; remove it.")
    try:
        document = _document(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise errors.UserError(
            f"{path} is not YAML, line {line}: {error.problem}."
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        raise errors.UserError(f"{path} cannot be read: {error}.") from error
    if not isinstance(document, dict):
        raise errors.UserError(
            f"{path} is not a mapping; expected lines such as `names: [cat, dog]`."
        )
    return document


def _document(events: Iterator[yaml.Event]) -> Any:
    """Returns the first document; None if there is none."""
    for event in events:
        if not isinstance(event, yaml.StreamStartEvent | yaml.DocumentStartEvent):
            value = None
            if not isinstance(event, yaml.StreamEndEvent):
                value = _value(event, events, depth=0)
            # The parser is lazy: it finds errors in the rest only if that is read.
            for rest in events:
                if isinstance(rest, yaml.DocumentStartEvent):
                    raise ValueError("it contains a second document after `---`")
            return value
    return None


def _value(event: yaml.Event, events: Iterator[yaml.Event], *, depth: int) -> Any:
    """Returns the text, list or dict that begins with an event.

    Args:
      event: The first event of the value.
      events: The events after it. Those of the value are consumed.
      depth: The number of lists and mappings around the value.

    Raises:
      ValueError: The value is an alias, is nested too deeply or has invalid keys.
    """
    line = event.start_mark.line + 1 if event.start_mark else 1
    if isinstance(event, yaml.AliasEvent):
        raise ValueError(f"line {line} has an alias (*name); write the value itself")
    if depth > _MAX_DEPTH:
        raise ValueError(f"line {line} is nested more than {_MAX_DEPTH} levels deep")
    if isinstance(event, yaml.ScalarEvent):
        return event.value
    if isinstance(event, yaml.SequenceStartEvent):
        return list(_values(events, depth=depth))
    mapping: dict[str, Any] = {}
    keys_and_values = _values(events, depth=depth)
    for key in keys_and_values:
        value = next(keys_and_values)
        if not isinstance(key, str):
            raise ValueError(f"below line {line} is a key that is not text")
        if key in mapping:
            raise ValueError(f"below line {line} is the key {key!r} twice")
        mapping[key] = value
    return mapping


def _values(events: Iterator[yaml.Event], *, depth: int) -> Iterator[Any]:
    """Yields the items of a list, or the keys and values of a mapping in turn."""
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent | yaml.MappingEndEvent):
            return
        yield _value(event, events, depth=depth + 1)
