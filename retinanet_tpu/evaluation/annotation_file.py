"""Reads and checks COCO annotation files."""

import collections
import json
from collections.abc import Iterable
from typing import Any

from retinanet_tpu import annotation_fields, errors, json_files

_LISTS = ("images", "annotations", "categories")
_BOX = "[x, y, width, height] in pixels"
_NUM_LISTED = 10  # Values that an error message lists on one line.
_MAX_TEXT = 60  # Characters of one value in an error message.
_MAX_ID = 2**63 - 1  # Ids are int64 in records and detections.
_MAX_PX = 1e9  # Beyond any image; products of two stay finite.


def read(path: str) -> dict[str, Any]:
    """Reads an annotation file.

    Ids that are decimal digits in quotes become integers. Category names that are
    numbers become strings.

    Args:
      path: The path of a JSON file with `images`, `annotations` and `categories`, local
        or remote.
    Returns:
      The content. Every annotation has an image and a category that the file lists, and
      a box of four finite numbers.
    Raises:
      UserError: The file is not such a file; contains the path and the entry.
    """
    dataset = json_files.read(path)
    _check_lists(dataset, path)
    for key, name in (("images", "image"), ("categories", "category")):
        _set_ids(dataset[key], key, "id", path)
        _check_unique(f"{name} id", (entry["id"] for entry in dataset[key]), path)
    _set_names(dataset["categories"], path)
    names = (category["name"] for category in dataset["categories"])
    _check_unique("category name", names, path)
    _check_annotations(dataset, path)
    return dataset


def few(values: Iterable[Any]) -> str:
    """Returns the first values as one line, with the number of further ones.

    Args:
      values: The values.
    """
    values = list(values)
    rest = len(values) - _NUM_LISTED
    listed = ", ".join(map(str, values[:_NUM_LISTED]))
    return f"{listed} and {rest} more" if rest > 0 else listed


def _check_lists(dataset: Any, path: str) -> None:
    keys = dataset.keys() if isinstance(dataset, dict) else ()
    absent = [key for key in _LISTS if key not in keys]
    if absent:
        raise errors.UserError(
            f"{path} lacks {', '.join(absent)}; it has {few(keys) or 'no keys'}. "
            "Give a file of COCO's object detection format (instances_*.json)."
        )
    for key in _LISTS:
        if not isinstance(dataset[key], list):
            raise errors.UserError(
                f"{path}: {key} is {_format_value(dataset[key])}; expected a list of "
                "objects."
            )
        for position, entry in enumerate(dataset[key]):
            if not isinstance(entry, dict):
                raise errors.UserError(
                    f"{path}: {key}[{position}] is {_format_value(entry)}; expected an "
                    "object."
                )
    for key in ("images", "categories"):
        if not dataset[key]:
            raise errors.UserError(f"{path} lists no {key}; give a file that has some.")


def _set_ids(entries: list[dict[str, Any]], key: str, field: str, path: str) -> None:
    """Converts the ids in a field of all entries to integers."""
    for position, entry in enumerate(entries):
        number = _as_id(entry.get(field))
        if number is None:
            raise errors.UserError(
                f"{path}: {key}[{position}] has {_format_field(entry, field)}; ids "
                f"must be integers from 0 to {_MAX_ID}. Renumber them here and in the "
                "records."
            )
        entry[field] = number


def _as_id(value: Any) -> int | None:
    """Returns an id as an integer, None if it is not an id."""
    number = annotation_fields.integer(value)
    return number if number is not None and 0 <= number <= _MAX_ID else None


def _set_names(categories: list[dict[str, Any]], path: str) -> None:
    for position, category in enumerate(categories):
        name = annotation_fields.text(category.get("name"))
        if name is None:
            raise errors.UserError(
                f"{path}: categories[{position}] has "
                f"{_format_field(category, 'name')}; expected a string."
            )
        category["name"] = name


def _check_unique(name: str, values: Iterable[Any], path: str) -> None:
    duplicates = [value for value, n in collections.Counter(values).items() if n > 1]
    if duplicates:
        raise errors.UserError(
            f"{path} has {name} {few(duplicates)} more than once; keep one of each."
        )


def _check_annotations(dataset: dict[str, Any], path: str) -> None:
    annotations = dataset["annotations"]
    for field, key in (("image_id", "images"), ("category_id", "categories")):
        _set_ids(annotations, "annotations", field, path)
        listed = {entry["id"] for entry in dataset[key]}
        unlisted = [a for a in annotations if a[field] not in listed]
        if unlisted:
            first = annotations.index(unlisted[0])
            raise errors.UserError(
                f"{path}: {len(unlisted)} of {len(annotations)} annotations, first "
                f"annotations[{first}], refer to {key} that the file does not "
                f"list: {field} {few(sorted({a[field] for a in unlisted}))}. Listed "
                f"are {few(sorted(listed))}."
            )
    for position, annotation in enumerate(annotations):
        if problem := _box_problem(annotation.get("bbox")):
            raise errors.UserError(
                f"{path}: annotations[{position}] (image {annotation['image_id']}) has "
                f"{_format_field(annotation, 'bbox')}, {problem}; expected {_BOX}."
            )


def _box_problem(box: Any) -> str | None:
    """Returns why a box is not valid, None if it is valid."""
    if not isinstance(box, list):
        return "not a list"
    if len(box) != 4:
        return f"{len(box)} values"
    if any(isinstance(x, bool) or not isinstance(x, int | float) for x in box):
        return "not all numbers"
    if not all(abs(x) <= _MAX_PX for x in box):
        return "not all finite"  # NaN fails every comparison.
    if box[2] < 0 or box[3] < 0:
        return "a negative side"
    return None


def _format_field(entry: dict[str, Any], field: str) -> str:
    return f"{field} {_format_value(entry[field])}" if field in entry else f"no {field}"


def _format_value(value: Any) -> str:
    try:
        text = json.dumps(value, ensure_ascii=False)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}…"
