"""The classes of a data directory: which network output means which category."""

import collections
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import annotation_fields, errors, json_files

FILE_NAME = "categories.json"
NO_CATEGORY = -1  # The dataset id of an index that stands for no category.
_MAX_ID = 2**31 - 1  # Detections carry ids as int32.


class Category(NamedTuple):
    """One class: its place in the network's output and its names outside."""

    index: int
    id: int
    name: str


# How the fields of a Category are read from JSON.
_READ_FNS = {
    "index": annotation_fields.integer,
    "id": annotation_fields.integer,
    "name": annotation_fields.text,
}


class Categories(NamedTuple):
    """All classes of a data directory; some of the indexes may be unused."""

    num_classes: int
    categories: tuple[Category, ...]

    @property
    def ids(self) -> np.ndarray:
        """Returns int64 [K]: the dataset id of each index, NO_CATEGORY where unused."""
        ids = np.full([self.num_classes], NO_CATEGORY, np.int64)
        for category in self.categories:
            ids[category.index] = category.id
        return ids

    @property
    def names(self) -> list[str]:
        """Returns K names by index, empty where an index is unused."""
        names = [""] * self.num_classes
        for category in self.categories:
            names[category.index] = category.name
        return names

    @property
    def id_to_index(self) -> dict[int, int]:
        """Returns the index of each dataset id."""
        return {category.id: category.index for category in self.categories}

    def check_num_classes(self, num_classes: int) -> None:
        """Compares the data with the network before the first step.

        Raises:
          UserError: the network has another number of classes.
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
      categories: dicts with `id` and `name`, in any order.
      index_by_id: False numbers the classes 0..K-1 in order of id. True takes the id
        as index, with K = highest id + 1: the layout of the TensorFlow recipes for
        COCO, whose ids 1..90 make 91 classes.

    Raises:
      UserError: No category, an id or a name that comes twice, or an id that is
        negative or no int32.
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
      path: local or remote file, written by retinanet-tpu convert.

    Raises:
      MissingFileError: there is no such file.
      UserError: the file is not what the converter writes.
    """
    try:
        content = json_files.read(path)
    except tf.errors.NotFoundError as error:
        raise errors.MissingFileError(
            f"No {path}; retinanet-tpu convert writes it beside the records. "
            "For records from elsewhere write it by hand: "
            '{"num_classes": 1, "categories": [{"index": 0, "id": 1, "name": "cat"}]}.'
        ) from error
    try:
        entries = tuple(
            Category(*(_field(c, name, read_fn) for name, read_fn in _READ_FNS.items()))
            for c in content["categories"]
        )
        num_classes = _field(content, "num_classes", annotation_fields.integer)
    except (KeyError, OverflowError, TypeError, ValueError) as error:
        raise errors.UserError(
            f"{path} needs `num_classes` and `categories` with index, id and name of "
            f"each; got {type(error).__name__}: {error}."
        ) from error
    return _checked(Categories(num_classes, entries), path)


def to_json(categories: Categories) -> str:
    """Returns the text of a categories.json."""
    content = {
        "num_classes": categories.num_classes,
        "categories": [category._asdict() for category in categories.categories],
    }
    return json.dumps(content, indent=1) + "\n"


def write(categories: Categories, path: str) -> None:
    """Writes a categories.json that `read` gives back unchanged."""
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(to_json(categories))


def _field(entry: dict[str, Any], name: str, read_fn: Callable[[Any], Any]) -> Any:
    value = read_fn(entry[name])
    if value is None:
        raise ValueError(f"{name} {entry[name]!r}")
    return value


def _checked(categories: Categories, source: str) -> Categories:
    for field in Category._fields:
        counts = collections.Counter(getattr(c, field) for c in categories.categories)
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise errors.UserError(
                f"{source} has two categories of {field} {repeated[0]!r}; each must "
                "have its own."
            )
    for category in categories.categories:
        # Negative ids would be taken for NO_CATEGORY or padding.
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
