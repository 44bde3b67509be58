"""Reads the class names of a YOLO data set from its data.yaml or a list."""

from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import data_yaml, files

_REMEDY = (
    "write the names to a text file, one per line in order of number, and pass it with "
    "--classes."
)


def read(path: str) -> list[dict[str, Any]]:
    """Reads class names. Their numbers, which may have gaps, become category ids.

    Args:
      path: The data.yaml, whose `names` are a list or a map, or a text file with one
        name per line.

    Returns:
      COCO's dicts of id and name, sorted by id.

    Raises:
      UserError: There are no names, or their notation is not supported.
    """
    if path.endswith(".data"):
        raise errors.UserError(
            f"{path} lists the files of a darknet data set; pass the file of its line "
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
            raise errors.UserError(f"{path} has no name for class {number}; add it.")
    return [{"id": number, "name": name} for number, name in sorted(names.items())]


def _from_yaml(content: dict[str, Any], path: str) -> dict[int, str]:
    if "names" not in content:
        raise errors.UserError(f"{path} has no `names`; {_REMEDY}")
    listed = content["names"]
    if isinstance(listed, list):
        listed = {str(number): name for number, name in enumerate(listed)}
    if not listed or not isinstance(listed, dict):
        raise errors.UserError(f"{path}: cannot read its `names`; {_REMEDY}")
    names: dict[int, str] = {}
    for key, name in listed.items():
        if not _is_number(key) or int(key) in names or not isinstance(name, str):
            raise errors.UserError(
                f"{path}: cannot read its `names` at {key!r}; {_REMEDY}"
            )
        names[int(key)] = name.strip()
    count = content.get("nc")
    if not isinstance(count, str) or not _is_number(count):
        return names
    # If the numbers have gaps, nc may count the gaps too.
    if int(count) not in (len(names), max(names) + 1):
        raise errors.UserError(
            f"{path} has nc: {count} and {len(names)} names; correct one of them."
        )
    return names


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) < 10
