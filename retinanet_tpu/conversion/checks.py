"""Whether a set of annotations is worth converting, and what speaks against it."""

import collections
import unicodedata
from collections.abc import Iterable
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.conversion import box_cleaning
from retinanet_tpu.data import annotations, transforms

OTHER_SIZE = "images of another size than annotated, left out"
# What to change where a kind of fault befalls most of a set: of boxes, and of images.
_OF_BOXES = {
    box_cleaning.NOT_FINITE: "Look at what wrote the annotations.",
    box_cleaning.WRONG_ORDER: "Is the order of the numbers that of --format?",
    box_cleaning.NO_AREA: "Look at what wrote the annotations.",
    box_cleaning.NOT_PIXELS: "Write pixels, or take a --format of shares.",
    box_cleaning.NOT_SHARES: "Write shares of the sides, or take a --format of pixels.",
    box_cleaning.FAR_BEYOND: "Is the order of the numbers that of --format? Were "
    "the images resized after they were annotated?",
    box_cleaning.OUTSIDE: "Were the images resized after they were annotated?",
    annotations.NO_BOX: "Each object needs the four numbers of a box, or an outline; "
    "captions and keypoints do not do.",
}
_REMEDIES = _OF_BOXES | {
    OTHER_SIZE: "Were the images resized after they were annotated? If it is only "
    "the annotated sizes that are wrong, take them out.",
    annotations.UNREADABLE: "Check --format and --annotations.",
}
_MAX_FAULTY = 0.5  # More is no slip of a person, but of the reading as a whole.
_NAMED = 3  # How many places an error names.


def check_set(annotated: annotations.AnnotatedSet) -> None:
    """Looks for what makes a conversion pointless, before an image is read.

    Raises:
      UserError: a class has no name, two classes or two images have one, or the boxes
        are such that a network trained on them would find nothing.
    """
    check_class_names(annotated)
    unreadable = [f for f in annotated.events if f.kind == annotations.UNREADABLE]
    num_files = len(annotated.images) + len(unreadable)
    _check_share(unreadable, num_files, "annotation files")
    first = {}
    for image in annotated.images:
        other = first.setdefault(image.file_name, image)
        if other is not image:
            raise errors.UserError(
                f"{image.file_name} is annotated twice, as image {other.image_id} "
                f"({other.source}) and {image.image_id} ({image.source}); put its "
                "boxes together."
            )
    faults = [f for f in annotated.events if f.kind == annotations.NO_BOX]
    num_boxes = len(faults)
    for image in annotated.images:
        num_boxes += len(image.objects)
        for item in image.objects:
            fault = box_cleaning.box_issue(item.box_xywh, is_norm=image.is_norm)
            if fault:
                faults.append(box_cleaning.describe(fault, image, item))
    _check_share(faults, num_boxes, "boxes")
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
    """Raises UserError where a split is empty, or what one has the other lacks."""
    for split, other in ((train, val), (val, train)):
        if not split.images or not _used_classes(split):
            raise errors.UserError(
                f"Of {len(split.images) + len(other.images)} images the split gives "
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
    findings: Iterable[annotations.ConversionEvent],
    *,
    annotated: list[annotations.AnnotatedImage],
) -> None:
    """Looks for what makes records pointless, after they were written.

    Args:
      images: as stored.
      findings: of the conversion.
      annotated: the images that were to be stored.

    Raises:
      UserError: no image was stored, most boxes or images did not fit, or training
        would pass over all that is left.
    """
    findings = list(findings)
    num_boxes = sum(len(image.objects) for image in annotated)
    if not images and not any(f.kind in _REMEDIES for f in findings):
        raise errors.UserError(
            f"None of the {len(annotated)} images could be stored; check --images."
            f"{_first(findings)}"
        )
    of_boxes = [finding for finding in findings if finding.kind in _OF_BOXES]
    lost = {image.file_name for image in annotated} - {i.file_name for i in images}
    of_images = [f for f in findings if f.location in lost and f.kind not in _OF_BOXES]
    _check_share(of_images, len(annotated), "images")
    _check_share(of_boxes, num_boxes, "boxes")
    items = [item for image in images for item in image.objects]
    if not any(map(box_cleaning.is_learnable, items)):
        raise errors.UserError(_nothing_to_learn(len(items)) + _first(findings))


def classes_without_boxes(
    images: list[annotations.AnnotatedImage], categories: list[dict[str, Any]]
) -> list[annotations.ConversionEvent]:
    """Returns a finding for each class that no image of a split has."""
    used = {item.category_id for image in images for item in image.objects}
    return [
        annotations.ConversionEvent("classes without a box", category["name"])
        for category in categories
        if category["id"] not in used
    ]


def check_class_names(annotated: annotations.AnnotatedSet) -> None:
    """Raises UserError where class names are the same to a person's eye."""
    seen = {}
    for category in annotated.categories:
        name = unicodedata.normalize("NFKC", category["name"])
        key = "".join(name.split()).casefold()
        if not key or not key.isprintable():
            raise errors.UserError(
                f"Class {listed(category, annotated)} has no name that can be "
                "written; give it one in the annotations."
            )
        twin = seen.setdefault(key, category)
        if twin is not category:
            how = (
                "have one name"
                if twin["name"] == category["name"]
                else "differ in case or blanks only"
            )
            raise errors.UserError(
                f"Classes {listed(twin, annotated)} and {listed(category, annotated)}"
                f" {how}; make them one in the annotations."
            )


def listed(category: dict[str, Any], annotated: annotations.AnnotatedSet) -> str:
    """Returns a class in words: its name, id, number of boxes and the first of them."""
    places = [
        (image, item)
        for image in annotated.images
        for item in image.objects
        if item.category_id == category["id"]
    ]
    first = f", first {annotations.source_line_of(*places[0])}" if places else ""
    return f"{category['name']!r} (id {category['id']}: {len(places)} boxes{first})"


def _check_share(
    faults: list[annotations.ConversionEvent], count: int, what: str
) -> None:
    if len(faults) > _MAX_FAULTY * count:
        kinds = collections.Counter(fault.kind for fault in faults)
        kind, frequency = kinds.most_common(1)[0]
        places = [f for f in faults if f.kind == kind][:_NAMED]
        raise errors.UserError(
            f"{len(faults)} of {count} {what} are unusable, {frequency} of them "
            f"{kind.rpartition(',')[0] or kind}: "
            + "; ".join(_sentence(place) for place in places)
            + f". {_REMEDIES.get(kind, 'Check --images.')}"
        )


def _nothing_to_learn(num_boxes: int) -> str:
    return (
        f"Training would pass over all {num_boxes} boxes: each is of a crowd or "
        f"narrower than {transforms.MIN_SIDE:g} px. Check the annotations."
    )


def _sentence(finding: annotations.ConversionEvent) -> str:
    return (
        f"{finding.location} ({finding.detail})" if finding.detail else finding.location
    )


def _first(findings: Iterable[annotations.ConversionEvent]) -> str:
    first = next(iter(findings), None)
    return f" First finding: {first.kind}: {_sentence(first)}." if first else ""


def _used_classes(annotated: annotations.AnnotatedSet) -> set[int]:
    return {item.category_id for image in annotated.images for item in image.objects}
