"""Reads COCO detection files: one JSON file per set, boxes in pixels."""

import collections
import os
import posixpath
import reprlib
from collections.abc import Callable
from typing import Any, NamedTuple

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import (
    assembly,
    documents,
    files,
    locating,
    shapes,
)
from retinanet_tpu.data import annotations


class _Field(NamedTuple):
    """A required key of an entry.

    Attributes:
      parse_fn: The function that returns the value in its type, None if invalid.
      expected: The description of valid values, for error messages.
    """

    parse_fn: Callable[[Any], int | str | None]
    expected: str


_INTEGER = _Field(annotation_fields.integer, "an integer")
_TEXT = _Field(annotation_fields.text, "a text")
_LABEL = _Field(annotation_fields.label, "a text")
# The required keys of the entries of each list.
_FIELDS: dict[str, dict[str, _Field]] = {
    "images": {"id": _INTEGER, "file_name": _TEXT},
    "annotations": {"image_id": _INTEGER, "category_id": _INTEGER},
    "categories": {"id": _INTEGER, "name": _LABEL},
}
_RENUMBERED = "files whose annotation ids are absent, repeated or below 1, renumbered"
_REPEATED = "categories that are listed more than once"
_REPEATED_IMAGES = "images that are listed more than once with one id"
_TEXT_IDS = "files whose image or category ids are texts, renumbered"
_UNLISTED = "objects of images that are not listed, dropped"
_ROOT = "categories that are only the supercategory of all others, left out"
_OTHER_AREA = "areas that do not fit their box, replaced by the box's"
# Keys that this module adds to annotations.
_OUTLINE = "outline_box"  # The box of the segmentation, set by `_keep_outline_box`.
_AREA = "checked_area"  # The area of the object, set by `_set_areas`.
_MAX_ID = 2**63 - 1  # image/source_id is an int64.
_MAX_UNLISTED = 0.5  # A larger fraction means that the lists are of different files.
# The key of annotations that refers to each list.
_REFERENCES = {"images": "image_id", "categories": "category_id"}


def read(
    path: str, *, image_folder: files.ImageFolder | None = None
) -> annotations.AnnotatedSet:
    """Reads a COCO detection file.

    Annotation ids that are absent, repeated or not positive are replaced by 1, 2, ...
    because pycocotools interprets id 0 as "no match". Image and category ids that are
    texts are replaced by numbers. An annotation without a box gets the box around its
    segmentation.

    Args:
      path: The JSON file with `images`, `annotations` and `categories`.
      image_folder: The folder of images; None leaves the file names as written.

    Raises:
      UserError: A list or a key is missing or has another type, an id is negative or
        repeated, or an annotation refers to an image or category that is not listed.
      MissingFileError: The file does not exist.
    """
    content = documents.parse_json(
        files.read_bytes(path),
        path,
        without="segmentation",
        visit_fn=_keep_outline_box,
    )
    source = os.path.basename(path)
    events: list[annotations.ConversionEvent] = []
    _check_lists(content, path)
    # A list, so that no part is skipped.
    if any([_number_text_ids(content, *keys) for keys in _REFERENCES.items()]):
        events.append(annotations.ConversionEvent(_TEXT_IDS, source))
    _check_entries(content, path)
    _set_areas(content["annotations"])
    listed, repeated = _without_repeats(content["categories"], "name")
    events += [
        annotations.ConversionEvent(_REPEATED, source, name) for name in repeated
    ]
    listed_images, repeated = _without_repeats(content["images"], "file_name")
    events += [
        annotations.ConversionEvent(_REPEATED_IMAGES, source, name, name)
        for name in repeated
    ]
    _check_ids(listed_images, f"{path}: image id")
    _check_ids(listed, f"{path}: category id")
    if not _has_usable_ids(content["annotations"]):
        events.append(annotations.ConversionEvent(_RENUMBERED, source))
        for number, entry in enumerate(content["annotations"], start=1):
            entry["id"] = number
    objects, object_events = _objects(content, {c["id"] for c in listed}, path)
    images = [
        annotations.AnnotatedImage(
            image_id=image["id"],
            file_name=image["file_name"],
            height=_side(image, "height", path),
            width=_side(image, "width", path),
            objects=tuple(objects[image["id"]]),
            source=source,
            unit="annotation",
        )
        for image in listed_images
    ]
    categories, root = _without_root(listed, content["annotations"])
    events += object_events
    if root:
        detail = f"id {root['id']}, {root['name']!r}"
        events.append(annotations.ConversionEvent(_ROOT, source, detail))
    if image_folder is not None:
        images, events = _locate(images, events, path, image_folder)
    return annotations.AnnotatedSet(
        images,
        [{"id": c["id"], "name": c["name"]} for c in categories],
        tuple(events),
    )


