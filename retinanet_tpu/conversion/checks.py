"""Checks whether annotations and converted images are fit to train on."""

import collections
import unicodedata
from collections.abc import Iterable
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion import box_cleaning
from retinanet_tpu.data import annotations, transforms

OTHER_SIZE = "images of another size than annotated, left out"
OUTSIDE_FOLDER = "images whose path leaves the folder, left out"
_MAX_FAULTY = 0.5  # More is not a slip of a person, but data read in the wrong way.
_NUM_NAMED = 3  # The number of locations in an error.


class _Explanation(NamedTuple):
    """The text of an error about most of a data set.

    Attributes:
      message: The boxes, images or files, as a plural noun phrase.
      remedy: The advice.
    """

    message: str
    remedy: str


_BOX_EXPLANATIONS = {
    issue.kind: _Explanation(issue.message, issue.remedy)
    for issue in box_cleaning.BoxIssue
    if issue.remedy
} | {
    annotations.NO_BOX: _Explanation(
        "objects without box or outline",
        "Each object needs the four numbers of a box, or an outline; captions and "
        "keypoints are not enough.",
    )
}
_EXPLANATIONS = _BOX_EXPLANATIONS | {
    OTHER_SIZE: _Explanation(
        "images of another size than annotated",
        "Were the images resized after they were annotated? If only the annotated "
        "sizes are wrong, remove them.",
    ),
    annotations.UNREADABLE: _Explanation(
        "annotation files unreadable", "Check --format and --annotations."
    ),
    OUTSIDE_FOLDER: _Explanation(
        "images whose path leaves the folder", "Check --images."
    ),
}


def check_set(annotated: annotations.AnnotatedSet) -> None:
    """Checks annotations before any image is read.

    Args:
      annotated: The annotated images of a split.

    Raises:
      UserError: A class has no name, two classes have the same name, an image is
        annotated twice, or most boxes or files are unusable.
    """
    check_class_names(annotated)
    unreadable = [e for e in annotated.events if e.kind == annotations.UNREADABLE]
    num_files = len(annotated.images) + len(unreadable)
    _check_fraction(unreadable, num_files, "annotation files")
    _check_no_image_twice(annotated.images)
    faults = [e for e in annotated.events if e.kind == annotations.NO_BOX]
    num_boxes = len(faults)
    for image in annotated.images:
        num_boxes += len(image.objects)
        for item in image.objects:
            issue = box_cleaning.box_issue(item.box_xywh, is_norm=image.is_norm)
            if issue:
                faults.append(box_cleaning.describe(issue, image, item))
    _check_fraction(faults, num_boxes, "boxes")
    if not num_boxes:
        raise errors.UserError(
            f"The {len(annotated.images)} images have no box at all; a network cannot "
            f"learn from that. Check --annotations.{_first(annotated.events)}"
        )
    if not any(
        not item.is_crowd and (image.is_norm or box_cleaning.is_learnable(item))
        for image in annotated.images
        for item in image.objects
    ):
        raise errors.UserError(_nothing_to_learn(num_boxes))


def check_splits(
    train: annotations.AnnotatedSet, val: annotations.AnnotatedSet
) -> None:
    """Checks that two splits have boxes and a common class.

    Args:
      train: The training split.
      val: The validation split.

    Raises:
      UserError: A split has no image or no box, or they have no class in common.
    """
    if not _used_classes(train) or not _used_classes(val):
        raise errors.UserError(
            f"Of {len(train.images) + len(val.images)} images the split gives "
            f"{len(train.images)} to train and {len(val.images)} to val, and one "
            "of them has no box; use another --val_fraction or --seed, or annotate "
            "more images."
        )
    if not _used_classes(train) & _used_classes(val):
        raise errors.UserError(
            "train and val have no class in common; use another --seed or annotate "
            "more images."
        )


def check_conversion(
    images: list[annotations.AnnotatedImage],
    events: Iterable[annotations.ConversionEvent],
    *,
    annotated: list[annotations.AnnotatedImage],
) -> None:
    """Checks a conversion after the records were written.

    Args:
      images: The images as stored.
      events: The events of the conversion.
      annotated: All images that the conversion read.

    Raises:
      UserError: No image was stored, most boxes or images were unusable, or training
        would ignore all remaining boxes.
    """
    events = list(events)
    # These have a better error below.
    explained = {*_BOX_EXPLANATIONS, OTHER_SIZE}
    if not images and not any(event.kind in explained for event in events):
        raise errors.UserError(
            f"None of the {len(annotated)} images could be stored; check --images."
            f"{_first(events)}"
        )
    of_boxes = [e for e in events if e.kind in _BOX_EXPLANATIONS]
    lost = {image.file_name for image in annotated} - {i.file_name for i in images}
    of_images = [
        e for e in events if e.location in lost and e.kind not in _BOX_EXPLANATIONS
    ]
    num_boxes = sum(len(image.objects) for image in annotated)
    _check_fraction(of_images, len(annotated), "images")
    _check_fraction(of_boxes, num_boxes, "boxes")
    items = [item for image in images for item in image.objects]
    if not any(map(box_cleaning.is_learnable, items)):
        raise errors.UserError(_nothing_to_learn(len(items)) + _first(events))


