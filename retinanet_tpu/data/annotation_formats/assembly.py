"""From what the files of a format say to an AnnotatedSet: ids, classes, areas."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.data import annotations

# What image/source_id may hold, and fits an int64.
_MAX_DIGITS = 18


class Labelled(NamedTuple):
    """One box as a file has it."""

    label: str  # what the file calls the class
    box_xywh: tuple[float, float, float, float]
    place: int  # which line or record of the file
    is_crowd: bool = False


class Picture(NamedTuple):
    """One picture as a file has it."""

    file_name: str
    height: int  # 0 where the file does not say
    width: int
    objects: Sequence[Labelled]
    source: str


def number_classes(labels: Iterable[str], *, first_id: int = 1) -> list[dict[str, Any]]:
    """Returns COCO's categories of class names, numbered in their order."""
    return [{"id": i, "name": name} for i, name in enumerate(labels, start=first_id)]


def found_classes(pictures: Iterable[Picture]) -> list[dict[str, Any]]:
    """Returns COCO's categories of all classes that occur, sorted by name."""
    return number_classes(sorted({o.label for p in pictures for o in p.objects}))


def assemble(
    pictures: Iterable[Picture],
    categories: list[dict[str, Any]],
    *,
    unit: str,
    findings: Sequence[annotations.Finding] = (),
    ids: Mapping[str, int] | None = None,
    is_norm: bool = False,
) -> annotations.AnnotatedSet:
    """Makes the record of what the files of a format say.

    Images are sorted by name. Their ids are the names where all are numbers, else 1,
    2, ...; annotation ids run on.

    Args:
      pictures: each once.
      categories: COCO's dicts of id and name.
      unit: what the places count, for reports.
      findings: of the reading.
      ids: what the files call a class -> category id; None if it is the name.
      is_norm: boxes are shares of the picture's sides.

    Raises:
      UserError: an object is of none of the classes.
    """
    if ids is None:
        ids = {category["name"]: category["id"] for category in categories}
    pictures = sorted(pictures, key=lambda p: (annotations.stem(p.file_name), p))
    images, next_id = [], 1
    for image_id, picture in zip(_image_ids(pictures), pictures, strict=True):
        objects = []
        for item in picture.objects:
            if item.label not in ids:
                raise errors.UserError(_unknown(item, picture, unit, ids))
            area = item.box_xywh[2] * item.box_xywh[3]
            objects.append(
                annotations.AnnotatedObject(
                    annotation_id=next_id + len(objects),
                    category_id=ids[item.label],
                    box_xywh=item.box_xywh,
                    area=area,
                    is_crowd=item.is_crowd,
                    place=item.place,
                )
            )
        next_id += len(objects)
        images.append(
            annotations.AnnotatedImage(
                image_id=image_id,
                file_name=picture.file_name,
                height=picture.height,
                width=picture.width,
                objects=tuple(objects),
                source=picture.source,
                unit=unit,
                is_norm=is_norm,
            )
        )
    return annotations.AnnotatedSet(images, categories, tuple(findings))


def corners_to_xywh(
    xmin: float, ymin: float, xmax: float, ymax: float
) -> tuple[float, float, float, float]:
    """Returns left, top, width and height; sizes are negative for swapped corners."""
    return xmin, ymin, xmax - xmin, ymax - ymin


def frame(points: Iterable[Sequence[float]]) -> tuple[float, float, float, float]:
    """Returns left, top, width and height of the box around points (x, y)."""
    xs, ys = zip(*points, strict=True)
    if not all(map(math.isfinite, (*xs, *ys))):  # min and max pass over NaN.
        return (math.nan,) * 4
    return corners_to_xywh(min(xs), min(ys), max(xs), max(ys))


def _image_ids(pictures: list[Picture]) -> Iterable[int]:
    stems = [annotations.stem(picture.file_name) for picture in pictures]
    if all(s.isdecimal() and len(s) <= _MAX_DIGITS for s in stems):
        ids = [int(s) for s in stems]
        if len(set(ids)) == len(ids):
            return ids
    return range(1, len(pictures) + 1)


def _unknown(
    item: Labelled, picture: Picture, unit: str, ids: Mapping[str, int]
) -> str:
    same = [name for name in ids if _plain(name) == _plain(item.label)]
    hint = f" {same[0]!r} differs in case or blanks only." if same else ""
    known = ", ".join(list(ids)[:10]) + (", ..." if len(ids) > 10 else "")
    return (
        f"{picture.source}, {unit} {item.place} has class {item.label!r}; known are "
        f"{known}.{hint} They come from --names, --classes or categories.json."
    )


def _plain(name: str) -> str:
    return "".join(name.split()).casefold()
