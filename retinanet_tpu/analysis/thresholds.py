"""Finds the thresholds of the score with the highest F1."""

from collections.abc import Sequence
from typing import Any

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


def best_thresholds(
    truth: COCO, detections: Sequence[image_detections.ImageDetections]
) -> dict[str, Any]:
    """Returns the thresholds of the highest F1 at IoU 0.5.

    Args:
      truth: The annotations, see `coco_metric.ground_truth`.
      detections: The detections, at most one entry per image.
    Returns:
      `best_threshold` and `best_f1` of all detections together, and
      `per_class_threshold` ({category name: threshold}) of the classes that are
      detected. Nothing if no object is.
    """
    data = arrays.collect(truth, detections, None)
    matches = matching.match(data, thresholds=matching.IOU_THRESHOLDS[:1])
    num_objects = average_precision.num_counted(data, matches)

    def curve(rows: np.ndarray, count: int) -> results.Curve:
        is_correct, is_wrong = matches.is_correct[0, rows], matches.is_wrong[0, rows]
        return curves.curve(data.found.score[rows], is_correct, is_wrong, count)

    whole = curve(data.by_score, int(num_objects.sum()))
    if whole.best_threshold is None:
        return {}
    per_class = {
        name: curve(average_precision.of_class(data, label), int(num_objects[label]))
        for label, name in enumerate(data.names)
    }
    return {
        "best_threshold": whole.best_threshold,
        "best_f1": float(whole.f1.max()),
        "per_class_threshold": {
            name: of_class.best_threshold
            for name, of_class in per_class.items()
            if of_class.best_threshold is not None
        },
    }
