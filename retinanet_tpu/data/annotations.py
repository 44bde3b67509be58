"""Readers of annotation files: each format becomes one list of AnnotatedImage."""

import collections
import json
import os
import xml.etree.ElementTree
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf


class AnnotatedObject(NamedTuple):
    """One box of an image, as annotated."""

    annotation_id: int
    category_id: int
    box_xywh: tuple[float, float, float, float]  # px of the image: left, top, size
    area: float  # px^2 of the object's outline, or of its box
    is_crowd: bool


class AnnotatedImage(NamedTuple):
    """One image and its objects, in whatever format they were annotated."""

    image_id: int
    file_name: str  # relative to the folder of images
    height: int  # as annotated; 0 where the annotation does not say
    width: int
    objects: tuple[AnnotatedObject, ...]


class AnnotatedSet(NamedTuple):
    """What an annotation file says; categories are COCO's dicts of id and name."""

    images: list[AnnotatedImage]
    categories: list[dict[str, Any]]


def read_coco(path: str) -> AnnotatedSet:
    """Reads a COCO detection file.

    Annotation ids that are absent, repeated or not positive are replaced by 1, 2, ...
    because pycocotools takes id 0 for "no match".

    Args:
      path: JSON with `images`, `annotations` and `categories`.

    Raises:
      ValueError: a part is missing or empty, an id comes twice, or an annotation names
        an image or a category that is not listed.
    """
    with tf.io.gfile.GFile(path) as file:
        try:
            content = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}.") from error
    keys = set(content) if isinstance(content, dict) else set()
    absent = [k for k in ("images", "annotations", "categories") if k not in keys]
    if absent:
        raise ValueError(
            f"{path} lacks {', '.join(absent)}; a COCO detection file has images, "
            "annotations and categories."
        )
    if not content["images"]:
        raise ValueError(f"{path} lists no images; check that it is the right file.")
    image_ids = [image["id"] for image in content["images"]]
    _check_unique(image_ids, f"{path}: image id")
    known_images = set(image_ids)
    known_categories = {category["id"] for category in content["categories"]}
    objects = collections.defaultdict(list)
    for annotation in _with_positive_ids(content["annotations"]):
        where = f"{path}: annotation {annotation['id']}"
        image_id, category_id = annotation["image_id"], annotation["category_id"]
        if image_id not in known_images:
            raise ValueError(f"{where} is of image {image_id}, which is not listed.")
        if category_id not in known_categories:
            raise ValueError(f"{where} has unlisted category {category_id}.")
        objects[image_id].append(_coco_object(annotation, where))
    images = [
        AnnotatedImage(
            image_id=int(image["id"]),
            file_name=image["file_name"],
            height=int(image.get("height") or 0),
            width=int(image.get("width") or 0),
            objects=tuple(objects[image["id"]]),
        )
        for image in content["images"]
    ]
    categories = [{"id": c["id"], "name": c["name"]} for c in content["categories"]]
    return AnnotatedSet(images, categories)


def read_voc(
    directory: str,
    *,
    image_names: Iterable[str],
    split_file: str | None = None,
    names: Sequence[str] | None = None,
) -> AnnotatedSet:
    """Reads a folder of Pascal VOC XML files.

    Coordinates are taken as they stand; `difficult` is ignored. Image ids are the
    files' stems where all are numbers, else 1, 2, ... in order of stem.

    Args:
      directory: the XML files.
      image_names: the files of the folder of images.
      split_file: text file, a stem on each line, as in ImageSets/Main; None for all.
      names: the classes in order of id 1, 2, ...; None for all that occur in the
        folder, sorted, whatever the split.

    Raises:
      ValueError: no XML file, one that cannot be parsed, or a class not in `names`.
      FileNotFoundError: the split names a stem without an XML file.
    """
    paths = sorted(tf.io.gfile.glob(os.path.join(directory, "*.xml")))
    if not paths:
        raise ValueError(f"{directory} holds no .xml file; check --annotations.")
    roots = {_stem(path): _parse_xml(path) for path in paths}
    if names is None:
        found = {
            e.findtext("name", "") for r in roots.values() for e in r.iter("object")
        }
        names = sorted(found)
    stems = sorted(_split_stems(split_file)) if split_file else list(roots)
    for stem in stems:
        if stem not in roots:
            raise FileNotFoundError(
                f"{split_file} names {stem}; {directory} has no {stem}.xml."
            )
    ids = [int(s) for s in stems] if all(map(str.isdecimal, stems)) else []
    if len(set(ids)) < len(stems):
        ids = range(1, len(stems) + 1)
    files = {_stem(name): name for name in sorted(image_names)}
    category_ids = {name: position for position, name in enumerate(names, start=1)}
    images, next_id = [], 1
    for image_id, stem in zip(ids, stems, strict=True):
        path = os.path.join(directory, f"{stem}.xml")
        objects = _voc_objects(roots[stem], category_ids, next_id, path)
        next_id += len(objects)
        written = roots[stem].findtext("filename") or f"{stem}.jpg"
        images.append(
            AnnotatedImage(
                image_id=image_id,
                # Tools that rename pictures often leave <filename> behind.
                file_name=files.get(stem) or files.get(_stem(written)) or written,
                height=int(roots[stem].findtext("size/height") or 0),
                width=int(roots[stem].findtext("size/width") or 0),
                objects=objects,
            )
        )
    categories = [{"id": i, "name": name} for name, i in category_ids.items()]
    return AnnotatedSet(images, categories)


