"""Gives the splits of a data directory one list of classes."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from retinanet_tpu.conversion import checks
from retinanet_tpu.data import annotations, category_map

_OTHER_IDS = "files whose category ids were changed to those of all splits, by name"


class NewClass(NamedTuple):
    """A class of a split that earlier splits lack."""

    described: str  # its name, with the first of its boxes
    names: str  # all classes, as the flag --names takes them


def unified(
    sets: Sequence[annotations.AnnotatedSet],
    known: category_map.Categories | None,
    *,
    has_ids: bool,
) -> list[annotations.AnnotatedSet]:
    """Returns the splits with the same categories; a class is the same if its name is.

    Args:
      sets: The splits.
      known: Classes of earlier splits, which keep their ids, or None.
      has_ids: Whether the annotations have ids, so that other ones are a finding.

    Raises:
      UserError: Names of different splits differ in case or blanks only.
    """
    categories = common_classes(sets, known)
    found = [with_classes(s, categories, counts_changes=has_ids) for s in sets]
    images = [image for annotated in found for image in annotated.images]
    checks.check_class_names(annotations.AnnotatedSet(images, categories))
    return found


def new_class(
    sets: Sequence[annotations.AnnotatedSet], known: category_map.Categories
) -> NewClass | None:
    """Returns the first class that earlier splits lack, None if there is none.

    Args:
      sets: The splits, as they were read.
      known: Classes of earlier splits.
    """
    names = {category.name for category in known.categories}
    for annotated in sets:
        for category in annotated.categories:
            if category["name"] not in names:
                described = checks.describe_class(category, annotated)
                text = io.StringIO()
                together = common_classes(sets, known)
                csv.writer(text).writerow(c["name"] for c in together)
                return NewClass(described, text.getvalue().strip())
    return None


def common_classes(
    sets: Iterable[annotations.AnnotatedSet],
    known: category_map.Categories | None,
) -> list[dict[str, Any]]:
    """Returns COCO's categories for all splits of a data directory.

    Ids are those of the annotations where these agree with one another; otherwise
    classes are numbered by name.

    Args:
      sets: The splits.
      known: Classes of earlier splits, which keep their ids, or None.
    """
    pairs = {(c["id"], c["name"]) for annotated in sets for c in annotated.categories}
    if known is not None:
        ids = {category.name: category.id for category in known.categories}
        new = sorted({name for _, name in pairs} - ids.keys())
        ids |= {name: i for i, name in enumerate(new, start=max(ids.values()) + 1)}
    elif all(len({pair[i] for pair in pairs}) == len(pairs) for i in (0, 1)):
        ids = {name: i for i, name in pairs}
    else:
        ids = {n: i for i, n in enumerate(sorted({n for _, n in pairs}), start=1)}
    return [{"id": i, "name": n} for n, i in sorted(ids.items(), key=lambda x: x[1])]


def with_classes(
    annotated: annotations.AnnotatedSet,
    categories: list[dict[str, Any]],
    *,
    counts_changes: bool,
) -> annotations.AnnotatedSet:
    """Returns a set with other category ids; a class is the same if its name is.

    Args:
      annotated: The set.
      categories: COCO's categories, those of the set included.
      counts_changes: Whether other ids are a finding, as they stand in the files.
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
            )
        )
        for image in annotated.images
    ]
    findings = [*annotated.events]
    if counts_changes:
        sources = dict.fromkeys(image.source for image in images)
        findings += [
            annotations.ConversionEvent(_OTHER_IDS, source) for source in sources
        ]
    return annotations.AnnotatedSet(images, categories, tuple(findings))
