"""Reads Label Studio: one JSON list of tasks, shapes in percent of the image's sides.

The supported exports are "JSON" and "JSON-MIN".
"""

import itertools
import math
import os
import posixpath
import re
from collections.abc import Sequence
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

_SEVERAL = "tasks annotated several times, of which one annotation was used"
_NO_ANNOTATION = "tasks without annotation, left out"
_TURNED = "images turned in Label Studio, left out"
_JSON_MIN_KEYS = ("annotation_id", "annotator")
_NO_RESULTS = ("predictions", "drafts", "meta")
# The prefix that Label Studio adds to the name of an uploaded file.
_UPLOAD_PREFIX = re.compile(r"[0-9a-f]{8}-(?=.)")
# Types of results without a label. Types with a label end in "labels".
_UNLABELED_TYPES = ("rectangle", "polygon", "ellipse", "brush", "keypoint")


class _Task(NamedTuple):
    """An image and its results.

    Attributes:
      url: The URL or path of the image.
      results: The location in the file and the content of each result.
      source: The file and the task.
    """

    url: str
    results: list[tuple[str, dict[str, Any]]]
    source: str


def read(
    path: str,
    *,
    image_folder: files.ImageFolder,
    categories: list[dict[str, Any]] | None = None,
) -> annotations.AnnotatedSet:
    """Reads the tasks of a project.

    Polygons, ellipses and rotated rectangles are replaced by the boxes around them. If
    a task has several annotations, the ground truth is read, or else the latest.
    Canceled annotations and predictions are ignored. A result with several labels
    becomes one box per label.

    Args:
      path: The JSON file.
      image_folder: The folder of images. Images have the names in the tasks' URLs, with
        or without the prefix that Label Studio adds to uploads.
      categories: The classes; None for all that occur in the file, sorted.

    Raises:
      UserError: The file has another structure, or a class is unknown.
      MissingFileError: The file does not exist.
    """
    content = documents.load_json(files.read_bytes(path), path)
    source = os.path.basename(path)
    tasks: list[_Task] = []
    events: list[annotations.ConversionEvent] = []
    for number, entry in enumerate(documents.expect(content, list, path), start=1):
        task, of_task = _task(entry, f"{source}, task {number}")
        events += of_task
        if task is not None:
            tasks.append(task)
    return listing.assemble(
        [_content(task) for task in tasks],
        path=path,
        image_folder=image_folder,
        categories=categories,
        unit="result",
        events=events,
        names=[_names(task.url) for task in tasks],
    )


def _task(
    entry: Any, where: str
) -> tuple[_Task | None, list[annotations.ConversionEvent]]:
    """Returns a task, None if it has no usable annotation, and the events about it."""
    documents.expect(entry, dict, where)
    events: list[annotations.ConversionEvent] = []
    if any(key in entry for key in _JSON_MIN_KEYS) and "data" not in entry:
        results = [
            result
            for key, values in entry.items()
            if key not in _NO_RESULTS and isinstance(values, list)
            for result in values
            if isinstance(result, dict) and _has_labels(result)
        ]
        url = _url(entry, where)
    else:
        url = _url(documents.get(entry, ["data"], dict, where), where)
        # Versions before 1.0 wrote "completions".
        keys = ["annotations", "completions"]
        listed = documents.get(entry, keys, list, where)
        for annotation in listed:
            documents.expect(annotation, dict, f"{where}: annotation")
        valid = [a for a in listed if not a.get("was_canceled")]
        if not valid:
            return None, [annotations.ConversionEvent(_NO_ANNOTATION, where)]
        if len(valid) > 1:
            events.append(annotations.ConversionEvent(_SEVERAL, where))
        results = documents.get(_preferred(valid), ["result"], list, where)
    if any(isinstance(r, dict) and r.get("image_rotation") for r in results):
        events.append(annotations.ConversionEvent(_TURNED, where, url))
        return None, events
    locations = [f"{where}, result {i}" for i in range(1, len(results) + 1)]
    return _Task(url, list(zip(locations, results, strict=True)), where), events


