"""Reads CSV tables: a line for each box, in pixels, classes by name.

  image,xmin,ymin,xmax,ymax,class    with a header, in any order, more columns allowed
  image,x,y,width,height,class       the same; x and y are the upper left corner
  path,x1,y1,x2,y2,class             without a header, as keras-retinanet has it
  class,x,y,w,h,image,width,height   without a header, as makesense has it

A line without numbers is an image without objects.
"""

import collections
import itertools
import os
import posixpath
from collections.abc import Sequence
from typing import Any

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import (
    assembly,
    csv_header,
    files,
    locating,
    name_matching,
)
from retinanet_tpu.data import annotations

_ONLY_CLASS = "classes on lines without a box, taken for images without objects"
# Programs that count pixels inclusively have sizes larger by one.
_TOLERANCE = 1.01
_BLANK = ("", "nan", "null", "none", "na", "n/a", "<na>")  # As programs write it.


def read(
    path: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a table of boxes.

    Args:
      path: the CSV file.
      images: the folder of images, which the file's paths are relative to; they may
        also be absolute or relative to the CSV file.
      categories: the classes; None for all that occur in the file, sorted. One class
        is that of all boxes if the table has no column of classes.

    Raises:
      UserError: a column is missing, a line has too few fields or no numbers, or a
        class that is not known. The line is named.
    """
    rows = files.csv_rows(path)
    first = next(rows, None)
    if first is None:
        raise errors.UserError(f"{path} is empty.")
    only_class = categories[0]["name"] if categories and len(categories) == 1 else None
    header = csv_header.read(first[1], path, has_class=only_class is None)
    found, without_box, has_image_sizes = {}, collections.Counter(), False
    source = os.path.basename(path)
    for line, row in itertools.chain([] if header.is_line else [first], rows):
        if header.is_line and row == first[1]:
            continue  # Tables were put together.
        where = f"{path}, line {line}"
        fields = {"class": only_class} | _fields(row, header, where)
        written = name_matching.plain_path(fields["image"])
        if written not in found:
            size = files.sides(fields.get("height"), fields.get("width"), where)
            found[written] = assembly.ReadImage(written, *size, [], source)
        objects = _labeled(fields, header.sides, line, where)
        if not objects and header.has_class and not _is_blank(fields["class"]):
            without_box[fields["class"]] += 1
        has_image_sizes |= any(not _is_own_size(fields, o, where) for o in objects)
        found[written].objects.extend(objects)
    if not has_image_sizes:
        found = {n: p._replace(height=0, width=0) for n, p in found.items()}
    beside = os.path.dirname(path)
    names = [[(written, posixpath.join(beside, written))] for written in found]
    located, findings, used = locating.locate(
        list(found.values()), names, pictures, counts_renamed=True
    )
    merged = _merged(located)
    if categories is None:
        categories = assembly.classes_of(merged)
    findings += [
        annotations.ConversionEvent(_ONLY_CLASS, source, f"{label!r} on {count} lines")
        for label, count in without_box.items()
    ]
    findings += annotations.images_without_annotation(pictures.names, used)
    return assembly.assemble(merged, categories, unit="line", findings=findings)


def _fields(row: list[str], header: csv_header.Header, where: str) -> dict[str, str]:
    """Returns the fields of a line by their meaning.

    Raises:
      UserError: The line has more or fewer fields than the header.
    """
    if len(row) < header.num_fields or any(row[header.num_fields :]):
        raise errors.UserError(
            f"{where} has {len(row)} fields, expected {header.num_fields}; a field "
            "that holds a comma must be in quotes."
        )
    return {name: row[column] for name, column in header.columns.items()}


def _is_blank(text: str) -> bool:
    return text.strip().lower() in _BLANK


def _merged(images: list[assembly.ReadImage]) -> list[assembly.ReadImage]:
    """Puts the boxes of an image together that the table names in several ways."""
    merged = {}
    for image in images:
        first = merged.setdefault(image.file_name, image)
        if first is not image:
            first.objects.extend(image.objects)
    return list(merged.values())


def _labeled(
    fields: dict[str, str], sides: Sequence[str], line: int, where: str
) -> list[assembly.LabeledBox]:
    values = [fields[side] for side in sides]
    if all(map(_is_blank, values)):
        return []
    label = annotation_fields.label(fields["class"])
    if not label:
        raise errors.UserError(f"{where} has a box and no class.")
    box_xywh = tuple(files.numbers(values, where))
    if sides == csv_header.CORNERS:
        box_xywh = assembly.corners_to_xywh(*box_xywh)
    return [assembly.LabeledBox(label, box_xywh, line)]


def _is_own_size(fields: dict[str, str], item: assembly.LabeledBox, where: str) -> bool:
    """Returns whether `width` and `height` of a line are those of its box."""
    sizes = files.numbers((fields.get(k) or 0 for k in ("width", "height")), where)
    differences = (a - b for a, b in zip(sizes, item.box_xywh[2:], strict=True))
    return all(abs(difference) < _TOLERANCE for difference in differences)
