"""Reads Open Images: one CSV line per box, in fractions of the image's sides.

Classes are machine ids such as /m/01yrx. Their names are in a separate file.
"""

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import assembly, files, locating
from retinanet_tpu.data import annotations

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_REQUIRED = ("ImageID", "LabelName", *_CORNERS)
_CROWD = "IsGroupOf"
_UNKNOWN = ("-1", "-1.0")  # Values of IsGroupOf.
# Most users download only a part of Open Images, so this is not an error.
_NOT_DOWNLOADED = "annotated images not in the folder, left out"


class ClassList(NamedTuple):
    """The classes of a descriptions file.

    Attributes:
      categories: COCO's dicts of id and name.
      ids: The category id of each machine id.
    """

    categories: list[dict[str, Any]]
    ids: dict[str, int]


def read(
    path: str, *, image_folder: files.ImageFolder, classes: ClassList
) -> annotations.AnnotatedSet:
    """Reads a table of boxes. A box with IsGroupOf becomes a crowd.

    Args:
      path: The CSV file with a header, such as `train-annotations-bbox.csv`.
      image_folder: The folder of images. Their names without extension are the
        ImageIDs. Boxes of images outside the folder are skipped and counted.
      classes: The classes, as returned by `read_classes`.

    Raises:
      UserError: A column is missing, a line has too few fields, a field is not a
        number, no annotated image is in the folder, or a class is unknown. The message
        contains the line.
    """
    source = os.path.basename(path)
    first_lines: dict[str, int] = {}
    for line, fields in _records(path):
        first_lines.setdefault(fields["ImageID"], line)
    matches = image_folder.match({image_id: [[image_id]] for image_id in first_lines})
    objects: dict[str, list[assembly.LabeledBox]] = {}
    # The file is read twice: keeping the lines of absent images would fill the memory.
    for line, fields in _records(path):
        image_id = fields["ImageID"]
        if image_id in matches.names:
            objects.setdefault(image_id, []).append(_labeled_box(fields, line, path))
    if not objects:
        raise errors.UserError(
            f"None of the {len(first_lines)} images in {path}, such as "
            f"{next(iter(first_lines), None)}, exists; check --images."
        )
    events: list[annotations.ConversionEvent] = []
    for image_id, line in first_lines.items():
        where = f"{source}, line {line}"
        if several := matches.several.get(image_id):
            events.append(locating.ambiguous_name(image_id, several, where))
        elif image_id not in objects:
            events.append(
                annotations.ConversionEvent(_NOT_DOWNLOADED, image_id, where, image_id)
            )
    annotated = {*matches.names.values()}.union(*matches.several.values())
    events += annotations.images_without_annotation(image_folder.names, annotated)
    return assembly.assemble(
        [
            assembly.ReadImage(matches.names[image_id], 0, 0, boxes, source)
            for image_id, boxes in objects.items()
        ],
        classes.categories,
        unit="line",
        events=events,
        ids=classes.ids,
        is_norm=True,
    )


def _records(path: str) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the number and the fields, by column, of each line after the header."""
    rows = files.csv_rows(path)
    _, header = next(rows, (1, []))
    absent = [name for name in _REQUIRED if name not in header]
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


def _labeled_box(fields: dict[str, str], line: int, path: str) -> assembly.LabeledBox:
    """Returns the box of a line."""
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

    Args:
      path: The CSV file. Each line contains a machine id and a name.

    Raises:
      UserError: A line is not a pair of machine id and name, or a machine id is
        repeated.
    """
    names: dict[str, str] = {}
    for line, row in files.csv_rows(path):
        if line == 1 and row[0] == "LabelName":
            continue
        if len(row) != 2 or not all(row):
            raise errors.UserError(
                f"{path}, line {line} is {row}; expected /m/id,name."
            )
        if row[0] in names:
            raise errors.UserError(
                f"{path}, line {line} repeats {row[0]}; remove one of the two lines."
            )
        names[row[0]] = row[1]
    categories = assembly.number_classes(names.values())
    ids = {label: i for i, label in enumerate(names, start=1)}
    return ClassList(categories, ids)
