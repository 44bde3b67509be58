"""Reads the class names of a YOLO data set, from its data.yaml or from a list."""

from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import data_yaml, files

_INSTEAD = (
    "write the names to a text file, one on each line in order of number, and give it "
    "with --classes."
)


def read(path: str) -> list[dict[str, Any]]:
    """Reads class names; their numbers, which may have gaps, become category ids.

    Args:
      path: a .yaml file with `names` as list or map, or a text with a name a line.

    Raises:
      UserError: there are no names, or they are written in another way.
    """
    if path.endswith(".data"):
        raise errors.UserError(
            f"{path} names the files of a darknet data set; give the one of its line "
            "`names = ...` with --classes."
        )
    if path.lower().endswith((".yaml", ".yml")):
        names = _from_yaml(data_yaml.read(path), path)
    else:
        text = files.read_text(path).rstrip()
        names = dict(enumerate(line.strip() for line in text.splitlines()))
    if not names:
        raise errors.UserError(f"{path} is empty; expected a class name on each line.")
    for number, name in names.items():
        if not name:
            raise errors.UserError(f"{path} has no name for class {number}.")
    return [{"id": number, "name": name} for number, name in sorted(names.items())]


def _from_yaml(content: dict[str, Any], path: str) -> dict[int, str]:
    if "names" not in content:
        raise errors.UserError(f"{path} has no `names`; {_INSTEAD}")
    listed = content["names"]
    if isinstance(listed, list):
        listed = {str(number): name for number, name in enumerate(listed)}
    if not listed or not isinstance(listed, dict):
        raise errors.UserError(f"{path}: cannot read its `names`; {_INSTEAD}")
    names = {}
    for key, name in listed.items():
        if not _is_number(key) or int(key) in names or not isinstance(name, str):
            raise errors.UserError(
                f"{path}: cannot read its `names` at {key!r}; {_INSTEAD}"
            )
        names[int(key)] = name.strip()
    count = content.get("nc")
    is_number = isinstance(count, str) and _is_number(count)
    # With gaps between the numbers, nc may count the gaps too.
    if is_number and int(count) not in (len(names), max(names) + 1):
        raise errors.UserError(
            f"{path} says nc: {count} and has {len(names)} names; correct one of them."
        )
    return names


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
