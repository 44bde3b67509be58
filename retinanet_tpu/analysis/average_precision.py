"""Computes precision by recall and AP from matches, as pycocotools does."""

from collections.abc import Mapping

import numpy as np

from retinanet_tpu.analysis import arrays, matching
from retinanet_tpu.evaluation import coco_metric

RECALLS = np.linspace(0.0, 1.0, 101)
SIZES = {
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e5**2),
}


def precision_by_recall(
    is_correct: np.ndarray, is_wrong: np.ndarray, num_objects: int
) -> np.ndarray:
    """Returns float64 [T, 101], the highest precision at each recall or a higher one.

    Args:
      is_correct: bool [T, N], in the order of falling scores.
      is_wrong: bool [T, N].
      num_objects: The number of objects; with 0 the result is -1.
    Source: pycocotools, `COCOeval.accumulate`.
    """
    if not num_objects:
        return np.full((len(is_correct), len(RECALLS)), -1.0)
    correct = np.cumsum(is_correct, axis=1, dtype=np.float64)
    wrong = np.cumsum(is_wrong, axis=1, dtype=np.float64)
    precision = correct / (wrong + correct + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # A recall that is never reached has precision 0.
    highest = np.pad(highest, [(0, 0), (0, 1)])
    reached = [np.searchsorted(row / num_objects, RECALLS) for row in correct]
    return np.take_along_axis(highest, np.array(reached), axis=1)


def by_class(data: arrays.Data, matches: matching.Matches) -> np.ndarray:
    """Returns float64 [T, 101, K], the precision by recall, -1 for absent classes.

    Args:
      data: The objects and detections.
      matches: The matches at T thresholds.
    """
    num_objects = num_counted(data, matches)
    columns = []
    for label, total in enumerate(num_objects.tolist()):
        rows = of_class(data, label)
        columns.append(
            precision_by_recall(
                matches.is_correct[:, rows], matches.is_wrong[:, rows], total
            )
        )
    return np.stack(columns, axis=-1)


def of_class(data: arrays.Data, label: int) -> np.ndarray:
    """Returns the detections of a class by falling score.

    Args:
      data: The detections.
      label: The index of the class.
    """
    return data.by_score[data.class_starts[label] : data.class_starts[label + 1]]


def num_counted(data: arrays.Data, matches: matching.Matches) -> np.ndarray:
    """Returns int [K], the number of objects of each class that count.

    Args:
      data: The objects.
      matches: The matches.
    """
    labels = data.objects.label[matches.counts]
    return np.bincount(labels, minlength=len(data.names))


def mean(values: np.ndarray) -> float:
    """Returns the mean of the values that are not -1, or -1 without any.

    Args:
      values: float [...].
    """
    known = values[values > -1]
    return float(known.mean()) if known.size else -1.0


def of_size(
    data: arrays.Data, size: str, *, thresholds: np.ndarray = matching.IOU_THRESHOLDS
) -> matching.Matches:
    """Returns the matches of the objects of a size.

    Args:
      data: The objects and detections.
      size: A key of SIZES.
      thresholds: float [T], the lowest IoU of a match.
    """
    low, high = SIZES[size]
    return matching.match(
        data,
        thresholds=thresholds,
        objects=(data.objects.area >= low) & (data.objects.area <= high),
        detections=(data.found.area >= low) & (data.found.area <= high),
    )


def metrics(data: arrays.Data, matches: matching.Matches) -> Mapping[str, float]:
    """Returns the twelve metrics of COCO by name.

    Args:
      data: The objects and detections.
      matches: Their matches at IOU_THRESHOLDS.
    """
    matches_of = {size: of_size(data, size) for size in SIZES} | {"all": matches}
    precision_of = {area: by_class(data, m) for area, m in matches_of.items()}
    ious = {"0.50:0.95": slice(None), "0.50": slice(0, 1), "0.75": slice(5, 6)}
    values = {}
    for metric in coco_metric.METRICS:
        if metric.name.startswith("AP"):
            value = mean(precision_of[metric.area][ious[metric.iou]])
        else:
            value = mean(_recall(data, matches_of[metric.area], metric.max_detections))
        values[metric.name] = value
    return values


def _recall(
    data: arrays.Data, matches: matching.Matches, max_detections: int
) -> np.ndarray:
    """Returns float64 [T, K], the share of found objects, -1 for absent classes."""
    num_objects = num_counted(data, matches)
    is_found = matches.is_correct & (data.found.rank < max_detections)
    num_found = [
        np.bincount(data.found.label[row], minlength=len(data.names))
        for row in is_found
    ]
    recall = np.array(num_found) / np.maximum(num_objects, 1)
    return np.where(num_objects > 0, recall, -1.0)
