"""COCO's detection files: one JSON for a set, boxes in pixels, ids of its own."""

import collections
import os
from collections.abc import Iterable
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import files

# What an entry of each list must have, and of which type.
_KEYS = {
    "images": {"id": int, "file_name": str},
    "annotations": {"image_id": int, "category_id": int, "bbox": list},
    "categories": {"id": int, "name": str},
}
_RENUMBERED = "files whose annotation ids are absent, repeated or below 1, renumbered"


def read(path: str, *, image_names: Iterable[str] = ()) -> annotations.AnnotatedSet:
    """Reads a COCO detection file.

    Annotation ids that are absent, repeated or not positive are replaced by 1, 2, ...
    because pycocotools takes id 0 for "no match".

    Args:
      path: JSON with `images`, `annotations` and `categories`.
      image_names: the folder's pictures, to find those that are not listed.

    Raises:
      UserError: a part or a key is missing or of another type, an id is negative or
        comes twice, or an annotation names an image or a category that is not listed.
      MissingFileError: there is no such file.
    """
    content = files.parse_json(files.read_bytes(path), path, without="segmentation")
    _check_parts(content, path)
    image_ids = _unique_ids(content["images"], f"{path}: image id")
    category_ids = _unique_ids(content["categories"], f"{path}: category id")
    source, findings = os.path.basename(path), []
    ids = [annotation.get("id") for annotation in content["annotations"]]
    if not (all(_is_a(i, int) and i > 0 for i in ids) and len(set(ids)) == len(ids)):
        findings.append(annotations.Finding(_RENUMBERED, source))
        ids = range(1, len(ids) + 1)
    objects = collections.defaultdict(list)
    for number, annotation in zip(ids, content["annotations"], strict=True):
        where = f"{path}: annotation {number}"
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in image_ids:
            raise errors.UserError(
                f"{where} is of image {image_id}, which is not listed."
            )
        if category_id not in category_ids:
            raise errors.UserError(f"{where} has unlisted category {category_id}.")
        objects[image_id].append(_object(annotation, number, where))
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
    listed = {image.file_name for image in images}
    findings += annotations.pictures_without_annotation(image_names, listed)
    categories = [{"id": c["id"], "name": c["name"]} for c in content["categories"]]
    return annotations.AnnotatedSet(images, categories, tuple(findings))


def _object(
    annotation: dict[str, Any], number: int, where: str
) -> annotations.AnnotatedObject:
    area = annotation.get("area")
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
        area = width * height if area is None else float(area)
    except (TypeError, ValueError) as error:
        raise errors.UserError(
            f"{where} has bbox {annotation['bbox']!r} and area {area!r}; expected [x, "
            "y, width, height] in pixels and a number."
        ) from error
    return annotations.AnnotatedObject(
        annotation_id=number,
        category_id=annotation["category_id"],
        box_xywh=(x, y, width, height),
        area=area,
        is_crowd=bool(annotation.get("iscrowd", 0)),
        place=number,
    )


def _check_parts(content: dict[str, Any], path: str) -> None:
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
                raise errors.UserError(f"{where} is {entry!r}; expected an object.")
            for key, kind in keys.items():
                if key not in entry:
                    raise errors.UserError(
                        f"{where} lacks {key!r}; it has {', '.join(entry)}."
                    )
                if not _is_a(entry[key], kind):
                    raise errors.UserError(
                        f"{where} has {key} {entry[key]!r}; expected {kind.__name__}."
                    )


def _is_a(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _unique_ids(entries: list[dict[str, Any]], what: str) -> set[int]:
    for value, count in collections.Counter(entry["id"] for entry in entries).items():
        if count > 1:
            raise errors.UserError(
                f"{what} {value} comes {count} times; ids must differ."
            )
        if value < 0:
            raise errors.UserError(f"{what} {value} is negative; expected 0 or more.")
    return {entry["id"] for entry in entries}


def _side(image: dict[str, Any], key: str, path: str) -> int:
    """Returns a side of a picture in px, 0 where the file does not say."""
    value = image.get(key)
    try:
        return int(value or 0)
    except (TypeError, ValueError, OverflowError) as error:
        raise errors.UserError(
            f"{path}: image {image['id']} has {key} {value!r}, no number."
        ) from error
