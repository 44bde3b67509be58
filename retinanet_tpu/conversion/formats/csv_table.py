"""Reads CSV tables: one line per box, in pixels, classes by name.

  image,xmin,ymin,xmax,ymax,class    with a header, in any order, more columns allowed
  image,x,y,width,height,class       with a header; x and y are the upper left corner
  path,x1,y1,x2,y2,class             without a header, as in keras-retinanet
  class,x,y,w,h,image,width,height   without a header, as in makesense

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

_ONLY_CLASS = "classes on lines without a box, stored as images without objects"
# Tools that count pixels inclusively write sizes that are larger by one.
_TOLERANCE = 1.01
# Missing values in the spelling of other tools.
_BLANK = ("", "nan", "null", "none", "na", "n/a", "<na>")


def read(
    path: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a table of boxes.

    Args:
      path: The CSV file.
      image_folder: The folder of images. The paths in the table may be absolute,
        relative to this folder or relative to the CSV file.
      categories: The classes; None for all that occur in the file, sorted. A single
        class is the class of all boxes if the table has no column of classes.

    Raises:
      UserError: A column is missing, a line has too few fields, a field is not a
        number, or a class is unknown. The message contains the line.
      MissingFileError: The file does not exist.
    """
    rows = files.csv_rows(path)
    first = next(rows, None)
    if first is None:
        raise errors.UserError(f"{path} is empty.")
    only_class = categories[0]["name"] if categories and len(categories) == 1 else None
    header = csv_header.read(first[1], path, has_class=only_class is None)
    source = os.path.basename(path)
    sizes: dict[str, tuple[int, int]] = {}
    objects: dict[str, list[assembly.LabeledBox]] = {}
    without_box: collections.Counter[str] = collections.Counter()
    has_image_sizes = False
    for line, row in itertools.chain([] if header.has_header_line else [first], rows):
        if header.has_header_line and row == first[1]:
            continue  # Concatenated tables repeat the header.
        where = f"{path}, line {line}"
        fields = {"class": only_class or ""} | _fields(row, header, where)
        written = name_matching.plain_path(fields["image"])
        if written not in sizes:
            height, width = fields.get("height"), fields.get("width")
            sizes[written] = files.image_size(height, width, where)
        boxes = _labeled_boxes(fields, header.sides, line, where)
        if not boxes and header.has_class and not _is_blank(fields["class"]):
            without_box[fields["class"]] += 1
        has_image_sizes |= any(not _is_own_size(fields, box, where) for box in boxes)
        objects.setdefault(written, []).extend(boxes)
    images = [
        assembly.ReadImage(
            written, *(size if has_image_sizes else (0, 0)), objects[written], source
        )
        for written, size in sizes.items()
    ]
    beside = os.path.dirname(path)
    names = [[(written, posixpath.join(beside, written))] for written in sizes]
    located, events, matched = locating.locate(
        images, names, image_folder, counts_renamed=True
    )
    merged = _merged(located)
    if categories is None:
        categories = assembly.classes_of(merged)
    events += [
        annotations.ConversionEvent(_ONLY_CLASS, source, f"{label!r} on {count} lines")
        for label, count in without_box.items()
    ]
    events += annotations.images_without_annotation(image_folder.names, matched)
    return assembly.assemble(merged, categories, unit="line", events=events)


def _fields(row: list[str], header: csv_header.Header, where: str) -> dict[str, str]:
    """Returns the fields of a line by column, as in `Header.columns`.

    Raises:
      UserError: The line has more or fewer fields than the header.
    """
    if len(row) < header.num_fields or any(row[header.num_fields :]):
        raise errors.UserError(
            f"{where} has {len(row)} fields, expected {header.num_fields}; a field "
            "that contains a comma must be in quotes."
        )
    return {name: row[column] for name, column in header.columns.items()}


def _is_blank(text: str) -> bool:
    """Returns whether a field is a missing value."""
    return text.strip().lower() in _BLANK


def _merged(images: list[assembly.ReadImage]) -> list[assembly.ReadImage]:
    """Returns each image once, with the boxes of all spellings of its name."""
    first: dict[str, assembly.ReadImage] = {}
    objects: dict[str, list[assembly.LabeledBox]] = {}
    for image in images:
        first.setdefault(image.file_name, image)
        objects.setdefault(image.file_name, []).extend(image.objects)
    return [image._replace(objects=objects[name]) for name, image in first.items()]


def _labeled_boxes(
    fields: dict[str, str], sides: Sequence[str], line: int, where: str
) -> list[assembly.LabeledBox]:
    """Returns the box of a line; an empty list if it has none."""
    values = [fields[side] for side in sides]
    if all(map(_is_blank, values)):
        return []
    label = annotation_fields.label(fields["class"])
    if not label:
        raise errors.UserError(f"{where} has a box and no class.")
    left, top, third, fourth = files.numbers(values, where)
    if sides == csv_header.CORNERS:
        box_xywh = assembly.corners_to_xywh(left, top, third, fourth)
    else:
        box_xywh = (left, top, third, fourth)
    return [assembly.LabeledBox(label, box_xywh, line)]


def _is_own_size(fields: dict[str, str], box: assembly.LabeledBox, where: str) -> bool:
    """Returns whether `width` and `height` of a line are the size of its box."""
    sizes = files.numbers((fields.get(k) or 0 for k in ("width", "height")), where)
    differences = (a - b for a, b in zip(sizes, box.box_xywh[2:], strict=True))
    return all(abs(difference) < _TOLERANCE for difference in differences)
