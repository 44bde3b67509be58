"""Reads YOLO: a text for each image, boxes as shares of its sides, numbered classes.

labels/train/a.txt  "class cx cy width height" a line, for images/train/a.jpg
"""

import functools
import os
import posixpath
from collections.abc import Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import (
    assembly,
    data_yaml,
    files,
    locating,
    yolo_lines,
    yolo_names,
)
from retinanet_tpu.data import annotations

_FRAMED = "polygons stored as the boxes around them"
_WITHOUT_KEYPOINTS = "keypoints left out, their boxes stored"
# Lists of class names, which lie among the label files of some tools.
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_LEVELS_UP = 2  # data.yaml lies beside labels/, or beside train/ of train/labels/.


class Classes(NamedTuple):
    """What a file of classes says about the label files."""

    categories: list[dict[str, Any]]  # YOLO's numbers as ids
    keypoints: tuple[int, int] | None  # as `yolo_lines.parse` takes them
    is_yaml: bool


def read(
    directory: str, *, pictures: files.ImageFolder, classes: Classes
) -> annotations.AnnotatedSet:
    """Reads a folder of YOLO label files; ids of categories are YOLO's numbers.

    An image without a label file is one without objects, as in YOLO's own trainers,
    unless no image of its folder has a label file. Lines of more numbers are
    polygons, and become the boxes around them, or boxes with keypoints, which are left
    out.

    Args:
      directory: the label files, in the same subfolders as the images, or in labels/
        where the images are in images/. Texts without an image, such as lists and
        READMEs, may lie among them.
      images: the folder of images.
      classes: of `read_classes`.

    Raises:
      UserError: no label file that can be read or has an image, a class that is not
        known, or lines that may be polygons or keypoints.
    """
    names = [
        name
        for name in files.list_files(directory, ".txt")
        if posixpath.basename(name) not in _CLASS_FILES
    ]
    if not names:
        raise errors.UserError(f"{directory} holds no label file; check --annotations.")
    matches = pictures.match(
        {name: [[s] for s in _image_stems(name)] for name in names}
    )
    parse_fn = functools.partial(yolo_lines.parse, keypoints=classes.keypoints)
    parsed, broken = files.parse_each(directory, names, parse_fn)
    if not matches.names and not matches.several:
        raise errors.UserError(
            f"None of the {len(names)} label files in {directory}, such as {names[0]}, "
            f"has an image of its name; {pictures.folder} has {pictures.some}. Check "
            "--images and --annotations."
        )
    odd = _check_keypoints(parsed, classes)
    found, of_lines = _labeled(parsed, matches, classes)
    background, unlabeled = _unlabeled(pictures, matches)
    # Lists of images and READMEs are no labels, and have no image of their name.
    unreadable = [f for f in broken if f.location in matches.names] + odd
    return assembly.assemble(
        [*found, *background],
        classes.categories,
        unit="line",
        findings=[*unreadable, *of_lines, *unlabeled],
        ids={str(c["id"]): c["id"] for c in classes.categories},
        is_norm=True,
    )


def _labeled(
    parsed: Mapping[str, list[yolo_lines.Line]],
    matches: files.Matches,
    classes: Classes,
) -> tuple[list[assembly.ReadImage], list[annotations.ConversionEvent]]:
    """Returns the images of label files, and findings about their lines."""
    is_polygon = not (classes.keypoints and classes.keypoints[0])
    longer = _FRAMED if is_polygon else _WITHOUT_KEYPOINTS
    found, findings = [], []
    for name, lines in parsed.items():
        image_name = matches.names.get(name, _image_stems(name)[0])
        if several := matches.several.get(name):
            findings.append(locating.several_meant(image_name, several, name))
            continue
        objects = []
        for line in lines:
            box_xywh = yolo_lines.box(line, is_polygon=is_polygon)
            objects.append(assembly.LabeledBox(line.label, box_xywh, line.number))
            if len(line.shares) > 4:
                where = f"{name}, line {line.number}"
                findings.append(
                    annotations.ConversionEvent(longer, where, image=image_name)
                )
        found.append(assembly.ReadImage(image_name, 0, 0, objects, name))
    return found, findings


