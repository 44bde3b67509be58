"""Turns the detections of an evaluation into COCO's numbers and a few images."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from absl import logging

from retinanet_tpu import structures
from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import coco_metric, visualize

PROGRESS_EVERY = 1000  # Images between two log lines.


def make_metric_fn(
    annotation_file: str,
    *,
    categories: category_map.Categories,
    examples_fn: Callable[[], structures.Features] | None = None,
) -> Callable[[Iterable], dict[str, Any]]:
    """Returns the host half of the evaluation: batches of detections -> results.

    Args:
      annotation_file: COCO JSON of the same images.
      categories: names of the ids.
      examples_fn: gives the images to draw detections on, as a batch of Features.
    """

    def metric_fn(batches):
        shown = examples_fn() if examples_fn else None
        kept = {}
        truth = coco_metric.ground_truth(annotation_file)
        wanted = set() if shown is None else set(shown.image_ids.tolist())
        result = coco_metric.evaluate(_collect_detections(batches, wanted, kept), truth)
        logging.info("COCO\n%s", coco_metric.table(result))
        logging.info("AP by class\n%s", coco_metric.per_class_table(result))
        if kept:
            result["detections"] = _pictures(shown, kept, categories)
        return result

    return metric_fn


def _collect_detections(batches, wanted, kept) -> Iterator:
    """Passes batches on, keeps the detections of some images, tells how far it is."""
    num_images = 0
    for detections, image_ids in batches:
        for row, image_id in enumerate(image_ids.tolist()):
            if image_id in wanted and image_id != structures.PADDING_IMAGE:
                kept[image_id] = structures.Detections(*(x[row] for x in detections))
        before, num_images = num_images, num_images + len(image_ids)
        if before // PROGRESS_EVERY != num_images // PROGRESS_EVERY:
            logging.info("Evaluated %d images", num_images)
        yield detections, image_ids


def _pictures(shown, kept, categories):
    """Returns uint8 [n, H, W, 3]: the network's inputs with what was found in them."""
    names = {category.id: category.name for category in categories.categories}
    drawn = []
    for image, image_id, scale in zip(
        shown.images, shown.image_ids.tolist(), shown.scales, strict=True
    ):
        if image_id in kept:
            found, count = kept[image_id], int(kept[image_id].num_detections)
            boxes_yxyx = found.boxes_yxyx[:count] * np.tile(scale, 2)
            drawn.append(
                visualize.draw_detections(
                    image,
                    boxes_yxyx,
                    found.scores[:count],
                    found.classes[:count],
                    names=names,
                )
            )
    return np.stack(drawn)
