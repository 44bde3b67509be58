"""Reads CVAT's XML for images or for a video: one file, shapes in pixels.

<image name="a.jpg" width="200" height="120"><box label="cat" xtl="30" ... /></image>
<track label="cat"><box frame="7" outside="0" xtl="30" ... /></track>
"""

import bisect
import itertools
import os
import posixpath
import re
import xml.etree.ElementTree
from collections.abc import Iterable, Iterator
from typing import Any

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import assembly, documents, files, listing, shapes
from retinanet_tpu.data import annotations

_Element = xml.etree.ElementTree.Element
_MAX_SHOWN = 50  # Characters of a value that an error or event shows.
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_CUBOID = [side + end for end in "12" for side in ("tl", "bl", "tr", "br")]
_NO_SHAPE = ("tag", "attribute")
_NOT_ENCLOSING = ("polyline", "points", "skeleton")
# Types of labels that have no boxes, so that they are not classes.
_NO_CLASS_TYPES = ("tag", *_NOT_ENCLOSING)
# File names of the images that CVAT exports with a video, with the frame numbers.
_FRAME = re.compile(r"frame_(\d{6,9})\.\w+")


def read(
    path: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads "CVAT for images 1.1" or "CVAT for video 1.1".

    Polygons, ellipses, masks, cuboids and rotated boxes are replaced by the boxes
    around them. A frame of a video contains the shapes of its tracks that are not
    marked as outside.

    Args:
      path: The XML file.
      image_folder: The folder of images. The images of a video have the names of CVAT's
        export, such as frame_000000.png.
      categories: The classes; None for the labels of the task.

    Raises:
      UserError: The file has another structure or contains only keyframes, or a class
        is unknown.
      MissingFileError: The file does not exist.
    """
    root = documents.parse_xml(files.read_bytes(path), where=f"{path}: ")
    if root.tag != "annotations":
        raise errors.UserError(
            f"{path} begins with <{root.tag[:_MAX_SHOWN]}>; expected CVAT's "
            "<annotations>."
        )
    source = os.path.basename(path)
    tracks = root.findall("track")
    contents = list(_images(root, source))
    if tracks:
        contents += _frames(tracks, source, image_folder)
    if not contents:
        raise errors.UserError(f"{path} has no <image> and no <track>.")
    return listing.assemble(
        contents,
        path=path,
        image_folder=image_folder,
        categories=categories,
        unit="shape",
        declared=_declared_labels(root),
    )


def _images(root: _Element, source: str) -> Iterator[assembly.Content]:
    """Yields the annotations of each <image>."""
    for number, image in enumerate(root.findall("image"), start=1):
        name = image.get("name")
        if not name:
            raise errors.UserError(f"{source}, image {number} has no name.")
        where = f"{source}, {name}"
        size = files.image_size(image.get("height"), image.get("width"), where)
        objects: list[assembly.LabeledBox] = []
        events: list[annotations.ConversionEvent] = []
        for place, shape in enumerate(image, start=1):
            boxes, of_shape = _labeled_boxes(shape, shape.get("label"), place, where)
            objects += boxes
            events += of_shape
        read_image = assembly.ReadImage(name, *size, objects, where)
        yield assembly.Content(read_image, events)


def _frames(
    tracks: list[_Element], source: str, image_folder: files.ImageFolder
) -> list[assembly.Content]:
    """Returns the annotations of each frame of a video, including empty frames."""
    names = _frame_names(image_folder.names)
    numbers = sorted(names)
    if not names:
        raise errors.UserError(
            f"{source} annotates a video, whose images are called frame_000000.png, "
            "frame_000001.png, ...; --images has none of these names. Export the "
            "images with the annotations, or export as 'CVAT for images', which "
            "contains the names."
        )
    objects: dict[int, list[assembly.LabeledBox]] = {}
    events: dict[int, list[annotations.ConversionEvent]] = {}
    for place, track in enumerate(tracks, start=1):
        where = f"{source}, track {track.get('id') or place}"
        track_shapes = [
            (_frame_number(shape, where), shape)
            for shape in track
            if shape.tag not in _NO_SHAPE
        ]
        track_shapes.sort(key=lambda item: item[0])
        _check_gaps(track_shapes, numbers, where)
        for number, shape in track_shapes:
            if _is_outside(shape):
                continue
            names.setdefault(number, f"frame_{number:06d}.png")
            boxes, of_shape = _labeled_boxes(
                shape, track.get("label"), place, f"{source}, frame {number}"
            )
            objects.setdefault(number, []).extend(boxes)
            events.setdefault(number, []).extend(of_shape)
    return [
        assembly.Content(
            assembly.ReadImage(
                name, 0, 0, objects.get(number, []), f"{source}, frame {number}"
            ),
            events.get(number, []),
        )
        for number, name in names.items()
    ]


def _frame_names(file_names: Iterable[str]) -> dict[int, str]:
    """Returns the file names of the frames, by frame number."""
    names: dict[int, str] = {}
    for name in file_names:
        frame = _FRAME.fullmatch(posixpath.basename(name))
        if frame:
            other = names.setdefault(int(frame[1]), name)
            if other != name:
                raise errors.UserError(
                    f"{other} and {name} are both frame {int(frame[1])}; set --images "
                    "to the folder of one video."
                )
    return names


def _frame_number(shape: _Element, where: str) -> int:
    text = shape.get("frame", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise errors.UserError(
            f"{where} has the frame {text[:_MAX_SHOWN]!r}; expected a number."
        )
    return int(text)


def _check_gaps(
    track_shapes: list[tuple[int, _Element]], numbers: list[int], where: str
) -> None:
    """Raises UserError if a track skips a frame that has an image.

    Args:
      track_shapes: The frame number and the shape, in the order of frames.
      numbers: The numbers of all frames that have an image, sorted.
      where: The track, for error messages.
    """
    for (first, shape), (second, _) in itertools.pairwise(track_shapes):
        position = bisect.bisect_right(numbers, first)
        is_gap = position < len(numbers) and numbers[position] < second
        if is_gap and not _is_outside(shape):
            raise errors.UserError(
                f"{where} has frame {first} and then {second}, and there is an image "
                f"of frame {numbers[position]}: the file contains only keyframes. "
                "Import it in CVAT and export it again, which writes every frame."
            )


def _is_outside(shape: _Element) -> bool:
    return shape.get("outside", "0") not in ("0", "false", "False")


def _labeled_boxes(
    shape: _Element, label: str | None, place: int, source: str
) -> tuple[list[assembly.LabeledBox], list[annotations.ConversionEvent]]:
    """Returns the object of a shape if it has a box and a label, and the events."""
    if shape.tag in _NO_SHAPE:
        return [], []
    where = f"{source}, shape {place}"
    box_xywh, kind = _box(shape, where)
    events: list[annotations.ConversionEvent] = []
    if kind is not None:
        detail = shape.tag[:_MAX_SHOWN]
        events.append(annotations.ConversionEvent(kind, where, detail))
    label = (label or "").strip()
    if box_xywh is not None and not label:
        events.append(annotations.ConversionEvent(listing.NO_CLASS, where))
    if box_xywh is None or not label:
        return [], events
    return [assembly.LabeledBox(label, box_xywh, place)], events


def _box(shape: _Element, where: str) -> tuple[shapes.Box | None, str | None]:
    """Returns the box around a shape, and the kind of event; None for neither."""
    (degrees,) = files.numbers([shape.get("rotation") or 0], where)
    if shape.tag == "box":
        corners = documents.numbers(shape.attrib, _CORNERS, where)
        box_xywh = assembly.corners_to_xywh(*corners)
        if degrees == 0:
            return box_xywh, None
        box_xywh = shapes.rectangle(box_xywh, degrees, pivot=(0.5, 0.5))
    elif shape.tag == "polygon":
        points = [point.split(",") for point in shape.get("points", "").split(";")]
        if any(len(point) != 2 for point in points):
            raise errors.UserError(f"{where} has points that are not x,y;x,y;...")
        xs, ys = (files.numbers(values, where) for values in zip(*points, strict=True))
        box_xywh = shapes.polygon(xs, ys, where)
    elif shape.tag == "ellipse":
        cx, cy, rx, ry = documents.numbers(
            shape.attrib, ("cx", "cy", "rx", "ry"), where
        )
        box_xywh = shapes.ellipse(cx, cy, rx, ry, degrees)
    elif shape.tag == "mask":
        left, top, width, height = documents.numbers(
            shape.attrib, ("left", "top", "width", "height"), where
        )
        box_xywh = (left, top, width, height)
    elif shape.tag == "cuboid":
        xs, ys = (
            documents.numbers(shape.attrib, [axis + end for end in _CUBOID], where)
            for axis in "xy"
        )
        box_xywh = shapes.polygon(xs, ys, where)
    else:
        return None, shapes.NO_BOX
    return box_xywh, shapes.FRAMED


def _declared_labels(root: _Element) -> list[str]:
    """Returns the labels of the task or project that have boxes."""
    names = []
    for label in root.iterfind("meta//label"):
        is_part = label.find("parent") is not None  # A part of a skeleton.
        name = (label.findtext("name") or "").strip()
        if name and not is_part and label.findtext("type") not in _NO_CLASS_TYPES:
            names.append(name)
    return names
