"""Reads COCO's detection files: one JSON for a set, boxes in pixels, ids of its own."""

import collections
import os
import posixpath
import reprlib
from collections.abc import Callable
from typing import Any

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import assembly, files, locating, shapes
from retinanet_tpu.data import annotations

# What an entry of each list must have, and how it is read.
_KEYS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "images": {"id": annotation_fields.integer, "file_name": annotation_fields.text},
    "annotations": {
        "image_id": annotation_fields.integer,
        "category_id": annotation_fields.integer,
    },
    "categories": {"id": annotation_fields.integer, "name": annotation_fields.label},
}
_EXPECTED = {
    annotation_fields.integer: "an integer",
    annotation_fields.text: "a text",
    annotation_fields.label: "a text",
}
_RENUMBERED = "files whose annotation ids are absent, repeated or below 1, renumbered"
_REPEATED = "categories that are listed more than once"
_REPEATED_IMAGES = "images that are listed more than once with one id"
_TEXT_IDS = "files whose image or category ids are texts, renumbered"
_UNLISTED = "objects of images that are not listed, dropped"
_ROOT = "categories that are only the supercategory of all others, left out"
_OTHER_AREA = "areas that do not fit their box, replaced by the box's"
_OUTLINE = "outline_box"  # Where `_keep_box` puts the box of a segmentation,
_AREA = "checked_area"  # and `_set_areas` an area.
_MAX_ID = 2**63 - 1
_MAX_UNLISTED = 0.5  # More are no left-overs, but of another file.
_REFERENCES = {"images": "image_id", "categories": "category_id"}


def read(
    path: str, *, pictures: files.ImageFolder | None = None
) -> annotations.AnnotatedSet:
    """Reads a COCO detection file.

    Annotation ids that are absent, repeated or not positive are replaced by 1, 2, ...
    because pycocotools takes id 0 for "no match". Ids of images and categories that are
    texts are numbered. Where an annotation has no box, that of its segmentation is
    used.

    Args:
      path: JSON with `images`, `annotations` and `categories`.
      images: The folder of images; None leaves the file names as they are written.

    Raises:
      UserError: a part or a key is missing or of another type, an id is negative or
        comes twice, or an annotation names an image or a category that is not listed.
      MissingFileError: there is no such file.
    """
    content = files.parse_json(
        files.read_bytes(path), path, without="segmentation", visit_fn=_keep_box
    )
    source, findings = os.path.basename(path), []
    _check_lists(content, path)
    if any([_number_texts(content, *keys) for keys in _REFERENCES.items()]):
        findings.append(annotations.ConversionEvent(_TEXT_IDS, source))
    _check_entries(content, path)
    _set_areas(content["annotations"])
    listed, repeated = _without_repeats(content["categories"], "name")
    findings += [
        annotations.ConversionEvent(_REPEATED, source, name) for name in repeated
    ]
    listed_images, repeated = _without_repeats(content["images"], "file_name")
    findings += [
        annotations.ConversionEvent(_REPEATED_IMAGES, source, name, name)
        for name in repeated
    ]
    _check_ids(listed_images, f"{path}: image id")
    _check_ids(listed, f"{path}: category id")
    if not _has_usable_ids(content["annotations"]):
        findings.append(annotations.ConversionEvent(_RENUMBERED, source))
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
        for image in listed_images
    ]
    categories, root = _without_root(listed, content["annotations"])
    findings += of_objects
    if root:
        detail = f"id {root['id']}, {root['name']!r}"
        findings.append(annotations.ConversionEvent(_ROOT, source, detail))
    if pictures is not None:
        images, findings = _located(images, findings, path, pictures)
    return annotations.AnnotatedSet(
        images,
        [{"id": c["id"], "name": c["name"]} for c in categories],
        tuple(findings),
    )


