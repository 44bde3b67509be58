"""Reads Open Images: one CSV line per box, in fractions of the image's sides.

Classes are machine ids such as /m/01yrx. Their names are in a separate file. Another
file may contain the classes that people verified to be in an image or not.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from retinanet_tpu import annotation_fields, errors
from retinanet_tpu.conversion.formats import assembly, files, locating
from retinanet_tpu.data import annotations

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
_REQUIRED = ("ImageID", "LabelName", *_CORNERS)
_REQUIRED_OF_LABELS = ("ImageID", "LabelName", "Confidence")
_CROWD = "IsGroupOf"
_MACHINE_ID = "machine_id"  # The key that evaluation/class_hierarchy.py reads.
_UNKNOWN = ("-1", "-1.0")  # Values of IsGroupOf.
# Most users download only a part of Open Images, so this is not an error.
_NOT_DOWNLOADED = "annotated images not in the folder, left out"

_OTHER_CLASSES = "tables with boxes of classes not in --classes, left out"


class ClassList(NamedTuple):
    """The classes of a descriptions file.

    Attributes:
      categories: COCO's dicts of id and name, with the machine id.
      ids: The category id of each machine id.
    """

    categories: list[dict[str, Any]]
    ids: dict[str, int]


class _Labels(NamedTuple):
    """The category ids that were verified to be in an image, or not to be."""

    positive: set[int]
    negative: set[int]


def read(
    path: str,
    *,
    image_folder: files.ImageFolder,
    classes: ClassList,
    image_labels: str | None = None,
    drop_other_classes: bool = False,
) -> annotations.AnnotatedSet:
    """Reads a table of boxes. A box with IsGroupOf becomes a crowd.

    Args:
      path: The CSV file with a header, such as `train-annotations-bbox.csv`.
      image_folder: The folder of images. Their names without extension are the
        ImageIDs. Boxes of images outside the folder are skipped and counted.
      classes: The classes, as returned by `read_classes`.
      image_labels: The CSV file of the verified classes of the images, such as
        `validation-annotations-human-imagelabels-boxable.csv`, or None. Its images
        without boxes are read, too. Classes without a description are skipped.
      drop_other_classes: Whether to skip the boxes of classes without a description,
        and images that have no other box, instead of an error.

    Raises:
      UserError: A column is missing, a line has too few fields, a field is not a
        number, no annotated image is in the folder, or a class is unknown. The message
        contains the line.
    """
    source = os.path.basename(path)
    first_lines: dict[str, int] = {}
    num_dropped = 0
    for line, fields in _records(path):
        if drop_other_classes and fields["LabelName"] not in classes.ids:
            num_dropped += 1
        else:
            first_lines.setdefault(fields["ImageID"], line)
    labeled = set() if image_labels is None else _labeled_images(image_labels)
    matches = image_folder.match({i: [[i]] for i in (*first_lines, *sorted(labeled))})
    objects: dict[str, list[assembly.LabeledBox]] = {
        image_id: [] for image_id in labeled if image_id in matches.names
    }
    # The file is read twice: keeping the lines of absent images would fill the memory.
    for line, fields in _records(path):
        image_id = fields["ImageID"]
        if drop_other_classes and fields["LabelName"] not in classes.ids:
            continue
        if image_id in matches.names:
            objects.setdefault(image_id, []).append(_labeled_box(fields, line, path))
    if num_dropped and not first_lines:
        raise errors.UserError(
            f"All {num_dropped:,} boxes in {path} have classes that are not in "
            "--classes; check that file."
        )
    if not any(objects.values()):
        raise errors.UserError(
            f"None of the {len(first_lines)} images in {path}, such as "
            f"{next(iter(first_lines), None)}, exists; check --images."
        )
    events: list[annotations.ConversionEvent] = []
    if num_dropped:
        event = annotations.ConversionEvent(
            _OTHER_CLASSES, source, f"{num_dropped:,} boxes"
        )
        events.append(event)
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
    annotated_set = assembly.assemble(
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
    if image_labels is None:
        return annotated_set
    labels = _read_labels(image_labels, classes.ids, matches.names)
    return annotated_set._replace(images=_with_labels(annotated_set.images, labels))


def _labeled_images(path: str) -> set[str]:
    """Returns the ImageIDs of a table of image labels."""
    return {fields["ImageID"] for _, fields in _records(path, _REQUIRED_OF_LABELS)}


def _with_labels(
    images: Iterable[annotations.AnnotatedImage], labels: Mapping[str, _Labels]
) -> list[annotations.AnnotatedImage]:
    """Returns the images with the labels of their file names."""
    none = _Labels(set(), set())
    return [
        image._replace(
            positive_ids=tuple(sorted(labels.get(image.file_name, none).positive)),
            negative_ids=tuple(sorted(labels.get(image.file_name, none).negative)),
        )
        for image in images
    ]


def _read_labels(
    path: str, ids: Mapping[str, int], names: Mapping[str, str]
) -> dict[str, _Labels]:
    """Returns the labels of each image, by its file name.

    Args:
      path: The CSV file of image labels.
      ids: The category id of each machine id.
      names: The file name of each ImageID; other images are skipped.
    """
    labels: dict[str, _Labels] = {}
    for line, fields in _records(path, _REQUIRED_OF_LABELS):
        confidence = fields["Confidence"]
        if confidence not in ("0", "1", "0.0", "1.0"):
            raise errors.UserError(
                f"{path}, line {line} has Confidence {confidence!r}; expected 0 or 1. "
                "Give the labels that people verified (human-imagelabels), not those "
                "of a machine."
            )
        category_id = ids.get(fields["LabelName"])
        if category_id is not None and fields["ImageID"] in names:
            name = names[fields["ImageID"]]
            of_image = labels.setdefault(name, _Labels(set(), set()))
            is_positive = float(confidence) == 1
            (of_image.positive if is_positive else of_image.negative).add(category_id)
    if not labels:
        raise errors.UserError(
            f"{path} has no label of an image in --images and a class in --classes; "
            "give the labels of the same split."
        )
    return labels


def _records(
    path: str, required: Sequence[str] = _REQUIRED
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yields the number and the fields, by column, of each line after the header."""
    rows = files.csv_rows(path)
    _, header = next(rows, (1, []))
    absent = [name for name in required if name not in header]
    if absent:
        raise errors.UserError(
            f"{path}, line 1 lacks {', '.join(absent)}; expected the header of Open "
            f"Images: {','.join(required)} and more."
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
    categories = [
        category | {_MACHINE_ID: label}
        for label, category in zip(
            names, assembly.number_classes(names.values()), strict=True
        )
    ]
    ids = {label: i for i, label in enumerate(names, start=1)}
    return ClassList(categories, ids)
