"""Reads COCO's detection files: one JSON for a set, boxes in pixels, ids of its own."""

import collections
import os
import posixpath
import reprlib
from collections.abc import Callable
from typing import Any

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import assembly, files, locating, outlines

# What an entry of each list must have, and how it is read.
_KEYS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "images": {"id": annotation_fields.integer, "file_name": annotation_fields.text},
    "annotations": {
        "image_id": annotation_fields.integer,
        "category_id": annotation_fields.integer,
    },
    "categories": {"id": annotation_fields.integer, "name": annotation_fields.text},
}
_EXPECTED = {
    annotation_fields.integer: "an integer",
    annotation_fields.text: "a text",
}
_RENUMBERED = "files whose annotation ids are absent, repeated or below 1, renumbered"
_REPEATED = "categories that are listed more than once"
_ROOT = "categories that are only the supercategory of all others, left out"
_OTHER_AREA = "areas that do not fit their box, replaced by the box's"
_OUTLINE = "outline_box"  # Where `_keep_box` puts the box of a segmentation,
_AREA = "checked_area"  # and `_set_areas` an area.
_MAX_ID = 2**63 - 1


def read(
    path: str, *, pictures: files.Pictures | None = None
) -> annotations.AnnotatedSet:
    """Reads a COCO detection file.

    Annotation ids that are absent, repeated or not positive are replaced by 1, 2, ...
    because pycocotools takes id 0 for "no match". Where an annotation has no box, that
    of its segmentation is used.

    Args:
      path: JSON with `images`, `annotations` and `categories`.
      pictures: The folder of images; None leaves the file names as they are written.

    Raises:
      UserError: a part or a key is missing or of another type, an id is negative or
        comes twice, or an annotation names an image or a category that is not listed.
      MissingFileError: there is no such file.
    """
    content = files.parse_json(
        files.read_bytes(path), path, without="segmentation", visit_fn=_keep_box
    )
    _check_parts(content, path)
    _set_areas(content["annotations"])
    source, findings = os.path.basename(path), []
    listed, repeated = _without_repeats(content["categories"])
    findings += [annotations.Finding(_REPEATED, source, name) for name in repeated]
    _check_ids(content["images"], f"{path}: image id")
    _check_ids(listed, f"{path}: category id")
    if not _has_usable_ids(content["annotations"]):
        findings.append(annotations.Finding(_RENUMBERED, source))
        for number, entry in enumerate(content["annotations"], start=1):
            entry["id"] = number
    objects, of_objects = _objects(content, {c["id"] for c in listed}, path)
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
        for image in content["images"]
    ]
    categories, root = _without_root(listed, content["annotations"])
    findings += of_objects
    if root:
        detail = f"id {root['id']}, {root['name']!r}"
        findings.append(annotations.Finding(_ROOT, source, detail))
    if pictures is not None:
        images, findings = _located(images, findings, path, pictures)
    return annotations.AnnotatedSet(
        images,
        [{"id": c["id"], "name": c["name"]} for c in categories],
        tuple(findings),
    )


def _objects(
    content: dict[str, Any], category_ids: set[int], path: str
) -> tuple[dict[int, list[annotations.AnnotatedObject]], list[annotations.Finding]]:
    """Returns the objects by image id, and findings about them."""
    objects, findings = collections.defaultdict(list), []
    names = {image["id"]: image["file_name"] for image in content["images"]}
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        image_id, category_id = entry["image_id"], entry["category_id"]
        if image_id not in names:
            raise errors.UserError(
                f"{where} is of image {image_id}, which is not listed."
            )
        if category_id not in category_ids:
            raise errors.UserError(f"{where} has unlisted category {category_id}.")
        item, found = _object(entry, where)
        objects[image_id] += [item] if item else []
        place = f"{os.path.basename(path)}, annotation {entry['id']}"
        findings += [
            annotations.Finding(what, place, detail, names[image_id])
            for what, detail in found
        ]
    return objects, findings


def _located(images, findings, path, pictures):
    """Returns images and findings with the names of the folder's files."""
    beside = os.path.dirname(path)
    paths = [(i.file_name, posixpath.join(beside, i.file_name)) for i in images]
    names = [[alternatives] for alternatives in paths]
    located, of_names, used = locating.locate(
        images, names, pictures, counts_renamed=True
    )
    by_id = {image.image_id: image.file_name for image in located}
    new_names = {i.file_name: by_id.get(i.image_id, i.file_name) for i in images}
    findings = [f._replace(image=new_names.get(f.image, f.image)) for f in findings]
    unlisted = annotations.pictures_without_annotation(pictures.names, used)
    return located, [*findings, *of_names, *unlisted]


def _keep_box(entry: dict[str, Any]) -> None:
    """Keeps the box of a segmentation, where there is no other."""
    if "segmentation" in entry and _box(entry.get("bbox")) is None:
        entry[_OUTLINE] = outlines.segmentation_box(entry["segmentation"])


