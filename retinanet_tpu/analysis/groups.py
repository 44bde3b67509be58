"""Evaluates parts of the objects or images: by size, shape, crowding and source.

Objects outside a group are ignored, as pycocotools does for area ranges. A detection
without an object counts in the groups that it belongs to itself.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from retinanet_tpu.analysis import arrays, average_precision, matching, results

_SIZE_NAMES = {
    "small": "small: below 32 px",
    "medium": "medium: 32 to 96 px",
    "large": "large: above 96 px",
}
_ELONGATED = 2.0  # The ratio of the sides from which a box is wide or tall.
_CROWDED = (0.1, 0.5)  # The highest IoU with another object.
_MAX_SOURCES = 20
_SEPARATORS = re.compile(r"[/\\_\-]")


class _Part(NamedTuple):
    """A part of the objects, and of the detections without one."""

    dimension: str
    name: str
    objects: np.ndarray
    detections: np.ndarray


def groups(data: arrays.Data) -> list[results.Group]:
    """Returns the results of all groups that have objects.

    Args:
      data: The objects and detections.
    """
    parts = [*_sizes(data), *_aspects(data), *_crowding(data), *_sources(data)]
    values = [_result(data, part) for part in parts]
    return [group for group in values if group.num_objects]


def _result(data: arrays.Data, part: _Part) -> results.Group:
    matches = matching.match(data, objects=part.objects, detections=part.detections)
    precision = average_precision.by_class(data, matches)
    num_objects = int(matches.counts.sum())
    num_found = int(matches.is_correct[matching.AT_50].sum())
    return results.Group(
        dimension=part.dimension,
        name=part.name,
        num_objects=num_objects,
        ap=average_precision.mean(precision),
        ap50=average_precision.mean(precision[matching.AT_50]),
        recall50=num_found / num_objects if num_objects else -1.0,
    )


def _sizes(data: arrays.Data) -> Iterator[_Part]:
    """Yields COCO's sizes. An area on a border belongs to both, as in pycocotools."""
    for size, (low, high) in average_precision.SIZES.items():
        inside = [
            (a >= low) & (a <= high) for a in (data.objects.area, data.found.area)
        ]
        yield _Part("size", _SIZE_NAMES[size], *inside)


def _aspects(data: arrays.Data) -> Iterator[_Part]:
    ratios = [_ratio(data.objects.boxes_yxyx), _ratio(data.found.boxes_yxyx)]
    high, low = _ELONGATED, 1 / _ELONGATED
    yield _Part("aspect ratio", "wide: above 2:1", *(r > high for r in ratios))
    yield _Part(
        "aspect ratio",
        "between 1:2 and 2:1",
        *((r >= low) & (r <= high) for r in ratios),
    )
    yield _Part("aspect ratio", "tall: below 1:2", *(r < low for r in ratios))


def _ratio(boxes_yxyx: np.ndarray) -> np.ndarray:
    """Returns float64 [N], width divided by height; 1 for a box without both."""
    ymin, xmin, ymax, xmax = boxes_yxyx.T
    width, height = np.maximum(xmax - xmin, 0), np.maximum(ymax - ymin, 0)
    tiny = np.finfo(np.float64).tiny
    return (width + tiny) / (height + tiny)


def _crowding(data: arrays.Data) -> Iterator[_Part]:
    """Yields groups by the highest IoU of an object with another one.

    A detection belongs to the group of the nearest object; the first one without any.
    """
    overlap = _overlap(data)
    nearest = _nearest_object(data)
    of_detection = np.append(overlap, 0.0)[nearest]
    low, high = _CROWDED
    values = (overlap, of_detection)
    dimension = "crowding"
    yield _Part(dimension, "apart: IoU below 0.1", *(v < low for v in values))
    yield _Part(
        dimension,
        "touching: IoU from 0.1 to 0.5",
        *((v >= low) & (v < high) for v in values),
    )
    yield _Part(dimension, "crowded: IoU from 0.5", *(v >= high for v in values))


def _overlap(data: arrays.Data) -> np.ndarray:
    """Returns float64 [G], the highest IoU with another object of the image."""
    objects = data.objects
    overlap = np.zeros(len(objects.image))
    edges = np.searchsorted(objects.image, np.arange(len(data.images) + 1))
    for image in np.flatnonzero(np.diff(edges) > 1):
        rows = np.arange(edges[image], edges[image + 1])
        rows = rows[~objects.is_crowd[rows]]
        if len(rows) > 1:
            boxes = objects.boxes_yxyx[rows]
            ious = arrays.iou(boxes, boxes, np.zeros(len(rows)))
            np.fill_diagonal(ious, 0.0)
            overlap[rows] = ious.max(axis=1)
    return overlap


def _nearest_object(data: arrays.Data) -> np.ndarray:
    """Returns int [D], the object of any class with the highest IoU, or -1."""
    pairs = data.pairs.where(~data.objects.is_crowd[data.pairs.object])
    order = np.lexsort((-pairs.iou, pairs.detection))
    detection, first = np.unique(pairs.detection[order], return_index=True)
    nearest = np.full(len(data.found.image), -1)
    nearest[detection] = pairs.object[order][first]
    return nearest


def _sources(data: arrays.Data) -> Iterator[_Part]:
    names = np.array(_source_names([str(i.get("file_name", "")) for i in data.images]))
    for name in np.unique(names):
        is_source = names == name
        yield _Part(
            "source",
            str(name),
            is_source[data.objects.image],
            is_source[data.found.image],
        )


def _source_names(file_names: list[str]) -> list[str]:
    """Returns the source of each image; none if there are not 2 to 20 of them."""
    folders = [re.split(r"[/\\]", name)[0] for name in file_names]
    prefixes = [_SEPARATORS.split(name)[0] for name in file_names]
    for names, is_split in (
        (folders, all(re.search(r"[/\\]", name) for name in file_names)),
        (prefixes, all(_SEPARATORS.search(name) for name in file_names)),
    ):
        # As many sources as images are numbers or names, not sources.
        is_some = 2 <= len(set(names)) <= _MAX_SOURCES and len(set(names)) < len(names)
        if is_split and is_some:
            return names
    return []