def classes_without_boxes(
    images: list[annotations.AnnotatedImage], categories: list[dict[str, Any]]
) -> list[annotations.ConversionEvent]:
    """Returns an event for each class without a box in a split.

    Args:
      images: The images of the split.
      categories: COCO's category dicts, with id and name.
    """
    used = {item.category_id for image in images for item in image.objects}
    return [
        annotations.ConversionEvent("classes without a box", category["name"])
        for category in categories
        if category["id"] not in used
    ]


def check_class_names(annotated: annotations.AnnotatedSet) -> None:
    """Checks that class names exist and differ by more than case or blanks.

    Args:
      annotated: The annotated images and their categories.

    Raises:
      UserError: A class has no printable name, or two names look the same.
    """
    by_key: dict[str, dict[str, Any]] = {}
    for category in annotated.categories:
        name = unicodedata.normalize("NFKC", category["name"])
        key = "".join(name.split()).casefold()
        if not key or not key.isprintable():
            raise errors.UserError(
                f"Class {describe_class(category, annotated)} has no name that can be "
                "written; give it one in the annotations."
            )
        twin = by_key.setdefault(key, category)
        if twin is not category:
            relation = (
                "have one name"
                if twin["name"] == category["name"]
                else "differ in case or blanks only"
            )
            raise errors.UserError(
                f"Classes {describe_class(twin, annotated)} and "
                f"{describe_class(category, annotated)} {relation}; make them one in "
                "the annotations."
            )


def describe_class(
    category: dict[str, Any], annotated: annotations.AnnotatedSet
) -> str:
    """Returns the name of a class, its id, number of boxes and first location.

    Args:
      category: COCO's category dict, with id and name.
      annotated: The annotated images.
    """
    boxes = [
        (image, item)
        for image in annotated.images
        for item in image.objects
        if item.category_id == category["id"]
    ]
    first = f", first {annotations.source_line_of(*boxes[0])}" if boxes else ""
    return f"{category['name']!r} (id {category['id']}: {len(boxes)} boxes{first})"


def _check_no_image_twice(images: list[annotations.AnnotatedImage]) -> None:
    by_name: dict[str, annotations.AnnotatedImage] = {}
    for image in images:
        other = by_name.setdefault(image.file_name, image)
        if other is not image:
            raise errors.UserError(
                f"{image.file_name} is annotated twice, as image {other.image_id} "
                f"({other.source}) and {image.image_id} ({image.source}); put its "
                "boxes together."
            )


def _check_fraction(
    faults: list[annotations.ConversionEvent], count: int, unit: str
) -> None:
    """Raises UserError if more than half of `count` units have a fault."""
    if len(faults) <= _MAX_FAULTY * count:
        return
    kinds = collections.Counter(fault.kind for fault in faults)
    kind, frequency = kinds.most_common(1)[0]
    explanation = _EXPLANATIONS.get(kind, _Explanation(kind, "Check --images."))
    named = [fault for fault in faults if fault.kind == kind][:_NUM_NAMED]
    raise errors.UserError(
        f"{len(faults)} of {count} {unit} are unusable, {frequency} of them "
        f"{explanation.message}: {'; '.join(map(_location_and_detail, named))}. "
        f"{explanation.remedy}"
    )


def _nothing_to_learn(num_boxes: int) -> str:
    return (
        f"Training would ignore all {num_boxes} boxes: each is a crowd or narrower "
        f"than {transforms.MIN_SIDE:g} px. Check the annotations."
    )


def _location_and_detail(event: annotations.ConversionEvent) -> str:
    return f"{event.location} ({event.detail})" if event.detail else event.location


def _first(events: Iterable[annotations.ConversionEvent]) -> str:
    first = next(iter(events), None)
    if first is None:
        return ""
    return f" First issue: {first.kind}: {_location_and_detail(first)}."


def _used_classes(annotated: annotations.AnnotatedSet) -> set[int]:
    return {item.category_id for image in annotated.images for item in image.objects}