def _preferred(valid: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the latest annotation of the ground truth, or else of all."""
    truths = [a for a in valid if a.get("ground_truth")]
    # Times are ISO texts, which sort by time; of equal times the last entry is used.
    return sorted(truths or valid, key=lambda a: str(a.get("updated_at", "")))[-1]


def _url(data: dict[str, Any], where: str) -> str:
    """Returns the URL of a task's image: the only text of its data that is one."""
    if str(data.get("image")).startswith("data:"):
        raise errors.UserError(
            f"{where} contains the image itself; image files are required."
        )
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    urls = {
        key: value
        for key, value in texts.items()
        if _is_image(value) or value.startswith("/data/")
    }
    if texts.get("image") or len(urls) == 1:
        return texts.get("image") or next(iter(urls.values()))
    candidates = ", ".join(list(urls or data)[:10])
    raise errors.UserError(
        f"{where} has no `image`, and it is ambiguous which of {candidates} names the "
        "image."
    )


def _is_image(url: str) -> bool:
    """Returns whether a URL has the extension of an image."""
    extension = posixpath.splitext(name_matching.plain_path(url))[1].lower()
    return extension in name_matching.image_extensions()


def _names(url: str) -> list[str]:
    """Returns the file names that the image of a URL may have, best name first."""
    name = posixpath.basename(name_matching.plain_path(url))
    return [url, name, _UPLOAD_PREFIX.sub("", name, count=1)]


def _content(task: _Task) -> assembly.Content:
    """Returns the annotations of a task.

    Raises:
      UserError: A result has another structure, or results are of several images.
    """
    regions = [(i, *r) for i, r in enumerate(task.results, start=1) if _is_region(*r)]
    labeled = {str(r.get("id")) for _, _, r in regions if "id" in r and _labels(r)}
    objects: list[assembly.LabeledBox] = []
    events: list[annotations.ConversionEvent] = []
    images: set[tuple[Any, ...]] = set()
    for place, where, result in regions:
        labels = _labels(result, where)
        if not labels and str(result.get("id")) in labeled:
            continue  # A separate result contains the labels of this region.
        size = _size(result, where)
        images.add(
            (size, str(result.get("to_name")), str(result.get("item_index") or 0))
        )
        box_xywh, kind = _box(result, size, where)
        if kind is not None:
            events.append(annotations.ConversionEvent(kind, where))
        if box_xywh is not None and not labels:
            events.append(annotations.ConversionEvent(listing.NO_CLASS, where))
        elif box_xywh is not None:
            objects += [assembly.LabeledBox(label, box_xywh, place) for label in labels]
    if len(images) > 1:
        raise errors.UserError(
            f"{task.source} has results of several images (size, to_name, item_index): "
            f"{sorted(images, key=str)[:3]}; give each image a separate task."
        )
    width, height = next(iter(images))[0] if images else (0, 0)
    # The name that reports show if the folder does not contain the image.
    name = posixpath.basename(name_matching.plain_path(task.url))
    image = assembly.ReadImage(name, height, width, objects, task.source)
    return assembly.Content(image, events)


def _is_region(where: str, result: Any) -> bool:
    """Returns whether a result is a region of the image."""
    documents.expect(result, dict, where)
    kind = result.get("type", "labels")
    return isinstance(kind, str) and (
        kind.endswith("labels") or kind in _UNLABELED_TYPES
    )


def _value(result: dict[str, Any]) -> dict[str, Any]:
    """Returns the shape and labels of a result; in JSON-MIN, the result itself."""
    return result["value"] if isinstance(result.get("value"), dict) else result


def _has_labels(result: dict[str, Any]) -> bool:
    """Returns whether a result has a key of labels."""
    return any(key.endswith("labels") for key in _value(result))


def _labels(result: dict[str, Any], where: str = "") -> list[str]:
    """Returns the classes of a result."""
    for key, labels in _value(result).items():
        if key.endswith("labels"):
            listed = documents.expect(labels, list, f"{where}: {key}")
            return [x for x in (documents.label(x, where) for x in listed) if x]
    return []


def _size(result: dict[str, Any], where: str) -> tuple[int, int]:
    """Returns the width and height of a result's image, px."""
    keys = ("original_width", "original_height")
    width, height = documents.numbers(result, keys, where)
    if not (1 <= width < math.inf and 1 <= height < math.inf):
        raise errors.UserError(f"{where}: an image of {width:g} x {height:g} px.")
    return int(width), int(height)


def _box(
    result: dict[str, Any], size: tuple[int, int], where: str
) -> tuple[shapes.Box | None, str | None]:
    """Returns the box around a shape, px, and the kind of event; None for neither."""
    value = _value(result)
    (degrees,) = documents.number_list([value.get("rotation") or 0], where)
    if "points" in value:
        points = documents.expect(value["points"], list, f"{where}: points")
        for point in points:
            if not isinstance(point, list) or len(point) != 2:
                raise errors.UserError(
                    f"{where} has points that are not [[x, y], ...]."
                )
        xs, ys = (
            _to_px([point[axis] for point in points], [size[axis]], where)
            for axis in (0, 1)
        )
        box_xywh = shapes.polygon(xs, ys, where)
    elif "radiusX" in value:
        numbers = documents.numbers(value, ("x", "y", "radiusX", "radiusY"), where)
        x, y, rx, ry = _to_px(numbers, size, where)
        box_xywh = shapes.ellipse(x, y, rx, ry, degrees)
    elif "height" in value:
        numbers = documents.numbers(value, ("x", "y", "width", "height"), where)
        left, top, width, height = _to_px(numbers, size, where)
        box_xywh = (left, top, width, height)
        if degrees == 0:
            return box_xywh, None
        box_xywh = shapes.rectangle(box_xywh, degrees, pivot=(0, 0))
    else:
        return None, shapes.NO_BOX
    return box_xywh, shapes.FRAMED


def _to_px(percents: list[Any], sides: Sequence[int], where: str) -> list[float]:
    """Converts percentages to px. Value i is relative to side i modulo their number."""
    values = documents.number_list(percents, where)
    return [x * side / 100 for x, side in zip(values, itertools.cycle(sides))]