def _box(bbox: Any) -> tuple[float, float, float, float] | None:
    """Returns four numbers as a box, None for anything else."""
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
    """Returns the object, None without a box, and findings: their kind and detail."""
    is_crowd = annotation_fields.is_set(entry.get("iscrowd"), f"{where} has iscrowd")
    box_xywh, findings = _box(entry.get("bbox")), []
    if box_xywh is None:
        box_xywh = entry.get(_OUTLINE)
        if box_xywh is None:
            return None, [
                (annotations.NO_BOX, f"bbox {reprlib.repr(entry.get('bbox'))}")
            ]
        findings.append((assembly.FROM_OUTLINE, ""))
    area = entry[_AREA]
    box_area = box_xywh[2] * box_xywh[3]
    # A box without area is a finding of its own.
    if area is None and box_area > 0 and entry.get("area") not in (None, ""):
        findings.append(
            (_OTHER_AREA, f"{reprlib.repr(entry['area'])}, box {box_area:g}")
        )
    return annotations.AnnotatedObject(
        annotation_id=entry["id"],
        category_id=entry["category_id"],
        box_xywh=box_xywh,
        area=box_area if area is None else area,
        is_crowd=is_crowd,
        place=entry["id"],
    ), findings


def _set_areas(entries: list[dict[str, Any]]) -> None:
    """Gives each annotation the area of its object, None where only its box has one."""
    boxes = [_box(entry.get("bbox")) or entry.get(_OUTLINE) for entry in entries]
    boxed = [(entry, box) for entry, box in zip(entries, boxes, strict=True) if box]
    annotated = [entry.get("area") for entry, _ in boxed]
    areas = annotation_fields.areas(annotated, [box[2:] for _, box in boxed])
    for (entry, _), area in zip(boxed, areas, strict=True):
        entry[_AREA] = area


def _check_parts(content: dict[str, Any], path: str) -> None:
    """Checks the lists and their entries; ids become integers, names texts."""
    absent = [part for part in _KEYS if not isinstance(content.get(part), list)]
    if absent:
        raise errors.UserError(
            f"{path} lacks {', '.join(absent)}; a COCO detection file has images, "
            "annotations and categories."
        )
    if not content["images"]:
        raise errors.UserError(
            f"{path} lists no images; check that it is the right file."
        )
    for part, keys in _KEYS.items():
        for position, entry in enumerate(content[part]):
            where = f"{path}: {part}[{position}]"
            if not isinstance(entry, dict):
                raise errors.UserError(
                    f"{where} is {reprlib.repr(entry)}; expected an object."
                )
            for key, read_fn in keys.items():
                if key not in entry:
                    raise errors.UserError(
                        f"{where} lacks {key!r}; it has {', '.join(entry)}."
                    )
                value = read_fn(entry[key])
                if value is None:
                    raise errors.UserError(
                        f"{where} has {key} {reprlib.repr(entry[key])}; expected "
                        f"{_EXPECTED[read_fn]}."
                    )
                entry[key] = value


def _has_usable_ids(entries: list[dict[str, Any]]) -> bool:
    """Returns whether pycocotools can use the ids of annotations, made integers."""
    for entry in entries:
        entry["id"] = annotation_fields.integer(entry.get("id"))
    ids = [entry["id"] for entry in entries]
    return all(i is not None and i > 0 for i in ids) and len(set(ids)) == len(ids)


def _without_repeats(
    categories: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns categories less those of the same id and name, and these names."""
    first, repeated = {}, {}
    for category in categories:
        key = category["id"], category["name"]
        if first.setdefault(key, category) is not category:
            repeated[category["name"]] = None
    return list(first.values()), list(repeated)


def _without_root(
    categories: list[dict[str, Any]], entries: list[dict[str, Any]]
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Returns the categories less Roboflow's root, and the root.

    The root has the name of the project, no supercategory and no box, and is the
    supercategory of all others. It may have the name of one of them.
    """
    used = {entry["category_id"] for entry in entries}
    above = collections.Counter(str(c.get("supercategory")) for c in categories)
    for root in categories:
        if (
            root["id"] not in used
            and root.get("supercategory") in (None, "", "none")
            and above[root["name"]] == len(categories) - 1 > 0
        ):
            return [c for c in categories if c is not root], root
    return categories, None


def _check_ids(entries: list[dict[str, Any]], what: str) -> None:
    for value, count in collections.Counter(entry["id"] for entry in entries).items():
        if count > 1:
            raise errors.UserError(
                f"{what} {value} comes {count} times; ids must differ."
            )
        if value < 0:
            raise errors.UserError(f"{what} {value} is negative; expected 0 or more.")
        if value > _MAX_ID:
            raise errors.UserError(
                f"{what} {value} is above {_MAX_ID}, the largest that records hold; "
                "renumber the ids."
            )


def _side(image: dict[str, Any], key: str, path: str) -> int:
    """Returns a side of a picture in px, 0 where the file does not say."""
    value = image.get(key)
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(
            f"{path}: image {image['id']} has {key} {reprlib.repr(value)}, no number."
        ) from error