def _objects(
    content: dict[str, Any], category_ids: set[int], path: str
) -> tuple[
    dict[int, list[annotations.AnnotatedObject]], list[annotations.ConversionEvent]
]:
    """Returns the objects by image id, and the events about them.

    Raises:
      UserError: Most annotations refer to images that are not listed, one refers to a
        category that is not listed, or a flag is invalid.
    """
    objects: dict[int, list[annotations.AnnotatedObject]]
    objects = collections.defaultdict(list)
    events: list[annotations.ConversionEvent] = []
    names = {image["id"]: image["file_name"] for image in content["images"]}
    unlisted = [e for e in content["annotations"] if e["image_id"] not in names]
    if len(unlisted) > _MAX_UNLISTED * len(content["annotations"]):
        raise errors.UserError(
            f"{path}: annotation {unlisted[0]['id']} is of image "
            f"{unlisted[0]['image_id']}, which is not listed; the same holds for "
            f"{len(unlisted)} of {len(content['annotations'])} annotations."
        )
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        location = f"{os.path.basename(path)}, annotation {entry['id']}"
        image_id = entry["image_id"]
        category_id = entry["category_id"]
        if image_id not in names:
            detail = f"image {image_id}"
            events.append(annotations.ConversionEvent(_UNLISTED, location, detail))
            continue
        if category_id not in category_ids:
            raise errors.UserError(f"{where} has unlisted category {category_id}.")
        item, kinds = _object(entry, where)
        if item:
            objects[image_id].append(item)
        events += [
            annotations.ConversionEvent(kind, location, detail, names[image_id])
            for kind, detail in kinds
        ]
    return objects, events


def _locate(
    images: list[annotations.AnnotatedImage],
    events: list[annotations.ConversionEvent],
    path: str,
    image_folder: files.ImageFolder,
) -> tuple[list[annotations.AnnotatedImage], list[annotations.ConversionEvent]]:
    """Returns images and events with the file names of the folder."""
    beside = os.path.dirname(path)
    names = [[(i.file_name, posixpath.join(beside, i.file_name))] for i in images]
    located, of_names, matched = locating.locate(
        images, names, image_folder, counts_renamed=True
    )
    by_id = {image.image_id: image.file_name for image in located}
    new_names = {i.file_name: by_id.get(i.image_id, i.file_name) for i in images}
    renamed = [e._replace(image=new_names.get(e.image, e.image)) for e in events]
    unannotated = annotations.images_without_annotation(image_folder.names, matched)
    return located, [*renamed, *of_names, *unannotated]


def _keep_outline_box(entry: dict[str, Any]) -> None:
    """Adds the box of the segmentation if the annotation has no box with an area."""
    box_xywh = _box(entry.get("bbox"))
    if "segmentation" in entry and (box_xywh is None or 0 in box_xywh[2:]):
        outline_xywh = shapes.segmentation_box(entry["segmentation"])
        if box_xywh is None or (outline_xywh and 0 not in outline_xywh[2:]):
            entry[_OUTLINE] = outline_xywh


def _box(bbox: Any) -> shapes.Box | None:
    """Returns a list of four numbers as a box, None for any other value."""
    if not isinstance(bbox, list) or len(bbox) != 4:
        return None
    if any(isinstance(value, bool) for value in bbox):
        return None
    try:
        x, y, width, height = map(float, bbox)
    except (TypeError, ValueError, OverflowError):
        return None
    return x, y, width, height


def _object(
    entry: dict[str, Any], where: str
) -> tuple[annotations.AnnotatedObject | None, list[tuple[str, str]]]:
    """Returns the object, None without a box, and the kind and detail of events."""
    is_crowd = annotation_fields.is_set(entry.get("iscrowd"), f"{where} has iscrowd")
    box_xywh = entry.get(_OUTLINE) or _box(entry.get("bbox"))
    if box_xywh is None:
        return None, [(annotations.NO_BOX, f"bbox {reprlib.repr(entry.get('bbox'))}")]
    kinds = [(assembly.FROM_OUTLINE, "")] if entry.get(_OUTLINE) else []
    area = entry[_AREA]
    box_area = box_xywh[2] * box_xywh[3]
    # The converter reports boxes without area.
    if area is None and box_area > 0 and entry.get("area") not in (None, ""):
        kinds.append((_OTHER_AREA, f"{reprlib.repr(entry['area'])}, box {box_area:g}"))
    return annotations.AnnotatedObject(
        annotation_id=entry["id"],
        category_id=entry["category_id"],
        box_xywh=box_xywh,
        area=box_area if area is None else area,
        is_crowd=is_crowd,
        source_line=entry["id"],
    ), kinds


def _set_areas(entries: list[dict[str, Any]]) -> None:
    """Adds the area of its object to each annotation, None if the area is invalid."""
    boxes = [entry.get(_OUTLINE) or _box(entry.get("bbox")) for entry in entries]
    boxed = [(entry, box) for entry, box in zip(entries, boxes, strict=True) if box]
    annotated = [entry.get("area") for entry, _ in boxed]
    areas = annotation_fields.areas(annotated, [box[2:] for _, box in boxed])
    for (entry, _), area in zip(boxed, areas, strict=True):
        entry[_AREA] = area


