"""Reads CSV tables: a line for each box, in pixels, classes by name.

  image,xmin,ymin,xmax,ymax,class    with a header, in any order, more columns allowed
  path,x1,y1,x2,y2,class             without one, as keras-retinanet has it

A line without numbers and class is an image without objects.
"""

import itertools
import os
import posixpath
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import (
    assembly,
    files,
    locating,
    name_matching,
)

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# What headers call a column; all but the size of the picture must be there.
_ALIASES = {
    "image": ("image", "filename", "file_name", "path"),
    "xmin": ("xmin", "x1"),
    "ymin": ("ymin", "y1"),
    "xmax": ("xmax", "x2"),
    "ymax": ("ymax", "y2"),
    "class": ("class", "label", "name"),
    "width": ("width",),
    "height": ("height",),
}
_OPTIONAL = ("width", "height")
_WITHOUT_HEADER = ("image", *_CORNERS, "class")


class _Layout(NamedTuple):
    """Which field of a line is what."""

    columns: dict[str, int]
    num_fields: int


def read(
    path: str,
    *,
    pictures: files.Pictures,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads a table of boxes.

    Args:
      path: the CSV file.
      pictures: the folder of images, which the file's paths are relative to; they may
        also be absolute or relative to the CSV file.
      categories: the classes; None for all that occur in the file, sorted.

    Raises:
      UserError: a column is missing, a line has too few fields or no numbers, or a
        class that is not known. The line is named.
    """
    rows = files.csv_rows(path)
    first = next(rows, None)
    if first is None:
        raise errors.UserError(f"{path} is empty.")
    layout, has_header = _layout(first[1], path)
    found, source = {}, os.path.basename(path)
    for line, row in itertools.chain([] if has_header else [first], rows):
        where = f"{path}, line {line}"
        if len(row) != layout.num_fields:
            raise errors.UserError(
                f"{where} has {len(row)} fields, expected {layout.num_fields}; a field "
                "that holds a comma must be in quotes."
            )
        fields = {name: row[column] for name, column in layout.columns.items()}
        written = name_matching.plain_path(fields["image"])
        if written not in found:
            size = files.sides(fields.get("height"), fields.get("width"), where)
            found[written] = assembly.Picture(written, *size, [], source)
        found[written].objects.extend(_labelled(fields, line, where))
    beside = os.path.dirname(path)
    names = [[(written, posixpath.join(beside, written))] for written in found]
    located, findings, used = locating.locate(
        list(found.values()), names, pictures, counts_renamed=True
    )
    merged = _merged(located)
    if categories is None:
        categories = assembly.found_classes(merged)
    findings += annotations.pictures_without_annotation(pictures.names, used)
    return assembly.assemble(merged, categories, unit="line", findings=findings)


def _merged(images: list[assembly.Picture]) -> list[assembly.Picture]:
    """Puts the boxes of an image together that the table names in several ways."""
    merged = {}
    for image in images:
        first = merged.setdefault(image.file_name, image)
        if first is not image:
            first.objects.extend(image.objects)
    return list(merged.values())


def _layout(row: list[str], path: str) -> tuple[_Layout, bool]:
    """Returns the places of the columns, and whether the row is a header."""
    if len(row) == len(_WITHOUT_HEADER) and _is_box(row):
        return _Layout({name: i for i, name in enumerate(_WITHOUT_HEADER)}, 6), False
    header = [name.strip().lower() for name in row]
    columns = {}
    for name, aliases in _ALIASES.items():
        places = [header.index(alias) for alias in aliases if alias in header]
        if places:
            columns[name] = places[0]
    absent = [n for n in _ALIASES if n not in columns and n not in _OPTIONAL]
    if absent:
        raise errors.UserError(
            f"{path}, line 1 is {','.join(row)!r}, which lacks {', '.join(absent)}; "
            "expected a header with image,xmin,ymin,xmax,ymax,class, or lines of "
            "path,x1,y1,x2,y2,class, with commas between."
        )
    return _Layout(columns, len(row)), True


def _is_box(row: list[str]) -> bool:
    """Returns whether a line without header is a box, or an image without any."""
    if not any(row[1:]):
        return True
    try:
        files.numbers(row[1:5], "")
    except ValueError:
        return False
    return True


def _labelled(fields: dict[str, str], line: int, where: str) -> list[assembly.Labelled]:
    corners = [fields[side] for side in _CORNERS]
    if not any(corners) and not fields["class"]:
        return []
    if not fields["class"]:
        raise errors.UserError(f"{where} has a box and no class.")
    box_xywh = assembly.corners_to_xywh(*files.numbers(corners, where))
    return [assembly.Labelled(fields["class"], box_xywh, line)]
