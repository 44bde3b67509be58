"""The classes of a data directory: maps network outputs to categories."""

import collections
import dataclasses
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import annotation_fields, errors, json_files

FILE_NAME = "categories.json"
NO_CATEGORY = -1  # The dataset id of an unused index.
_MAX_ID = 2**31 - 1  # Detections carry ids as int32.


@dataclasses.dataclass(frozen=True)
class Category:
    """One class.

    Attributes:
      index: The index in the network's output.
      id: The dataset id.
      name: The name in the dataset.
    """

    index: int
    id: int
    name: str


class Categories(NamedTuple):
    """All classes of a data directory.

    Attributes:
      num_classes: K, the number of the network's outputs per anchor.
      categories: The classes. Fewer than K if some indexes are unused.
    """

    num_classes: int
    categories: tuple[Category, ...]

    @property
    def ids(self) -> np.ndarray:
        """Returns int64 [K]: the dataset id of each index, or NO_CATEGORY."""
        ids = np.full([self.num_classes], NO_CATEGORY, np.int64)
        for category in self.categories:
            ids[category.index] = category.id
        return ids

    @property
    def names(self) -> list[str]:
        """Returns the K names by index, "" for an unused index."""
        names = [""] * self.num_classes
        for category in self.categories:
            names[category.index] = category.name
        return names

    @property
    def id_to_index(self) -> dict[int, int]:
        """Returns the index of each dataset id."""
        return {category.id: category.index for category in self.categories}

    def check_num_classes(self, num_classes: int) -> None:
        """Checks that the network has the number of classes of the data.

        Args:
          num_classes: The number of classes of the network.

        Raises:
          UserError: The network has another number of classes.
        """
        if num_classes != self.num_classes:
            raise errors.UserError(
                f"The network has {num_classes} classes and the data's {FILE_NAME} "
                f"has {self.num_classes}; set NUM_CLASSES = {self.num_classes}."
            )


def from_coco(
    categories: Sequence[dict[str, Any]], *, index_by_id: bool = False
) -> Categories:
    """Returns the classes of a COCO category list.

    Args:
      categories: The dicts with `id` and `name`, in any order.
      index_by_id: Whether the id is the index, with K = highest id + 1. This is the
        layout of the TensorFlow recipes for COCO: ids 1..90 give 91 classes. Otherwise
        the classes have the indexes 0..K-1 in order of id.

    Raises:
      UserError: There is no category, an id or a name is repeated, or an id is negative
        or exceeds int32.
    """
    if not categories:
        raise errors.UserError(
            "No categories: the annotation file's `categories` is empty."
        )
    ordered = sorted(categories, key=lambda category: category["id"])
    entries = tuple(
        Category(c["id"] if index_by_id else position, c["id"], c["name"])
        for position, c in enumerate(ordered)
    )
    num_classes = entries[-1].index + 1
    return _checked(Categories(num_classes, entries), "The category list")


def read(path: str) -> Categories:
    """Reads the classes from a categories.json.

    Args:
      path: The local or remote file that retinanet-tpu convert wrote.

    Raises:
      MissingFileError: The file does not exist.
      UserError: The content is invalid.
    """
    try:
        content = json_files.read(path)
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(
            f"No {path}; retinanet-tpu convert writes it beside the records. "
            "For records from elsewhere write it by hand: "
            '{"num_classes": 1, "categories": [{"index": 0, "id": 1, "name": "cat"}]}.'
        ) from error
    return _from_content(content, path)


def from_json(text: str, source: str) -> Categories:
    """Returns the classes in the text of a categories.json.

    Args:
      text: The text, see `to_json`.
      source: The place of the text, for the messages.

    Raises:
      UserError: The content is invalid.
    """
    return _from_content(json_files.parse(text, source), source)


def to_json(categories: Categories) -> str:
    """Returns the text of a categories.json."""
    content = {
        "num_classes": categories.num_classes,
        "categories": [
            dataclasses.asdict(category) for category in categories.categories
        ],
    }
    return json.dumps(content, indent=1) + "\n"


def write(categories: Categories, path: str) -> None:
    """Writes a categories.json.

    Args:
      categories: The classes.
      path: The local or remote file.
    """
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(to_json(categories))


def _from_content(content: Any, source: str) -> Categories:
    try:
        entries = tuple(
            Category(
                index=_integer(entry, "index"),
                id=_integer(entry, "id"),
                name=_text(entry, "name"),
            )
            for entry in content["categories"]
        )
        num_classes = _integer(content, "num_classes")
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{source} needs `num_classes` and `categories` with index, id and name of "
            f"each; got {type(error).__name__}: {error}."
        ) from error
    return _checked(Categories(num_classes, entries), source)


def _integer(entry: dict[str, Any], name: str) -> int:
    value = annotation_fields.integer(entry[name])
    if value is None:
        raise ValueError(f"{name} {entry[name]!r}")
    return value


def _text(entry: dict[str, Any], name: str) -> str:
    value = annotation_fields.text(entry[name])
    if value is None:
        raise ValueError(f"{name} {entry[name]!r}")
    return value


def _checked(categories: Categories, source: str) -> Categories:
    for field in ("index", "id", "name"):
        counts = collections.Counter(getattr(c, field) for c in categories.categories)
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise errors.UserError(
                f"{source} has two categories of {field} {repeated[0]!r}; each must "
                "have its own."
            )
    for category in categories.categories:
        # Negative ids are reserved: -1 is NO_CATEGORY.
        if not 0 <= category.id <= _MAX_ID:
            raise errors.UserError(
                f"{source} gives {category.name!r} the id {category.id}; ids are 0.."
                f"{_MAX_ID}. Renumber it there and in the annotations, and convert "
                "again."
            )
        if not 0 <= category.index < categories.num_classes:
            raise errors.UserError(
                f"{source} gives {category.name!r} the index {category.index}; indexes "
                f"are 0..{categories.num_classes - 1} with num_classes "
                f"{categories.num_classes}."
            )
    return categories
