"""Computes the curves of precision and recall, and the thresholds of the highest F1."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO

from retinanet_tpu.analysis import (
    arrays,
    average_precision,
    curves,
    image_detections,
    matching,
    results,
)


class Curves(NamedTuple):
    """Curves at IoU 0.5.

    Attributes:
      all_classes: The curve of all detections together.
      per_class: The curve of each class by category name.
    """

    all_classes: results.Curve
    per_class: dict[str, results.Curve]


def curves_at_50(
    truth: COCO, detections: Sequence[image_detections.ImageDetections]
) -> Curves:
    """Returns the curves of detections.

    Args:
      truth: The annotations, see `coco_metric.ground_truth`.
      detections: The detections, at most one entry per image.
    """
    data = arrays.collect(truth, detections, None)
    matches = matching.match(data, thresholds=matching.IOU_THRESHOLDS[:1])
    num_objects = average_precision.num_counted(data, matches)

    def curve(rows: np.ndarray, count: int) -> results.Curve:
        is_correct, is_wrong = matches.is_correct[0, rows], matches.is_wrong[0, rows]
        return curves.curve(data.found.score[rows], is_correct, is_wrong, count)

    per_class = {
        name: curve(average_precision.of_class(data, label), int(num_objects[label]))
        for label, name in enumerate(data.names)
    }
    return Curves(curve(data.by_score, int(num_objects.sum())), per_class)


def best_thresholds(found: Curves) -> dict[str, Any]:
    """Returns the thresholds of the highest F1 at IoU 0.5.

    Args:
      found: The result of `curves_at_50`.
    Returns:
      `best_threshold` and `best_f1` of all detections together, and
      `per_class_threshold` ({category name: threshold}) of the classes that are
      detected. Nothing if no object is.
    """
    whole = found.all_classes
    if whole.best_threshold is None:
        return {}
    return {
        "best_threshold": whole.best_threshold,
        "best_f1": float(whole.f1.max()),
        "per_class_threshold": {
            name: curve.best_threshold
            for name, curve in found.per_class.items()
            if curve.best_threshold is not None
        },
    }