def write_coco(annotated: AnnotatedSet, path: str, *, description: str) -> None:
    """Writes a COCO detection file, the same bytes for the same images."""
    content = {
        # pycocotools >= 2.0.9 refuses a file without `info`.
        "info": {"description": description},
        "images": [
            {
                "id": i.image_id,
                "file_name": i.file_name,
                "height": i.height,
                "width": i.width,
            }
            for i in annotated.images
        ],
        "annotations": [
            {
                "id": o.annotation_id,
                "image_id": image.image_id,
                "category_id": o.category_id,
                "bbox": list(o.box_xywh),
                "area": o.area,
                "iscrowd": int(o.is_crowd),
            }
            for image in annotated.images
            for o in image.objects
        ],
        "categories": annotated.categories,
    }
    with tf.io.gfile.GFile(path, "w") as file:
        file.write(json.dumps(content) + "\n")


def _coco_object(annotation: dict[str, Any], where: str) -> AnnotatedObject:
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where} has bbox {annotation.get('bbox')!r}; expected [x, y, width, "
            "height] in pixels."
        ) from error
    area = annotation.get("area")
    return AnnotatedObject(
        annotation_id=annotation["id"],
        category_id=int(annotation["category_id"]),
        box_xywh=(x, y, width, height),
        area=width * height if area is None else float(area),
        is_crowd=bool(annotation.get("iscrowd", 0)),
    )


def _with_positive_ids(annotations: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ids = [annotation.get("id") for annotation in annotations]
    if all(isinstance(i, int) and i > 0 for i in ids) and len(set(ids)) == len(ids):
        return annotations
    return [{**a, "id": number} for number, a in enumerate(annotations, start=1)]


def _check_unique(values: list[int], what: str) -> None:
    for value, count in collections.Counter(values).items():
        if count > 1:
            raise ValueError(f"{what} {value} comes {count} times; ids must differ.")


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def _split_stems(split_file: str) -> list[str]:
    """Returns the stems of a split; in VOC's lists of a class -1 marks absence."""
    with tf.io.gfile.GFile(split_file) as file:
        rows = [line.split() for line in file.read().splitlines()]
    stems = [row[0] for row in rows if row and row[1:] != ["-1"]]
    if not stems:
        raise ValueError(f"{split_file} names no image.")
    return stems


def _parse_xml(path: str) -> xml.etree.ElementTree.Element:
    with tf.io.gfile.GFile(path, "rb") as file:
        try:
            return xml.etree.ElementTree.fromstring(file.read())
        except xml.etree.ElementTree.ParseError as error:
            raise ValueError(f"{path} is not XML: {error}.") from error


def _voc_objects(
    root: xml.etree.ElementTree.Element,
    category_ids: dict[str, int],
    first_id: int,
    path: str,
) -> tuple[AnnotatedObject, ...]:
    objects = []
    for annotation_id, element in enumerate(root.iter("object"), start=first_id):
        name = element.findtext("name", "")
        if name not in category_ids:
            raise ValueError(
                f"{path} has an object of class {name!r}; known classes are "
                f"{', '.join(category_ids)} (--names or categories.json)."
            )
        corners = [
            element.findtext(f"bndbox/{c}") for c in ("xmin", "ymin", "xmax", "ymax")
        ]
        if None in corners:
            raise ValueError(f"{path} has an object without a full <bndbox>.")
        xmin, ymin, xmax, ymax = map(float, corners)
        width, height = xmax - xmin, ymax - ymin
        box = (xmin, ymin, width, height)
        area = width * height
        objects.append(
            AnnotatedObject(annotation_id, category_ids[name], box, area, False)
        )
    return tuple(objects)
