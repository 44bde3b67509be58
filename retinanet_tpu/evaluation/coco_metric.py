"""COCO's detection numbers, computed by pycocotools itself.

  result = coco_metric.evaluate(batches, coco_metric.ground_truth(path))
  print(coco_metric.table(result))

pycocotools writes -1 where an area range or a category has no annotated box; so does
this module.
"""

import contextlib
import io
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from absl import logging
from pycocotools import coco as coco_lib, cocoeval

from retinanet_tpu import annotation_fields, errors, structures
from retinanet_tpu.evaluation import annotation_file


class Metric(NamedTuple):
    """One of the twelve numbers, with the words pycocotools prints beside it."""

    name: str
    iou: str
    area: str
    max_detections: int


# In the order of COCOeval.stats.
METRICS = (
    Metric("AP", "0.50:0.95", "all", 100),
    Metric("AP50", "0.50", "all", 100),
    Metric("AP75", "0.75", "all", 100),
    Metric("APs", "0.50:0.95", "small", 100),
    Metric("APm", "0.50:0.95", "medium", 100),
    Metric("APl", "0.50:0.95", "large", 100),
    Metric("AR1", "0.50:0.95", "all", 1),
    Metric("AR10", "0.50:0.95", "all", 10),
    Metric("AR100", "0.50:0.95", "all", 100),
    Metric("ARs", "0.50:0.95", "small", 100),
    Metric("ARm", "0.50:0.95", "medium", 100),
    Metric("ARl", "0.50:0.95", "large", 100),
)
_MAX_AREA = 1e10  # px, that pycocotools scores.
_NO_CATEGORY = -1  # As data/categories.py has it, which is a sibling.


def ground_truth(path: str) -> coco_lib.COCO:
    """Reads a COCO annotation file.

    Absent `info`, `iscrowd` and `area` (then the box's) are filled in. So is an area
    that cannot be that of its box, with a warning.

    Args:
      path: a JSON file with `images`, `annotations` and `categories`, local or remote.
    Returns:
      pycocotools' index of the file.
    Raises:
      UserError: The file is not valid, see `annotation_file.read`, or it has no
        annotation that a detection can match.
    """
    dataset = annotation_file.read(path)
    dataset.setdefault("info", {})
    for number, annotation in enumerate(dataset["annotations"], start=1):
        # pycocotools reads id 0 as "unmatched" and drops all but one of equal ids.
        annotation["id"] = number
    _complete(dataset["annotations"], path)
    _check_any_counts(dataset["annotations"], path)
    return _coco(dataset)


def _complete(annotations: list[dict], path: str) -> None:
    """Fills in crowd flags and areas, and replaces areas that do not fit their box."""
    sizes = [tuple(annotation["bbox"][2:]) for annotation in annotations]
    annotated = [annotation.get("area") for annotation in annotations]
    areas = annotation_fields.areas(annotated, sizes)
    wrong = []
    for annotation, area, size in zip(annotations, areas, sizes, strict=True):
        where = f"{path}: annotation {annotation['id']} has iscrowd"
        is_crowd = annotation_fields.is_set(annotation.get("iscrowd"), where)
        annotation["iscrowd"] = int(is_crowd)
        if area is None and annotation.get("area") not in (None, "") and all(size):
            wrong.append(annotation["id"])
        annotation["area"] = size[0] * size[1] if area is None else area
    if wrong:
        logging.warning(
            "%s: %d of %d areas do not fit their box, first that of annotation %d; the "
            "area of the box is used, which decides between APs, APm and APl.",
            path,
            len(wrong),
            len(annotations),
            wrong[0],
        )


def detection_records(
    boxes_yxyx: np.ndarray, scores: np.ndarray, classes: np.ndarray, image_id: int
) -> list[dict]:
    """Returns the objects found in an image as entries of a COCO results file.

    Args:
      boxes_yxyx: float [D, 4], pixels of the original image; never rounded.
      scores: float [D].
      classes: int [D], category ids of the annotation file.
      image_id: id of the image in the annotation file.
    Returns:
      D dicts with image_id, category_id, bbox (x, y, width, height) and score.
    """
    boxes = np.asarray(boxes_yxyx, np.float64)
    ymin, xmin, ymax, xmax = boxes.T
    boxes_xywh = np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)
    rows = zip(
        boxes_xywh.tolist(), np.asarray(scores, np.float64), classes, strict=True
    )
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category),
            "bbox": box,
            "score": float(score),
        }
        for box, score, category in rows
    ]


def evaluate(
    batches: Iterable[tuple[structures.Detections, np.ndarray]],
    ground_truth: coco_lib.COCO,
    *,
    is_partial: bool = False,
) -> dict:
    """Scores detections against an annotation file.

    Args:
      batches: pairs of Detections as arrays, with boxes in pixels of the original image
        and classes as category ids of the file, and int64 [B] image ids. Images whose
        id is PADDING_IMAGE and detections of NO_CATEGORY (-1, from an output that no
        category uses) are skipped; images without detections count.
      ground_truth: what `ground_truth(path)` returned; may be used again.
      is_partial: scores the images that came, and forgives those that did not.
    Returns:
      The twelve numbers in the order of METRICS, `per_class` ({category name: AP}),
      `num_images` and `num_detections`. 0 where nothing was detected, -1 where nothing
      is annotated.
    Raises:
      UserError: an image came twice, is not in the file or never came; a category is
        not in the file; a box or score is not finite.
    """
    records, image_ids = _collect(batches, ground_truth)
    missing = sorted(set(ground_truth.imgs) - image_ids)
    if missing and not is_partial:
        raise errors.UserError(
            f"{len(missing)} of {len(ground_truth.imgs)} annotated images were never "
            f"predicted: ids {annotation_file.few(missing)}. Evaluate the whole set "
            "(do not drop the last batch), or pass is_partial=True."
        )
    if not image_ids:
        raise errors.UserError("No image was predicted; check the evaluation files.")
    evaluator = _run(ground_truth, records, sorted(image_ids))
    stats = map(float, evaluator.stats)
    result = {metric.name: value for metric, value in zip(METRICS, stats, strict=True)}
    result["per_class"] = _per_class(evaluator)
    result["num_images"] = len(image_ids)
    result["num_detections"] = len(records)
    return result


