"""Reads CVAT's XML of images or of a video: one file, shapes in pixels.

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
_CORNERS = ("xtl", "ytl", "xbr", "ybr")
_CUBOID = [side + end for end in "12" for side in ("tl", "bl", "tr", "br")]
_NO_SHAPE = ("tag", "attribute")
_NOT_ENCLOSING = ("polyline", "points", "skeleton")
# Labels of other types have no box, so they are no classes.
_NO_CLASS_TYPES = ("tag", *_NOT_ENCLOSING)
# The names that CVAT gives to the images of a video, with the numbers of the file.
_FRAME = re.compile(r"frame_(\d{6,9})\.\w+")


def read(
    path: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads "CVAT for images 1.1" or "CVAT for video 1.1".

    Polygons, ellipses, masks, cuboids and rotated boxes become the boxes around them.
    In a video's frames an object is where its track says so and is not outside.

    Args:
      path: The XML file.
      images: The folder of images; those of a video are named as CVAT exports them,
        frame_000000.png.
      categories: The classes; None for the labels of the task.

    Raises:
      UserError: The file has another structure, lists keyframes only, or a class is
        not known.
      MissingFileError: There is no such file.
    """
    root = documents.parse_xml(files.read_bytes(path), where=f"{path}: ")
    if root.tag != "annotations":
        raise errors.UserError(
            f"{path} begins with <{root.tag[:50]}>; expected CVAT's <annotations>."
        )
    source, tracks = os.path.basename(path), root.findall("track")
    contents = list(_images(root, source))
    if tracks:
        contents += _frames(tracks, source, pictures)
    if not contents:
        raise errors.UserError(f"{path} has no <image> and no <track>.")
    return listing.assemble(
        contents,
        path=path,
        pictures=pictures,
        categories=categories,
        unit="shape",
        declared=_declared(root),
    )


def _images(root: _Element, source: str) -> Iterator[assembly.Content]:
    for number, image in enumerate(root.findall("image"), start=1):
        name = image.get("name")
        if not name:
            raise errors.UserError(f"{source}, image {number} has no name.")
        where = f"{source}, {name}"
        size = files.sides(image.get("height"), image.get("width"), where)
        findings = []
        objects = [
            item
            for place, shape in enumerate(image, start=1)
            for item in _labeled(shape, shape.get("label"), place, where, findings)
        ]
        picture = assembly.ReadImage(name, *size, objects, where)
        yield assembly.Content(picture, findings)


def _frames(
    tracks: list[_Element], source: str, pictures: files.ImageFolder
) -> list[assembly.Content]:
    """Returns the frames of a video; those that no track is in have no objects."""
    names = _frame_names(pictures.names)
    numbers = sorted(names)
    if not names:
        raise errors.UserError(
            f"{source} is of a video, whose images are called frame_000000.png and so "
            "on; --images has none of that name. Export the images with the "
            "annotations, or export as 'CVAT for images', which has the names."
        )
    found = {number: _empty(name, source, number) for number, name in names.items()}
    for place, track in enumerate(tracks, start=1):
        where = f"{source}, track {track.get('id') or place}"
        shown = [
            (_frame(shape, where), shape)
            for shape in track
            if shape.tag not in _NO_SHAPE
        ]
        shown.sort(key=lambda item: item[0])
        _check_gaps(shown, numbers, where)
        for number, shape in shown:
            if _is_outside(shape):
                continue
            if number not in found:
                found[number] = _empty(f"frame_{number:06d}.png", source, number)
            picture, findings = found[number]
            label, here = track.get("label"), picture.source
            picture.objects.extend(_labeled(shape, label, place, here, findings))
    return list(found.values())


def _empty(name: str, source: str, number: int) -> assembly.Content:
    picture = assembly.ReadImage(name, 0, 0, [], f"{source}, frame {number}")
    return assembly.Content(picture, [])


