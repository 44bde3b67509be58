"""Reads Label Studio: one JSON list of tasks, shapes in percent of the image's sides.

The exports "JSON" and "JSON-MIN" are read.
"""

import itertools
import math
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.conversion.formats import (
    assembly,
    documents,
    files,
    listing,
    name_matching,
    shapes,
)
from retinanet_tpu.data import annotations

_SEVERAL = "tasks annotated several times, of which one annotation was taken"
_NO_ANNOTATION = "tasks without annotation, left out"
_TURNED = "images turned in Label Studio, left out"
_OF_MIN = ("annotation_id", "annotator")  # What tasks of JSON-MIN have.
_NO_RESULTS = ("predictions", "drafts", "meta")
# What Label Studio puts before the name of an uploaded file.
_HASH = re.compile(r"[0-9a-f]{8}-(?=.)")
# Types of results that have no label themselves; those with one end in "labels".
_PLAIN = ("rectangle", "polygon", "ellipse", "brush", "keypoint")


class _Task(NamedTuple):
    """An image and its results."""

    url: str
    results: list[tuple[str, dict[str, Any]]]  # where each stands, and the result
    source: str


def read(
    path: str,
    *,
    pictures: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads tasks; polygons, ellipses and rotated rectangles become boxes.

    Of several annotations of a task the ground truth is taken, else the latest;
    canceled ones and predictions are not read. A result of several labels becomes a
    box of each.

    Args:
      path: The JSON file.
      images: The folder of images. They may have the names of the tasks' URLs, with
        or without the prefix that Label Studio gives to uploads.
      categories: The classes; None for all that occur in the file, sorted.

    Raises:
      UserError: The file has another structure, or a class is not known.
      MissingFileError: There is no such file.
    """
    content = documents.load_json(files.read_bytes(path), path)
    entries, findings = documents.is_a(content, list, path), []
    tasks = list(_tasks(entries, os.path.basename(path), findings))
    return listing.assemble(
        [_content(task) for task in tasks],
        path=path,
        pictures=pictures,
        categories=categories,
        unit="result",
        findings=findings,
        names=[_names(task.url) for task in tasks],
    )


def _tasks(
    entries: list[Any], source: str, findings: list[annotations.ConversionEvent]
) -> Iterator[_Task]:
    """Yields the tasks that have an annotation, in the frame of the image."""
    for number, entry in enumerate(entries, start=1):
        where = f"{source}, task {number}"
        documents.is_a(entry, dict, where)
        if any(key in entry for key in _OF_MIN) and "data" not in entry:
            results = [
                result
                for key, values in entry.items()
                if key not in _NO_RESULTS and isinstance(values, list)
                for result in values
                if isinstance(result, dict) and _has_labels(result)
            ]
            url = _url(entry, where)
        else:
            # "completions" is what versions before 1.0 wrote.
            url = _url(documents.get(entry, ["data"], dict, where), where)
            keys = ["annotations", "completions"]
            listed = documents.get(entry, keys, list, where)
            annotation = _chosen(listed, where, findings)
            if annotation is None:
                findings.append(annotations.ConversionEvent(_NO_ANNOTATION, where))
                continue
            results = documents.get(annotation, ["result"], list, where)
        if any(isinstance(r, dict) and r.get("image_rotation") for r in results):
            findings.append(annotations.ConversionEvent(_TURNED, where, url))
            continue
        places = [f"{where}, result {i}" for i in range(1, len(results) + 1)]
        yield _Task(url, list(zip(places, results, strict=True)), where)


def _chosen(
    listed: list[Any], where: str, findings: list[annotations.ConversionEvent]
) -> dict[str, Any] | None:
    """Returns the annotation of a task that counts."""
    for annotation in listed:
        documents.is_a(annotation, dict, f"{where}: annotation")
    valid = [a for a in listed if not a.get("was_canceled")]
    if len(valid) > 1:
        findings.append(annotations.ConversionEvent(_SEVERAL, where))
    truths = [a for a in valid if a.get("ground_truth")]
    # Times are ISO texts, which sort; of equal ones the last is the latest.
    ordered = sorted(truths or valid, key=lambda a: str(a.get("updated_at", "")))
    return ordered[-1] if ordered else None


def _url(data: dict[str, Any], where: str) -> str:
    """Returns where a task's image is: the text of its data that names one."""
    if str(data.get("image")).startswith("data:"):
        raise errors.UserError(f"{where} holds the image itself; files are needed.")
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    found = {k: v for k, v in texts.items() if _extension(v) or v.startswith("/data/")}
    if texts.get("image") or len(found) == 1:
        return texts.get("image") or next(iter(found.values()))
    has = ", ".join(list(found or data)[:10])
    raise errors.UserError(
        f"{where} has no `image`, and of {has} it is not clear which names the image."
    )


def _extension(url: str) -> bool:
    extension = posixpath.splitext(name_matching.plain_path(url))[1].lower()
    return extension in name_matching.image_extensions()


def _names(url: str) -> list[str]:
    """Returns what the image of a URL may be called; an upload has got a prefix."""
    name = posixpath.basename(name_matching.plain_path(url))
    return [url, name, _HASH.sub("", name, count=1)]


def _content(task: _Task) -> assembly.Content:
    regions = [(i, *r) for i, r in enumerate(task.results, start=1) if _is_region(*r)]
    labeled = {str(r.get("id")) for _, _, r in regions if "id" in r and _labels(r)}
    objects, findings, of_images = [], [], set()
    for place, where, result in regions:
        labels = _labels(result, where)
        if not labels and str(result.get("id")) in labeled:
            continue  # The same region, whose labels are a result of their own.
        size = _size(result, where)
        of_images.add((size, str(result.get("to_name")), result.get("item_index") or 0))
        box_xywh = _box(result, size, where, findings)
        if box_xywh is not None and not labels:
            findings.append(annotations.ConversionEvent(listing.NO_CLASS, where))
        elif box_xywh is not None:
            objects += [assembly.LabeledBox(label, box_xywh, place) for label in labels]
    if len(of_images) > 1:
        raise errors.UserError(
            f"{task.source} has results of several images (size, to_name, item_index): "
            f"{sorted(of_images, key=str)[:3]}; give each image a task of its own."
        )
    width, height = next(iter(of_images))[0] if of_images else (0, 0)
    # The name if there is no such file.
    name = posixpath.basename(name_matching.plain_path(task.url))
    picture = assembly.ReadImage(name, height, width, objects, task.source)
    return assembly.Content(picture, findings)


def _is_region(where: str, result: Any) -> bool:
    """Returns whether a result is of a place in the image."""
    documents.is_a(result, dict, where)
    kind = result.get("type", "labels")
    return isinstance(kind, str) and (kind.endswith("labels") or kind in _PLAIN)


def _value(result: dict[str, Any]) -> dict[str, Any]:
    return result["value"] if isinstance(result.get("value"), dict) else result


def _has_labels(result: dict[str, Any]) -> bool:
    return any(key.endswith("labels") for key in _value(result))


def _labels(result: dict[str, Any], where: str = "") -> list[str]:
    """Returns the classes of a result."""
    for key, labels in _value(result).items():
        if key.endswith("labels"):
            listed = documents.is_a(labels, list, f"{where}: {key}")
            return [x for x in (documents.label(x, where) for x in listed) if x]
    return []


def _size(result: dict[str, Any], where: str) -> tuple[int, int]:
    """Returns the width and height of the image that a result is of."""
    keys = ("original_width", "original_height")
    width, height = documents.numbers(result, keys, where)
    if not (1 <= width < math.inf and 1 <= height < math.inf):
        raise errors.UserError(f"{where}: an image of {width:g} x {height:g} px")
    return int(width), int(height)


def _box(
    result: dict[str, Any],
    size: tuple[int, int],
    where: str,
    findings: list[annotations.ConversionEvent],
) -> shapes.Box | None:
    """Returns the box around a result's shape; None if it encloses nothing."""
    value = _value(result)
    (degrees,) = documents.number_list([value.get("rotation") or 0], where)
    if "points" in value:
        points = documents.is_a(value["points"], list, f"{where}: points")
        for point in points:
            if not isinstance(point, list) or len(point) != 2:
                raise errors.UserError(f"{where} has points that are not [[x, y], ...]")
        xs, ys = (
            _to_px([point[axis] for point in points], [size[axis]], where)
            for axis in (0, 1)
        )
        box_xywh = shapes.polygon(xs, ys, where)
    elif "radiusX" in value:
        numbers = documents.numbers(value, ("x", "y", "radiusX", "radiusY"), where)
        box_xywh = shapes.ellipse(*_to_px(numbers, size, where), degrees)
    elif "height" in value:
        numbers = documents.numbers(value, ("x", "y", "width", "height"), where)
        box_xywh = tuple(_to_px(numbers, size, where))
        if degrees == 0:
            return box_xywh
        box_xywh = shapes.rectangle(box_xywh, degrees, pivot=(0, 0))
    else:
        findings.append(annotations.ConversionEvent(shapes.NO_BOX, where))
        return None
    findings.append(annotations.ConversionEvent(shapes.FRAMED, where))
    return box_xywh


def _to_px(percents: list[Any], sides: Sequence[int], where: str) -> list[float]:
    """Returns px of percents that are, in turn, of each of the sides."""
    values = documents.number_list(percents, where)
    return [x * side / 100 for x, side in zip(values, itertools.cycle(sides))]
