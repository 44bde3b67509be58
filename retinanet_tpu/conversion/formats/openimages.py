"""Reads Open Images: a CSV line for each box, as shares of the image's sides.

Classes are machine ids (/m/01yrx), whose names stand in a file of their own.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import assembly, files, locating
from retinanet_tpu.data import annotations

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_NEEDED = ("ImageID", "LabelName", *_CORNERS)
_CROWD = "IsGroupOf"
_UNKNOWN = ("-1", "-1.0")  # Of the flags.
# Few people fetch all of Open Images, so it is no fault.
_NOT_FETCHED = "annotated images not in the folder, left out"


class ClassList(NamedTuple):
    """The classes of a descriptions file."""

    categories: list[dict[str, Any]]
    ids: dict[str, int]  # machine id -> category id


def read(
    path: str, *, pictures: files.ImageFolder, classes: ClassList
) -> annotations.AnnotatedSet:
    """Reads a table of boxes; IsGroupOf makes a box a crowd.

    Args:
      path: the CSV file with a header, as `train-annotations-bbox.csv`.
      images: the folder of images, their names without extension the ImageIDs. Boxes
        of others are passed over, as few people fetch all of Open Images.
      classes: of `read_classes`.

    Raises:
      UserError: a column is missing, a line has too few fields or no numbers, no
        image is there, or a class that is not known. The line is named.
    """
    source, first_lines, found = os.path.basename(path), {}, {}
    for line, fields in _records(path):
        first_lines.setdefault(fields["ImageID"], line)
    matches = pictures.match({image_id: [[image_id]] for image_id in first_lines})
    # Read again, as the lines of images that are not there would fill the memory.
    for line, fields in _records(path):
        image_id = fields["ImageID"]
        if file_name := matches.names.get(image_id):
            empty = assembly.ReadImage(file_name, 0, 0, [], source)
            item = _labeled(fields, line, path)
            found.setdefault(image_id, empty).objects.append(item)
    if not found:
        raise errors.UserError(
            f"No image of the {len(first_lines)} images in {path}, such as "
            f"{next(iter(first_lines), None)}, is there; check --images."
        )
    findings = []
    for image_id, line in first_lines.items():
        where = f"{source}, line {line}"
        if several := matches.several.get(image_id):
            findings.append(locating.several_meant(image_id, several, where))
        elif image_id not in found:
            findings.append(
                annotations.ConversionEvent(_NOT_FETCHED, image_id, where, image_id)
            )
    listed = {*matches.names.values()}.union(*matches.several.values())
    findings += annotations.images_without_annotation(pictures.names, listed)
    return assembly.assemble(
        found.values(),
        classes.categories,
        unit="line",
        findings=findings,
        ids=classes.ids,
        is_norm=True,
    )


def _records(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields line number and fields by column of each line after the header."""
    rows = files.csv_rows(path)
    _, header = next(rows, (1, []))
    absent = [name for name in _NEEDED if name not in header]
    if absent:
        raise errors.UserError(
            f"{path}, line 1 lacks {', '.join(absent)}; expected the header of Open "
            "Images: ImageID,LabelName,XMin,XMax,YMin,YMax and more."
        )
    for line, row in rows:
        if len(row) != len(header):
            raise errors.UserError(
                f"{path}, line {line} has {len(row)} fields, expected {len(header)}."
            )
        yield line, dict(zip(header, row, strict=True))


def _labeled(fields: dict[str, str], line: int, path: str) -> assembly.LabeledBox:
    where = f"{path}, line {line}"
    corners = files.numbers([fields[name] for name in _CORNERS], where)
    box_xywh = assembly.corners_to_xywh(*corners)
    group = fields.get(_CROWD)
    is_crowd = group not in _UNKNOWN and annotation_fields.is_set(
        group, f"{where} has {_CROWD}"
    )
    return assembly.LabeledBox(fields["LabelName"], box_xywh, line, is_crowd)


def read_classes(path: str) -> ClassList:
    """Reads a class-descriptions file, with or without a header.

    Raises:
      UserError: a line is no pair of machine id and name, or a machine id comes twice.
    """
    names = {}
    for line, row in files.csv_rows(path):
        if line == 1 and row[0] == "LabelName":
            continue
        if len(row) != 2 or not all(row):
            raise errors.UserError(
                f"{path}, line {line} is {row}; expected /m/id,name."
            )
        if row[0] in names:
            raise errors.UserError(f"{path}, line {line} has {row[0]} a second time.")
        names[row[0]] = row[1]
    categories = assembly.number_classes(names.values())
    ids = {label: i for i, label in enumerate(names, start=1)}
    return ClassList(categories, ids)