def _frame_names(names: Iterable[str]) -> dict[int, str]:
    found = {}
    for name in names:
        frame = _FRAME.fullmatch(posixpath.basename(name))
        if frame:
            other = found.setdefault(int(frame[1]), name)
            if other != name:
                raise errors.UserError(
                    f"{other} and {name} are both frame {int(frame[1])}; let --images "
                    "be the folder of one video."
                )
    return found


def _frame(shape: _Element, where: str) -> int:
    text = shape.get("frame", "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise errors.UserError(f"{where} has the frame {text[:50]!r}, no number.")
    return int(text)


def _check_gaps(
    shown: list[tuple[int, _Element]], numbers: list[int], where: str
) -> None:
    """Raises UserError if there are images of frames that a track passes over."""
    for (first, shape), (second, _) in itertools.pairwise(shown):
        position = bisect.bisect_right(numbers, first)
        is_gap = position < len(numbers) and numbers[position] < second
        if is_gap and not _is_outside(shape):
            raise errors.UserError(
                f"{where} has frame {first} and then {second}, and there is an image "
                f"of frame {numbers[position]}: the file lists keyframes only. Import "
                "it in CVAT and export it again, which writes every frame."
            )


def _is_outside(shape: _Element) -> bool:
    return shape.get("outside", "0") not in ("0", "false", "False")


def _labeled(
    shape: _Element,
    label: str | None,
    place: int,
    source: str,
    findings: list[annotations.ConversionEvent],
) -> list[assembly.LabeledBox]:
    """Returns the object of a shape, if it is one."""
    if shape.tag in _NO_SHAPE:
        return []
    where = f"{source}, shape {place}"
    box_xywh = _box(shape, where, findings)
    label = (label or "").strip()
    if box_xywh is not None and not label:
        findings.append(annotations.ConversionEvent(listing.NO_CLASS, where))
    if box_xywh is None or not label:
        return []
    return [assembly.LabeledBox(label, box_xywh, place)]


def _box(
    shape: _Element, where: str, findings: list[annotations.ConversionEvent]
) -> shapes.Box | None:
    """Returns the box around a shape; None if it encloses nothing."""
    (degrees,) = files.numbers([shape.get("rotation") or 0], where)
    if shape.tag == "box":
        corners = documents.numbers(shape.attrib, _CORNERS, where)
        box_xywh = assembly.corners_to_xywh(*corners)
        if degrees == 0:
            return box_xywh
        box_xywh = shapes.rectangle(box_xywh, degrees, pivot=(0.5, 0.5))
    elif shape.tag == "polygon":
        points = [point.split(",") for point in shape.get("points", "").split(";")]
        if any(len(point) != 2 for point in points):
            raise errors.UserError(f"{where} has points that are not x,y;x,y;...")
        xs, ys = (files.numbers(values, where) for values in zip(*points, strict=True))
        box_xywh = shapes.polygon(xs, ys, where)
    elif shape.tag == "ellipse":
        sizes = documents.numbers(shape.attrib, ("cx", "cy", "rx", "ry"), where)
        box_xywh = shapes.ellipse(*sizes, degrees)
    elif shape.tag == "mask":
        keys = ("left", "top", "width", "height")
        box_xywh = tuple(documents.numbers(shape.attrib, keys, where))
    elif shape.tag == "cuboid":
        xs, ys = (
            documents.numbers(shape.attrib, [axis + end for end in _CUBOID], where)
            for axis in "xy"
        )
        box_xywh = shapes.polygon(xs, ys, where)
    else:
        findings.append(
            annotations.ConversionEvent(shapes.NO_BOX, where, shape.tag[:50])
        )
        return None
    findings.append(annotations.ConversionEvent(shapes.FRAMED, where, shape.tag))
    return box_xywh


def _declared(root: _Element) -> list[str]:
    """Returns the labels of the task or project that have boxes."""
    found = []
    for label in root.iterfind("meta//label"):
        is_part = label.find("parent") is not None  # Of a skeleton.
        name = (label.findtext("name") or "").strip()
        if name and not is_part and label.findtext("type") not in _NO_CLASS_TYPES:
            found.append(name)
    return found