def _unlabeled(
    pictures: files.ImageFolder, matches: files.Matches
) -> tuple[list[assembly.ReadImage], list[annotations.ConversionEvent]]:
    """Returns the images without a label file that are background, and findings."""
    labeled = {*matches.names.values()}.union(*matches.several.values())
    folders = {posixpath.dirname(name) for name in labeled}
    found, findings = [], []
    for name in pictures.names:
        if name in labeled:
            continue
        # In a folder without any label they are those of another split, most likely.
        is_background = _is_below_any(name, folders)
        what = annotations.BACKGROUND if is_background else annotations.UNANNOTATED
        findings.append(annotations.ConversionEvent(what, name, image=name))
        if is_background:
            found.append(assembly.ReadImage(name, 0, 0, (), ""))
    return found, findings


def read_classes(path: str) -> Classes:
    """Reads a data.yaml or a list of class names.

    Raises:
      UserError: there are no names, or `kpt_shape` is not a pair of numbers.
    """
    categories, keypoints = yolo_names.read(path), None
    is_yaml = path.lower().endswith((".yaml", ".yml"))
    if is_yaml:
        keypoints = yolo_lines.kpt_shape(data_yaml.read(path).get("kpt_shape"), path)
    return Classes(categories, keypoints, is_yaml)


def find_classes(directory: str) -> str:
    """Returns the path of the class names that belong to a folder of label files.

    Raises:
      MissingFileError: there is none.
    """
    folder, others = files.absolute(directory), []
    for _ in range(_LEVELS_UP + 1):
        for name in (*_YAML_FILES, *_CLASS_FILES):
            path = os.path.join(folder, name)
            if tf.io.gfile.exists(path):
                return path
        if tf.io.gfile.isdir(folder):
            listed = sorted(tf.io.gfile.listdir(folder))
            others += [os.path.join(folder, n) for n in listed if _may_be_classes(n)]
        folder = os.path.dirname(folder)
    hint = f"={others[0]}, if they are there" if others else ""
    raise errors.MissingFileError(
        f"No {_YAML_FILES[0]} or {_CLASS_FILES[0]} in {directory} or the "
        f"{_LEVELS_UP} folders above it; say where the class names are with "
        f"--classes{hint or '=FILE'}."
    )


def _may_be_classes(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml", ".names", "labels.txt"))


def _image_stems(name: str) -> list[str]:
    """Returns what the image of a label file may be called: images/ for labels/."""
    stem = annotations.stem(name)
    before, found, after = f"/{stem}".rpartition("/labels/")
    return [f"{before}/images/{after}".lstrip("/"), stem] if found else [stem]


def _is_below_any(name: str, folders: set[str]) -> bool:
    """Returns whether a file is in one of some folders or below it."""
    while name:
        name = posixpath.dirname(name)
        if name in folders:
            return True
    return False


def _check_keypoints(
    parsed: dict[str, list[yolo_lines.Line]], classes: Classes
) -> list[annotations.ConversionEvent]:
    """Takes out files with an odd number of shares, and returns findings of them.

    Raises:
      UserError: The longer lines may be polygons, or boxes with keypoints.
    """
    if classes.keypoints is not None:
        return []
    longer = [
        (name, line)
        for name, lines in parsed.items()
        for line in lines
        if len(line.shares) > 4
    ]
    lines = [line for _, line in longer]
    if yolo_lines.may_be_keypoints(lines, has_yaml=classes.is_yaml):
        name, line = longer[0]
        raise errors.UserError(
            f"{name}, line {line.number} has {len(line.shares)} numbers after the "
            "class: a polygon, or a box with keypoints. Write which into data.yaml, "
            "beside `names`: kpt_shape: [17, 3] for 17 keypoints of x, y and "
            "visibility, [17, 2] for x and y alone, kpt_shape: [0, 0] for polygons. "
            "Another file than data.yaml is named with --classes."
        )
    findings = []
    for name, line in longer:
        if len(line.shares) % 2 and name in parsed:
            del parsed[name]
            detail = (
                f"line {line.number} has {len(line.shares)} numbers after the class"
            )
            findings.append(
                annotations.ConversionEvent(files.UNREADABLE, name, detail, name)
            )
    return findings
