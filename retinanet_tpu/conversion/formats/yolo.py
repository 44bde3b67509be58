"""Reads YOLO: one text file per image, boxes in fractions of its sides, class numbers.

The file labels/train/a.txt belongs to images/train/a.jpg. Each line contains
"class cx cy width height".
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
# Lists of class names, which some tools write among the label files.
_CLASS_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml")
_LEVELS_UP = 2  # data.yaml is beside labels/, or beside train/ of train/labels/.


class Classes(NamedTuple):
    """The content of a file of classes.

    Attributes:
      categories: COCO's dicts of id and name; the ids are YOLO's class numbers.
      keypoints: The number and dimension of keypoints, as in `yolo_lines.parse`; None
        if the file does not contain them.
      is_yaml: True for a data.yaml, False for a list of names.
    """

    categories: list[dict[str, Any]]
    keypoints: tuple[int, int] | None
    is_yaml: bool


def read(
    directory: str, *, image_folder: files.ImageFolder, classes: Classes
) -> annotations.AnnotatedSet:
    """Reads a folder of YOLO label files. Category ids are YOLO's class numbers.

    An image without a label file has no objects, as in YOLO's own trainers. The
    exception is a folder of images without any label file: its images are left out.
    Longer lines are polygons, which become the boxes around them, or boxes with
    keypoints, which are dropped.

    Args:
      directory: The folder of label files. They are in the same subfolders as the
        images, or in labels/ where the images are in images/. Text files without an
        image, such as lists and READMEs, are ignored.
      image_folder: The folder of images.
      classes: The classes, as returned by `read_classes`.

    Raises:
      UserError: No label file can be read, none has an image, a class is unknown, or
        lines may be polygons or keypoints.
    """
    names = [
        name
        for name in files.list_files(directory, ".txt")
        if posixpath.basename(name) not in _CLASS_FILES
    ]
    if not names:
        raise errors.UserError(
            f"{directory} contains no label file; check --annotations."
        )
    matches = image_folder.match(
        {name: [[s] for s in _image_stems(name)] for name in names}
    )
    parse_fn = functools.partial(yolo_lines.parse, keypoints=classes.keypoints)
    parsed, parse_events = files.parse_each(directory, names, parse_fn)
    if not matches.names and not matches.several:
        raise errors.UserError(
            f"None of the {len(names)} label files in {directory}, such as {names[0]}, "
            f"has an image of its name; {image_folder.folder} has "
            f"{image_folder.example_names}. Check --images and --annotations."
        )
    keypoint_events = _check_keypoints(parsed, classes)
    labeled, line_events = _labeled_images(parsed, matches, classes)
    background, image_events = _unlabeled_images(image_folder, matches)
    # Unreadable texts without an image of their name are lists and READMEs.
    unreadable = [e for e in parse_events if e.location in matches.names]
    return assembly.assemble(
        [*labeled, *background],
        classes.categories,
        unit="line",
        events=[*unreadable, *keypoint_events, *line_events, *image_events],
        ids={str(c["id"]): c["id"] for c in classes.categories},
        is_norm=True,
    )


def _labeled_images(
    parsed: Mapping[str, list[yolo_lines.Line]],
    matches: files.Matches,
    classes: Classes,
) -> tuple[list[assembly.ReadImage], list[annotations.ConversionEvent]]:
    """Returns the images of label files, and events about their lines."""
    is_polygon = not (classes.keypoints and classes.keypoints[0])
    longer = _FRAMED if is_polygon else _WITHOUT_KEYPOINTS
    images: list[assembly.ReadImage] = []
    events: list[annotations.ConversionEvent] = []
    for name, lines in parsed.items():
        image_name = matches.names.get(name, _image_stems(name)[0])
        if several := matches.several.get(name):
            events.append(locating.ambiguous_name(image_name, several, name))
            continue
        objects = []
        for line in lines:
            box_xywh = yolo_lines.box(line, is_polygon=is_polygon)
            objects.append(assembly.LabeledBox(line.label, box_xywh, line.number))
            if len(line.fractions) > 4:
                where = f"{name}, line {line.number}"
                events.append(
                    annotations.ConversionEvent(longer, where, image=image_name)
                )
        images.append(assembly.ReadImage(image_name, 0, 0, objects, name))
    return images, events


def _unlabeled_images(
    image_folder: files.ImageFolder, matches: files.Matches
) -> tuple[list[assembly.ReadImage], list[annotations.ConversionEvent]]:
    """Returns the background images without a label file, and events."""
    labeled = {*matches.names.values()}.union(*matches.several.values())
    folders = {posixpath.dirname(name) for name in labeled}
    images: list[assembly.ReadImage] = []
    events: list[annotations.ConversionEvent] = []
    for name in image_folder.names:
        if name in labeled:
            continue
        # The images of a folder without any label probably belong to another split.
        is_background = _is_below_any(name, folders)
        what = annotations.BACKGROUND if is_background else annotations.UNANNOTATED
        events.append(annotations.ConversionEvent(what, name, image=name))
        if is_background:
            images.append(assembly.ReadImage(name, 0, 0, (), ""))
    return images, events


def read_classes(path: str) -> Classes:
    """Reads a data.yaml or a list of class names.

    Args:
      path: The data.yaml, or a text file with one name per line.

    Raises:
      UserError: There are no names, or `kpt_shape` is not a pair of numbers.
    """
    categories = yolo_names.read(path)
    keypoints = None
    is_yaml = path.lower().endswith((".yaml", ".yml"))
    if is_yaml:
        keypoints = yolo_lines.kpt_shape(data_yaml.read(path).get("kpt_shape"), path)
    return Classes(categories, keypoints, is_yaml)


def find_classes(directory: str) -> str:
    """Returns the path of the class names that belong to a folder of label files.

    Args:
      directory: The folder of label files.

    Raises:
      MissingFileError: No such file is in the folder or in the folders above it.
    """
    folder = files.absolute(directory)
    similar_paths: list[str] = []
    for _ in range(_LEVELS_UP + 1):
        for name in (*_YAML_FILES, *_CLASS_FILES):
            path = os.path.join(folder, name)
            if tf.io.gfile.exists(path):
                return path
        if tf.io.gfile.isdir(folder):
            names = filter(_may_be_classes, sorted(tf.io.gfile.listdir(folder)))
            similar_paths += [os.path.join(folder, name) for name in names]
        folder = os.path.dirname(folder)
    hint = f"={similar_paths[0]}, if it contains them" if similar_paths else "=FILE"
    raise errors.MissingFileError(
        f"No {_YAML_FILES[0]} or {_CLASS_FILES[0]} in {directory} or the "
        f"{_LEVELS_UP} folders above it; pass the file of class names with "
        f"--classes{hint}."
    )


def _may_be_classes(name: str) -> bool:
    return name.lower().endswith((".yaml", ".yml", ".names", "labels.txt"))


def _image_stems(name: str) -> list[str]:
    """Returns the possible stems of a label file's image: images/ for labels/."""
    stem = annotations.stem(name)
    before, separator, after = f"/{stem}".rpartition("/labels/")
    return [f"{before}/images/{after}".lstrip("/"), stem] if separator else [stem]