def table(result: dict) -> str:
    """Returns the twelve lines that COCO users know, from a result of `evaluate`."""
    lines = []
    for metric in METRICS:
        kind = f"({metric.name[:2]})"
        title = "Average Precision" if kind == "(AP)" else "Average Recall"
        lines.append(
            f" {title:<18} {kind} @[ IoU={metric.iou:<9} | area={metric.area:>6} "
            f"| maxDets={metric.max_detections:>3} ] = {result[metric.name]:0.3f}"
        )
    return "\n".join(lines)


def per_class_table(result: dict, *, columns: int = 3) -> str:
    """Returns each category's AP, best first, read down each column.

    Args:
      result: a result of `evaluate`.
      columns: how many categories share a line.
    """
    ranked = sorted(result["per_class"].items(), key=lambda item: -item[1])
    width = max(len(name) for name, _ in ranked)
    cells = [f"{name:<{width}} {_number(value)}" for name, value in ranked]
    rows = -(-len(cells) // columns)
    return "\n".join(" | ".join(cells[row::rows]) for row in range(rows))


def _number(value: float) -> str:
    return "    -" if value < 0 else f"{value:0.3f}"


def _check_any_counts(annotations: list[dict], path: str) -> None:
    """Raises UserError for a file against which every AP would be -1."""
    if not any(_counts(annotation) for annotation in annotations):
        num_crowds = sum(bool(a["iscrowd"]) for a in annotations)
        raise errors.UserError(
            f"{path} has no annotation that a detection can match: "
            f"{len(annotations)} annotations, {num_crowds} of them crowds (iscrowd), "
            f"the others without area or above {_MAX_AREA:.0f} px. Give a file with at "
            "least one object."
        )


def _counts(annotation: dict) -> bool:
    _, _, width, height = annotation["bbox"]
    has_area = width * height > 0 and annotation["area"] <= _MAX_AREA
    return has_area and not annotation["iscrowd"]


def _collect(batches, ground_truth: coco_lib.COCO) -> tuple[list[dict], set[int]]:
    """Returns the records of all batches and the ids of the images that came."""
    records, seen = [], set()
    for detections, image_ids in batches:
        for row, image_id in enumerate(np.asarray(image_ids).tolist()):
            if image_id == structures.PADDING_IMAGE:
                continue
            if image_id in seen:
                raise errors.UserError(
                    f"Image {image_id} was predicted twice; the evaluation data must "
                    "not repeat, and no two hosts may read the same file."
                )
            if image_id not in ground_truth.imgs:
                raise errors.UserError(
                    f"Image {image_id} is not in the annotation file (ids "
                    f"{annotation_file.few(sorted(ground_truth.imgs))}); the TFRecords "
                    "and the annotation file must come from the same data set."
                )
            seen.add(image_id)
            records += _image_records(detections, row, image_id)
    unknown = {record["category_id"] for record in records} - set(ground_truth.cats)
    if unknown:
        raise errors.UserError(
            f"Detections have category ids {annotation_file.few(sorted(unknown))}; the "
            f"annotation file has {annotation_file.few(sorted(ground_truth.cats))}. "
            "Train and evaluate with the same categories.json, whose ids are the "
            "file's."
        )
    return records, seen


def _image_records(detections, row: int, image_id: int) -> list[dict]:
    count = int(detections.num_detections[row])
    boxes = np.asarray(detections.boxes_yxyx)[row, :count]
    scores = np.asarray(detections.scores)[row, :count]
    classes = np.asarray(detections.classes)[row, :count]
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise errors.UserError(
            f"Image {image_id} has a detection that is not finite; the checkpoint's "
            "weights have probably diverged, go back to an earlier one."
        )
    used = classes != _NO_CATEGORY
    return detection_records(boxes[used], scores[used], classes[used], image_id)


def _coco(dataset: dict) -> coco_lib.COCO:
    coco = coco_lib.COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _run(ground_truth, records: list[dict], image_ids: list[int]):
    # COCO.loadRes raises IndexError on an empty list and adds a polygon to each box.
    for number, record in enumerate(records, start=1):
        record["id"] = number
        record["area"] = record["bbox"][2] * record["bbox"][3]
        record["iscrowd"] = 0
    dataset = {key: ground_truth.dataset[key] for key in ("images", "categories")}
    detected = _coco({**dataset, "annotations": records})
    evaluator = cocoeval.COCOeval(ground_truth, detected, iouType="bbox")
    evaluator.params.imgIds = image_ids
    with contextlib.redirect_stdout(io.StringIO()):
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return evaluator


def _per_class(evaluator: cocoeval.COCOeval) -> dict[str, float]:
    # [IoU, recall, category, all areas, 100 detections], -1 where nothing is annotated.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    values = {}
    for index, category in enumerate(evaluator.params.catIds):
        known = precision[:, :, index][precision[:, :, index] > -1]
        name = evaluator.cocoGt.cats[category]["name"]
        values[name] = float(known.mean()) if known.size else -1.0
    return values
