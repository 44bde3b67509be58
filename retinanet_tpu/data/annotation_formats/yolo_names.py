"""The class names of a YOLO data set, from its data.yaml or from a list."""

import json
import re
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.data.annotation_formats import files

_QUOTED = r"""(?P<{}>"(?:[^"\\]|\\.)*"|'(?:[^']|'')*'|{})"""
_START = r"""[^\s\[\]{}&*!|>%@`"'#,:-]"""  # What else may begin a plain word in YAML.
_IN_BLOCK = _QUOTED.format("name", _START + r"(?:(?!\s#|:\s).)*?")
_IN_FLOW = _QUOTED.format("name", _START + r"(?:(?!\s#|:\s)[^,\[\]{}\n])*?")
_KEY = r"""["']?(?P<key>\d+)["']?\s*:\s+"""
_COMMENT = r"\s*(?:\s#.*)?$"
_BLOCK_ITEM = re.compile(rf"\s*(?:-\s+|{_KEY}){_IN_BLOCK}{_COMMENT}")
_FLOW_ITEM = re.compile(rf"\s*(?:{_KEY})?{_IN_FLOW}\s*(?:,|(?=[\]}}]))\s*")
_INSTEAD = (
    "write the names to a text file, one on each line in order of number, and give it "
    "with --classes."
)


def read(path: str) -> list[dict[str, Any]]:
    """Reads class names; their numbers, which may have gaps, become category ids.

    Args:
      path: a .yaml file with `names` as list or map, or a text with a name a line. Of
        YAML only that is understood: the rest would need a library for one key.

    Raises:
      UserError: there are no names, or they are written in another way.
    """
    text = files.read_text(path)
    if path.endswith((".yaml", ".yml")):
        names = _from_yaml(text, path)
    else:
        names = dict(enumerate(line.strip() for line in text.rstrip().splitlines()))
    if not names:
        raise errors.UserError(f"{path} is empty; expected a class name on each line.")
    for number, name in names.items():
        if not name:
            raise errors.UserError(f"{path} has no name for class {number}.")
    return [{"id": number, "name": name} for number, name in sorted(names.items())]


def _from_yaml(text: str, path: str) -> dict[int, str]:
    found = re.search(r"^names[ \t]*:", text, re.MULTILINE)
    if not found:
        raise errors.UserError(f"{path} has no `names`; {_INSTEAD}")
    rest = text[found.end() :].lstrip(" \t")
    items = _flow_items(rest) if rest[:1] in ("[", "{") else _block_items(rest)
    if not items:
        raise errors.UserError(f"{path}: cannot read its `names`; {_INSTEAD}")
    names = {
        position if key is None else int(key): _unquoted(name)
        for position, (key, name) in enumerate(items)
    }
    count = re.search(r"^nc[ \t]*:[ \t]*(\d+)", text, re.MULTILINE)
    if count and int(count[1]) != len(names):
        raise errors.UserError(
            f"{path} says nc: {count[1]} and has {len(names)} names."
        )
    return names


def _flow_items(text: str) -> list[tuple[str | None, str]]:
    """Returns keys and names of a list in brackets; none if not understood."""
    items, position = [], 1
    while found := _FLOW_ITEM.match(text, position):
        items.append((found["key"], found["name"]))
        position = found.end()
    closing = {"[": "]", "{": "}"}[text[0]]
    return items if text[position:].lstrip().startswith(closing) else []


def _block_items(text: str) -> list[tuple[str | None, str]]:
    """Returns keys and names of a list of a line each; none if not understood."""
    first, *lines = text.splitlines() or [""]
    if first and not first.startswith("#"):
        return []
    items = []
    for line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if not line.startswith((" ", "-")):
            break
        found = _BLOCK_ITEM.match(line)
        if not found:
            return []
        items.append((found["key"], found["name"]))
    return items


def _unquoted(name: str) -> str:
    if name.startswith("'"):
        return name[1:-1].replace("''", "'")
    return json.loads(name) if name.startswith('"') else name.strip()
