"""Unifies the classes of all splits of a data directory."""

import csv
import io
from collections.abc import Sequence
from typing import Any, NamedTuple

from retinanet_tpu.conversion import checks
from retinanet_tpu.data import annotations, category_map

_MACHINE_ID = "machine_id"  # Of a class of Open Images.
_OTHER_IDS = "files whose category ids were changed to those of all splits, by name"


class NewClass(NamedTuple):
    """A class of a split that earlier splits lack.

    Attributes:
      described: The name of the class, with its first box.
      names: The names of all classes, as a value of the flag --names.
    """

    described: str
    names: str


def unified(
    sets: Sequence[annotations.AnnotatedSet],
    known: category_map.Categories | None,
    *,
    has_ids: bool,
) -> list[annotations.AnnotatedSet]:
    """Returns the splits with common categories. Classes are matched by name.

    Args:
      sets: The splits.
      known: The classes of earlier splits, which keep their ids, or None.
      has_ids: True if the annotations contain category ids. Changes of these ids are
        reported as events.

    Raises:
      UserError: Names of two splits differ in case or blanks only.
    """
    categories = common_classes(sets, known)
    splits = [with_classes(s, categories, counts_changes=has_ids) for s in sets]
    images = [image for annotated in splits for image in annotated.images]
    checks.check_class_names(annotations.AnnotatedSet(images, categories))
    return splits


def new_class(
    sets: Sequence[annotations.AnnotatedSet], known: category_map.Categories
) -> NewClass | None:
    """Returns the first class that earlier splits lack, or None.

    Args:
      sets: The splits, before `unified`.
      known: The classes of earlier splits.
    """
    names = {category.name for category in known.categories}
    for annotated in sets:
        for category in annotated.categories:
            if category["name"] not in names:
                described = checks.describe_class(category, annotated)
                text = io.StringIO()
                all_classes = common_classes(sets, known)
                csv.writer(text).writerow(c["name"] for c in all_classes)
                return NewClass(described, text.getvalue().strip())
    return None


def common_classes(
    sets: Sequence[annotations.AnnotatedSet],
    known: category_map.Categories | None,
) -> list[dict[str, Any]]:
    """Returns COCO's categories for all splits of a data directory.

    The ids of the annotations are kept if they agree in all splits. Otherwise classes
    are numbered in the order of their names. Machine ids are kept.

    Args:
      sets: The splits.
      known: The classes of earlier splits, which keep their ids, or None.
    """
    pairs = {(c["id"], c["name"]) for annotated in sets for c in annotated.categories}
    if known is not None:
        ids = {category.name: category.id for category in known.categories}
        new = sorted({name for _, name in pairs} - ids.keys())
        # New classes are appended, because earlier records contain the known ids.
        ids |= {name: i for i, name in enumerate(new, start=max(ids.values()) + 1)}
    elif all(len({pair[i] for pair in pairs}) == len(pairs) for i in (0, 1)):
        ids = {name: i for i, name in pairs}
    else:
        ids = {n: i for i, n in enumerate(sorted({n for _, n in pairs}), start=1)}
    machine_ids = {
        category["name"]: {_MACHINE_ID: category[_MACHINE_ID]}
        for annotated in sets
        for category in annotated.categories
        if _MACHINE_ID in category
    }
    return [
        {"id": i, "name": name} | machine_ids.get(name, {})
        for name, i in sorted(ids.items(), key=lambda x: x[1])
    ]


def with_classes(
    annotated: annotations.AnnotatedSet,
    categories: list[dict[str, Any]],
    *,
    counts_changes: bool,
) -> annotations.AnnotatedSet:
    """Returns a set with other category ids. Classes are matched by name.

    Args:
      annotated: The set.
      categories: COCO's categories, which include all classes of the set.
      counts_changes: True if changed ids are reported as events, one per file.
    """
    by_name = {category["name"]: category["id"] for category in categories}
    ids = {c["id"]: by_name[c["name"]] for c in annotated.categories}
    if all(old == new for old, new in ids.items()):
        return annotated._replace(categories=categories)
    images = [
        image._replace(
            objects=tuple(
                item._replace(category_id=ids[item.category_id])
                for item in image.objects
            ),
            positive_ids=tuple(ids[i] for i in image.positive_ids),
            negative_ids=tuple(ids[i] for i in image.negative_ids),
        )
        for image in annotated.images
    ]
    events = [*annotated.events]
    if counts_changes:
        sources = dict.fromkeys(image.source for image in images)
        events += [
            annotations.ConversionEvent(_OTHER_IDS, source) for source in sources
        ]
    return annotations.AnnotatedSet(images, categories, tuple(events))
