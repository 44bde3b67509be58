"""Open Images: a CSV line for each box, as shares of the picture's sides.

Classes are machine ids (/m/01yrx), whose names stand in a file of their own.
"""

import os
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import assembly, files

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_NEEDED = ("ImageID", "LabelName", *_CORNERS)
_CROWD = "IsGroupOf"  # 1, 0, or -1 for unknown


class ClassList(NamedTuple):
    """The classes of a descriptions file."""

    categories: list[dict[str, Any]]
    ids: dict[str, int]  # machine id -> category id


def read(
    path: str, *, pictures: files.Pictures, classes: ClassList
) -> annotations.AnnotatedSet:
    """Reads a table of boxes; IsGroupOf makes a box a crowd.

    Args:
      path: the CSV file with a header, as `train-annotations-bbox.csv`.
      pictures: the folder of images, their names without extension the ImageIDs. Boxes
        of others are passed over, as few people fetch all of Open Images.
      classes: of `read_classes`.

    Raises:
      UserError: a column is missing, a line has too few fields or no numbers, no
        picture is there, or a class that is not known. The line is named.
    """
    rows = files.csv_rows(path)
    _, header = next(rows, (1, []))
    absent = [name for name in _NEEDED if name not in header]
    if absent:
        raise errors.UserError(
            f"{path}, line 1 lacks {', '.join(absent)}; expected the header of Open "
            "Images: ImageID,LabelName,XMin,XMax,YMin,YMax and more."
        )
    source, found, missing = os.path.basename(path), {}, {}
    for line, row in rows:
        where = f"{path}, line {line}"
        if len(row) != len(header):
            raise errors.UserError(
                f"{where} has {len(row)} fields, expected {len(header)}."
            )
        fields = dict(zip(header, row, strict=True))
        image_id = fields["ImageID"]
        if image_id in missing:
            continue
        if image_id not in found:
            file_name = pictures.by_stem(image_id)
            if file_name is None:
                missing[image_id] = f"{source}, line {line}"
                continue
            found[image_id] = assembly.Picture(file_name, 0, 0, [], source)
        corners = files.numbers([fields[name] for name in _CORNERS], where)
        is_crowd = fields.get(_CROWD) == "1"
        box_xywh = assembly.corners_to_xywh(*corners)
        item = assembly.Labelled(fields["LabelName"], box_xywh, line, is_crowd)
        found[image_id].objects.append(item)
    if not found:
        raise errors.UserError(
            f"No picture of the {len(missing)} images in {path}, such as "
            f"{next(iter(missing), None)}, is there; check --images."
        )
    findings = [
        annotations.Finding(annotations.MISSING_PICTURE, image_id, where)
        for image_id, where in missing.items()
    ]
    findings += annotations.pictures_without_annotation(pictures.names, set(found))
    return assembly.assemble(
        found.values(),
        classes.categories,
        unit="line",
        findings=findings,
        ids=classes.ids,
        is_norm=True,
    )


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
