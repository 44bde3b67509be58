"""YOLO: a text file for each picture, boxes as shares of its sides, classes by number.

labels/train/a.txt  "class cx cy width height" a line, for images/train/a.jpg
"""

import os
import posixpath
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import annotations
from retinanet_tpu.data.annotation_formats import assembly, files

_FRAMED = "polygons stored as the boxes around them"
_BACKGROUND = "images without a label file, kept as background"
# Lists of class names, which lie among the label files of some tools.
_CLASS_FILES = ("classes.txt", "obj.names")
_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_LEVELS_UP = 2  # data.yaml lies beside labels/, or beside train/ of train/labels/.


def read(
    directory: str, *, pictures: files.Pictures, categories: list[dict[str, Any]]
) -> annotations.AnnotatedSet:
    """Reads a folder of YOLO label files; ids of categories are YOLO's numbers.

    A picture without a label file is one without objects, as in YOLO's own trainers.
    Lines of more numbers are polygons, and become the boxes around them.

    Args:
      directory: the label files, in the same subfolders as the pictures.
      pictures: the folder of images.
      categories: the classes, with YOLO's numbers as ids.

    Raises:
      UserError: no label file that can be read or has a picture, or a class that is
        not known.
    """
    names = [
        name
        for name in files.list_files(directory, ".txt")
        if posixpath.basename(name) not in _CLASS_FILES
    ]
    if not names:
        raise errors.UserError(f"{directory} holds no label file; check --annotations.")
    parsed, findings = files.parse_each(directory, names, _parse)
    found = []
    for name, (objects, of_lines) in parsed.items():
        file_name = pictures.by_stem(annotations.stem(name))
        if file_name is None:
            missing = annotations.Finding(annotations.MISSING_PICTURE, name)
            findings.append(missing)
            continue
        findings += of_lines
        found.append(assembly.Picture(file_name, 0, 0, objects, name))
    if not found:
        raise errors.UserError(
            f"None of the {len(names)} label files in {directory}, such as {names[0]}, "
            "has a picture of its name; check --images and --annotations."
        )
    labelled = {annotations.stem(name) for name in names}
    for name in pictures.names:
        if annotations.stem(name) not in labelled:
            findings.append(annotations.Finding(_BACKGROUND, name))
            found.append(assembly.Picture(name, 0, 0, (), ""))
    ids = {str(category["id"]): category["id"] for category in categories}
    return assembly.assemble(
        found, categories, unit="line", findings=findings, ids=ids, is_norm=True
    )


def find_classes(directory: str) -> str:
    """Returns the path of the class names that belong to a folder of label files.

    Raises:
      MissingFileError: there is none.
    """
    folder = directory.rstrip("/")
    for _ in range(_LEVELS_UP + 1):
        for name in (*_YAML_FILES, *_CLASS_FILES):
            path = os.path.join(folder, name)
            if tf.io.gfile.exists(path):
                return path
        folder = os.path.join(folder, os.pardir)
    raise errors.MissingFileError(
        f"No {_YAML_FILES[0]} or {_CLASS_FILES[0]} in {directory} or the "
        f"{_LEVELS_UP} folders above it; say with --classes where the names are."
    )


def _parse(
    content: bytes, name: str
) -> tuple[list[assembly.Labelled], list[annotations.Finding]]:
    objects, findings = [], []
    lines = files.decode(content, name).splitlines()
    for number, line in enumerate(lines, start=1):
        fields = line.split()
        if not fields:
            continue
        where = f"line {number}"
        label, *shares = files.numbers(fields, where)
        is_polygon = len(shares) >= 6 and len(shares) % 2 == 0
        if not label.is_integer() or not (is_polygon or len(shares) == 4):
            raise errors.UserError(
                f"{where} is {line.strip()!r}; expected class cx cy width height"
            )
        if is_polygon:
            box_xywh = assembly.frame(zip(shares[::2], shares[1::2], strict=True))
            findings.append(annotations.Finding(_FRAMED, f"{name}, {where}"))
        else:
            cx, cy, width, height = shares
            box_xywh = (cx - width / 2, cy - height / 2, width, height)
        objects.append(assembly.Labelled(str(int(label)), box_xywh, number))
    return objects, findings