def _check_lists(content: dict[str, Any], path: str) -> None:
    """Raises UserError if a list is missing, or there are no images."""
    absent = [part for part in _FIELDS if not isinstance(content.get(part), list)]
    if absent:
        raise errors.UserError(
            f"{path} lacks {', '.join(absent)}; a COCO detection file has images, "
            "annotations and categories."
        )
    if not content["images"]:
        raise errors.UserError(
            f"{path} lists no images; check that it is the right file."
        )


def _number_text_ids(content: dict[str, Any], part: str, reference: str) -> bool:
    """Numbers the entries of a list whose ids are texts, such as file names.

    Args:
      content: The content of the file.
      part: The list, `images` or `categories`.
      reference: The key of annotations that refers to this list.

    Returns:
      Whether the ids were changed.
    """
    entries = [entry for entry in content[part] if isinstance(entry, dict)]
    ids = [entry.get("id") for entry in entries]
    is_text = [isinstance(i, str) and annotation_fields.integer(i) is None for i in ids]
    if not any(is_text) or not all(isinstance(i, str | int) for i in ids):
        return False
    texts = [annotation_fields.text(i) for i in ids]
    numbers = {text: n for n, text in enumerate(dict.fromkeys(texts), start=1)}
    for entry, text in zip(entries, texts, strict=True):
        entry["id"] = numbers[text]
    for entry in content["annotations"]:
        if isinstance(entry, dict) and reference in entry:
            text = annotation_fields.text(entry[reference])
            entry[reference] = numbers.get(text, 0)  # No entry has id 0.
    return True


def _check_entries(content: dict[str, Any], path: str) -> None:
    """Checks the entries of the lists; converts ids to integers, names to texts."""
    for part, fields in _FIELDS.items():
        for position, entry in enumerate(content[part]):
            where = f"{path}: {part}[{position}]"
            if not isinstance(entry, dict):
                raise errors.UserError(
                    f"{where} is {reprlib.repr(entry)}; expected an object."
                )
            for key, field in fields.items():
                if key not in entry:
                    raise errors.UserError(
                        f"{where} lacks {key!r}; it has {', '.join(entry)}."
                    )
                value = field.parse_fn(entry[key])
                if value is None:
                    raise errors.UserError(
                        f"{where} has {key} {reprlib.repr(entry[key])}; expected "
                        f"{field.expected}."
                    )
                entry[key] = value


def _has_usable_ids(entries: list[dict[str, Any]]) -> bool:
    """Converts annotation ids to integers; returns whether pycocotools can use them."""
    for entry in entries:
        entry["id"] = annotation_fields.integer(entry.get("id"))
    ids = [entry["id"] for entry in entries]
    return all(i is not None and i > 0 for i in ids) and len(set(ids)) == len(ids)


def _without_repeats(
    entries: list[dict[str, Any]], key: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the entries that differ in id or name, and the names that repeat."""
    first: dict[tuple[int, str], dict[str, Any]] = {}
    repeated: list[str] = []
    for entry in entries:
        if first.setdefault((entry["id"], entry[key]), entry) is not entry:
            repeated.append(entry[key])
    return list(first.values()), list(dict.fromkeys(repeated))


def _without_root(
    categories: list[dict[str, Any]], entries: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Returns the categories without Roboflow's root, and the root or None.

    The root has the name of the project, no supercategory and no box. It is the
    supercategory of all other categories, and may have the name of one of them.
    """
    used = {entry["category_id"] for entry in entries}
    num_below = collections.Counter(str(c.get("supercategory")) for c in categories)
    for root in categories:
        if (
            root["id"] not in used
            and root.get("supercategory") in (None, "", "none")
            and num_below[root["name"]] == len(categories) - 1 > 0
        ):
            return [c for c in categories if c is not root], root
    return categories, None


def _check_ids(entries: list[dict[str, Any]], name: str) -> None:
    """Raises UserError if an id is repeated, negative or too large."""
    for value, count in collections.Counter(entry["id"] for entry in entries).items():
        if count > 1:
            raise errors.UserError(
                f"{name} {value} occurs {count} times; ids must differ."
            )
        if value < 0:
            raise errors.UserError(f"{name} {value} is negative; expected 0 or more.")
        if value > _MAX_ID:
            raise errors.UserError(
                f"{name} {value} is above {_MAX_ID}, the largest that records hold; "
                "renumber the ids."
            )


def _side(image: dict[str, Any], key: str, path: str) -> int:
    """Returns the height or width of an image in px, 0 if absent."""
    value = image.get(key)
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(
            f"{path}: image {image['id']} has {key} {reprlib.repr(value)}; expected "
            "a number."
        ) from error
