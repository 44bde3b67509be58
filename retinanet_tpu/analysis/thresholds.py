"""Finds the thresholds of the score with the highest F1."""

from collections.abc import Sequence
from typing import Any

from pycocotools.coco import COCO

from retinanet_tpu.analysis import arrays, curves, image_detections, matching


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
    all_classes, classes = curves.class_results(data, matching.match(data))
    threshold = curves.best_threshold(all_classes.curve)
    if threshold is None:
        return {}
    per_class = {result.name: curves.best_threshold(result.curve) for result in classes}
    return {
        "best_threshold": threshold,
        "best_f1": float(all_classes.curve.f1.max()),
        "per_class_threshold": {
            name: value for name, value in per_class.items() if value is not None
        },
    }