def _is_below_any(name: str, folders: set[str]) -> bool:
    """Returns True if a file is in or below one of the folders."""
    while name:
        name = posixpath.dirname(name)
        if name in folders:
            return True
    return False


def _check_keypoints(
    parsed: dict[str, list[yolo_lines.Line]], classes: Classes
) -> list[annotations.ConversionEvent]:
    """Removes files that contain a polygon with an odd number of coordinates.

    Returns:
      An event for each file that was removed from `parsed`.

    Raises:
      UserError: The longer lines may be polygons, or boxes with keypoints.
    """
    if classes.keypoints is not None:
        return []
    longer = [
        (name, line)
        for name, lines in parsed.items()
        for line in lines
        if len(line.fractions) > 4
    ]
    lines = [line for _, line in longer]
    if yolo_lines.may_be_keypoints(lines, has_yaml=classes.is_yaml):
        name, line = longer[0]
        raise errors.UserError(
            f"{name}, line {line.number} has {len(line.fractions)} numbers after the "
            "class: a polygon, or a box with keypoints. Add kpt_shape to data.yaml, "
            "beside `names`: kpt_shape: [17, 3] for 17 keypoints of x, y and "
            "visibility, [17, 2] for x and y alone, kpt_shape: [0, 0] for polygons. "
            "Pass a data.yaml of another name with --classes."
        )
    events: list[annotations.ConversionEvent] = []
    for name, line in longer:
        count = len(line.fractions)
        if count % 2 and name in parsed:
            del parsed[name]
            detail = f"line {line.number} has {count} numbers after the class"
            events.append(
                annotations.ConversionEvent(files.UNREADABLE, name, detail, name)
            )
    return events
