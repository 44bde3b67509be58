"""Computes COCO metrics from the detections of an evaluation, and draws examples."""

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from pycocotools.coco import COCO

from retinanet_tpu import errors, structures
from retinanet_tpu.analysis import (
    analyze,
    image_detections,
    page,
    results,
    thresholds,
)
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import result_types
from retinanet_tpu.evaluation import coco_metric, open_images_metric, visualize

PROGRESS_EVERY = 1000  # Images between two log lines.

# Batches of detections and their image ids -> metrics by name.
MetricFn = Callable[[Iterable[coco_metric.DetectionBatch]], dict[str, Any]]


def make_metric_fn(
    annotation_file: str,
    *,
    categories: category_map.Categories,
    examples_fn: Callable[[], structures.Features] | None = None,
    extra_metrics: Sequence[open_images_metric.OpenImagesMetric] = (),
    analysis_image_fn: page.ImageFn | None = None,
) -> MetricFn:
    """Returns the function that turns detections into metrics on the host.

    Args:
      annotation_file: The path of a COCO JSON file of the evaluated images.
      categories: The categories, for their names.
      examples_fn: Returns the images to draw detections on, as a batch of Features.
      extra_metrics: The metrics beside COCO's.
      analysis_image_fn: Returns an image by its id. With it, the results contain a page
        that analyzes the detections.
    Raises:
      UserError: There are several extra metrics, whose results would have one name.
    """
    if len(extra_metrics) > 1:
        raise errors.UserError(
            f"make_run.extra_metrics has {len(extra_metrics)} metrics, whose results "
            "have the same names; keep one."
        )

    def metric_fn(batches: Iterable[coco_metric.DetectionBatch]) -> dict[str, Any]:
        examples = examples_fn() if examples_fn else None
        truth = coco_metric.ground_truth(annotation_file)
        evaluator = coco_metric.Evaluator(truth)
        found: list[image_detections.ImageDetections] = []
        example_ids = set() if examples is None else set(examples.image_ids.tolist())
        detections_by_id: dict[int, structures.Detections] = {}
        num_images = 0
        for detections, image_ids in batches:
            evaluator.add(detections, image_ids)
            found += image_detections.from_batch(detections, image_ids)
            detections_by_id |= _detections_in(example_ids, detections, image_ids)
            before = num_images
            num_images += len(image_ids)
            if before // PROGRESS_EVERY != num_images // PROGRESS_EVERY:
                logging.info("Evaluated %d images", num_images)
        curves = thresholds.curves_at_50(truth, found)
        result = evaluator.result() | thresholds.best_thresholds(curves)
        result["precision-recall"] = _tensorboard_curves(curves)
        logging.info("COCO\n%s", coco_metric.table(result))
        logging.info("AP by class\n%s", coco_metric.per_class_table(result))
        for metric in extra_metrics:
            result |= metric(truth, *evaluator.detected())
            logging.info("%s", open_images_metric.table(result))
        if examples is not None and detections_by_id:
            result["detections"] = _draw_examples(
                examples, detections_by_id, categories
            )
        if analysis_image_fn:
            result["analysis"] = result_types.Report(
                functools.partial(_analysis_page, truth, found, analysis_image_fn)
            )
        return result

    return metric_fn


def _tensorboard_curves(curves: thresholds.Curves) -> result_types.Curves:
    """Returns the curves in the form that the estimator writes."""

    def counts(curve: results.Curve) -> np.ndarray:
        missed = curve.num_objects - curve.num_correct
        return np.stack([curve.num_correct, curve.num_wrong, missed])

    whole = {"all classes": counts(curves.all_classes)}
    return result_types.Curves(
        whole | {name: counts(curve) for name, curve in curves.per_class.items()}
    )


def _analysis_page(
    truth: COCO,
    found: Sequence[image_detections.ImageDetections],
    image_fn: page.ImageFn,
    step: int,
    records: Sequence[Mapping[str, Any]],
) -> str:
    """Returns the HTML page that `retinanet_tpu.analyze` writes."""
    return page.html(
        analyze.analyze(truth, found),
        title=f"Analysis of step {step}",
        image_fn=image_fn,
        compared=page.previous_and_best(records, step),
    )


def _detections_in(
    example_ids: Collection[int],
    detections: structures.Detections,
    image_ids: np.ndarray,
) -> dict[int, structures.Detections]:
    """Returns the detections of each image of a batch that is an example, by id."""
    return {
        image_id: structures.Detections(*(x[row] for x in detections))
        for row, image_id in enumerate(image_ids.tolist())
        if image_id in example_ids and image_id != structures.PADDING_IMAGE
    }


def _draw_examples(
    examples: structures.Features,
    detections_by_id: Mapping[int, structures.Detections],
    categories: category_map.Categories,
) -> np.ndarray:
    """Returns uint8 [n, H, W, 3]: the network's inputs with their detections."""
    names = {category.id: category.name for category in categories.categories}
    drawings = []
    for image, image_id, scale in zip(
        examples.images, examples.image_ids.tolist(), examples.scales, strict=True
    ):
        if image_id in detections_by_id:
            detections = detections_by_id[image_id]
            count = int(detections.num_detections)
            drawings.append(
                visualize.draw_detections(
                    image,
                    detections.boxes_yxyx[:count] * np.tile(scale, 2),
                    detections.scores[:count],
                    detections.classes[:count],
                    names=names,
                )
            )
    return np.stack(drawings)
