"""Analyzes detections: why is the AP what it is?

truth = coco_metric.ground_truth(path)
result = analyze(truth, image_detections.read_results(results_path, truth))
"""

from collections.abc import Collection, Mapping, Sequence

from pycocotools.coco import COCO

from retinanet_tpu.analysis import (
    arrays,
    average_precision,
    calibration,
    confusion,
    curves,
    error_types,
    groups,
    image_detections,
    label_issues,
    matching,
    results,
    shown,
)


def analyze(
    truth: COCO,
    detections: Sequence[image_detections.ImageDetections],
    *,
    metrics: Mapping[str, float] | None = None,
    image_ids: Collection[int] | None = None,
) -> results.Analysis:
    """Returns the analysis of detections.

    As in COCO's metric, the 100 best detections of an image and a class count.

    Args:
      truth: The annotations, see `coco_metric.ground_truth`.
      detections: The detections, at most one entry per image. Images without an entry
        have none.
      metrics: The twelve metrics of COCO by name, if they are known; None to compute
        them.
      image_ids: The ids of the images that count; None for all annotated images.
    Raises:
      UserError: An image is there twice or does not count, a category is not in the
        annotation file, or arrays have a wrong shape, numbers that are not finite or
        scores outside 0..1.
    """
    data = arrays.collect(truth, detections, image_ids)
    matches = matching.match(data)
    types = error_types.classify(data, matches)
    all_classes, classes = curves.class_results(data, matches)
    threshold = all_classes.threshold
    boxes = shown.Boxes(data, matches, types, threshold)
    bins, calibration_error = calibration.calibration(data, matches)
    if metrics is None:
        metrics = average_precision.metrics(data, matches)
    return results.Analysis(
        metrics=metrics,
        all_classes=all_classes,
        classes=classes,
        errors=error_types.costs(data, matches, types),
        confusion=confusion.confusion(data, matches, threshold),
        groups=groups.groups(data),
        calibration=bins,
        calibration_error=calibration_error,
        images=shown.images(data, matches, boxes, threshold),
        label_issues=label_issues.label_issues(data, matches, types, boxes, threshold),
    )