def _objects(
    content: dict[str, Any], category_ids: set[int], path: str
) -> tuple[
    dict[int, list[annotations.AnnotatedObject]], list[annotations.ConversionEvent]
]:
    """Returns the objects by image id, and findings about them."""
    objects, findings = collections.defaultdict(list), []
    names = {image["id"]: image["file_name"] for image in content["images"]}
    unlisted = [e for e in content["annotations"] if e["image_id"] not in names]
    if len(unlisted) > _MAX_UNLISTED * len(content["annotations"]):
        raise errors.UserError(
            f"{path}: annotation {unlisted[0]['id']} is of image "
            f"{unlisted[0]['image_id']}, which is not listed; so it is with "
            f"{len(unlisted)} of {len(content['annotations'])} annotations."
        )
    for entry in content["annotations"]:
        where = f"{path}: annotation {entry['id']}"
        place = f"{os.path.basename(path)}, annotation {entry['id']}"
        image_id, category_id = entry["image_id"], entry["category_id"]
        if image_id not in names:
            detail = f"image {image_id}"
            findings.append(annotations.ConversionEvent(_UNLISTED, place, detail))
            continue
        if category_id not in category_ids:
            raise errors.UserError(f"{where} has unlisted category {category_id}.")
        item, found = _object(entry, where)
        objects[image_id] += [item] if item else []
        findings += [
            annotations.ConversionEvent(what, place, detail, names[image_id])
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
    unlisted = annotations.images_without_annotation(pictures.names, used)
    return located, [*findings, *of_names, *unlisted]


def _keep_box(entry: dict[str, Any]) -> None:
    """Keeps the box of a segmentation, where the annotation has none with an area."""
    box_xywh = _box(entry.get("bbox"))
    if "segmentation" in entry and (box_xywh is None or 0 in box_xywh[2:]):
        found = shapes.segmentation_box(entry["segmentation"])
        if box_xywh is None or (found and 0 not in found[2:]):
            entry[_OUTLINE] = found


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
    box_xywh = entry.get(_OUTLINE) or _box(entry.get("bbox"))
    if box_xywh is None:
        return None, [(annotations.NO_BOX, f"bbox {reprlib.repr(entry.get('bbox'))}")]
    findings = [(assembly.FROM_OUTLINE, "")] if entry.get(_OUTLINE) else []
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
        source_line=entry["id"],
    ), findings


def _set_areas(entries: list[dict[str, Any]]) -> None:
    """Gives each annotation the area of its object, None where only its box has one."""
    boxes = [entry.get(_OUTLINE) or _box(entry.get("bbox")) for entry in entries]
    boxed = [(entry, box) for entry, box in zip(entries, boxes, strict=True) if box]
    annotated = [entry.get("area") for entry, _ in boxed]
    areas = annotation_fields.areas(annotated, [box[2:] for _, box in boxed])
    for (entry, _), area in zip(boxed, areas, strict=True):
        entry[_AREA] = area


def _check_lists(content: dict[str, Any], path: str) -> None:
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


def _number_texts(content: dict[str, Any], part: str, reference: str) -> bool:
    """Numbers the entries of a part if ids are texts, such as names of files.

    Args:
      content: The file.
      part: `images` or `categories`.
      reference: The key of annotations that has such an id.

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
            entry[reference] = numbers.get(text, 0)  # 0 is not listed.
    return True


def _check_entries(content: dict[str, Any], path: str) -> None:
    """Checks the entries of the lists; ids become integers, names texts."""
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
    entries: list[dict[str, Any]], key: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns entries less those of the same id and name, and these names."""
    first, repeated = {}, {}
    for entry in entries:
        if first.setdefault((entry["id"], entry[key]), entry) is not entry:
            repeated[entry[key]] = None
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
    """Returns a side of an image in px, 0 where the file does not say."""
    value = image.get(key)
    try:
        return int(float(value or 0))
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(
            f"{path}: image {image['id']} has {key} {reprlib.repr(value)}, no number."
        ) from error
