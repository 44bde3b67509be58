"""Evaluates detections with pycocotools, by COCO's metrics.

  result = coco_metric.evaluate(batches, coco_metric.ground_truth(path))
  print(coco_metric.table(result))

A metric is -1 if its area range or category has no annotated box, as in pycocotools.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from pycocotools import cocoeval
from pycocotools.coco import COCO

from retinanet_tpu import annotation_fields, errors, structures
from retinanet_tpu.evaluation import annotation_file

# Detections as arrays, with boxes in pixels of the original image and classes as
# category ids of the annotation file, and int64 [B] image ids.
DetectionBatch = tuple[structures.Detections, np.ndarray]


class Metric(NamedTuple):
    """One of the twelve metrics.

    Attributes:
      name: The short name.
      iou: The IoU thresholds, as pycocotools prints them.
      area: The area range, as pycocotools prints it.
      max_detections: The most detections of an image that count.
    """

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
_MAX_AREA = 1e10  # Larger boxes do not count in pycocotools, px.
# Equal to data/category_map.py's, which this folder may not import.
_NO_CATEGORY = -1


def ground_truth(path: str) -> COCO:
    """Reads a COCO annotation file.

    Missing `info`, `iscrowd` and `area` are filled in; the area is that of the box. An
    area that is impossible for its box is replaced, with a warning.

    Args:
      path: The path of a JSON file with `images`, `annotations` and `categories`, local
        or remote.
    Returns:
      pycocotools' index of the file.
    Raises:
      UserError: The file is not valid, see `annotation_file.read`, or it has no
        annotation that a detection can match.
    """
    dataset = annotation_file.read(path)
    dataset.setdefault("info", {})
    for number, annotation in enumerate(dataset["annotations"], start=1):
        # pycocotools interprets id 0 as "unmatched" and drops duplicate ids.
        annotation["id"] = number
    _complete(dataset["annotations"], path)
    _check_any_counts(dataset["annotations"], path)
    return _coco(dataset)


def _complete(annotations: list[dict[str, Any]], path: str) -> None:
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
            "%s: %d of %d areas do not fit their box, first that of annotation %d. The "
            "area of the box is used instead; it decides between APs, APm and APl.",
            path,
            len(wrong),
            len(annotations),
            wrong[0],
        )


def detection_records(
    boxes_yxyx: np.ndarray, scores: np.ndarray, classes: np.ndarray, image_id: int
) -> list[dict[str, Any]]:
    """Returns the detections of an image as entries of a COCO results file.

    Args:
      boxes_yxyx: float [D, 4], pixels of the original image; never rounded.
      scores: float [D], the confidences.
      classes: int [D], category ids of the annotation file.
      image_id: The id of the image in the annotation file.
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


class Evaluator:
    """The detections of an evaluation, to be compared with an annotation file."""

    def __init__(self, ground_truth: COCO):
        """Initializes the evaluator.

        Args:
          ground_truth: The result of `ground_truth(path)`; may be used again.
        """
        self._ground_truth = ground_truth
        self._records: list[dict[str, Any]] = []
        self._image_ids: set[int] = set()

    def add(self, detections: structures.Detections, image_ids: np.ndarray) -> None:
        """Adds a batch.

        Images whose id is PADDING_IMAGE are skipped, and so are detections of
        NO_CATEGORY (-1, from an output without a category). Images without detections
        count.

        Args:
          detections: The detections as arrays, with boxes in pixels of the original
            image and classes as category ids of the file.
          image_ids: int64 [B], the ids of the images.
        Raises:
          UserError: An image is added twice or is not in the file, or a box or score is
            not finite.
        """
        for row, image_id in enumerate(np.asarray(image_ids).tolist()):
            if image_id == structures.PADDING_IMAGE:
                continue
            if image_id in self._image_ids:
                raise errors.UserError(
                    f"Image {image_id} was predicted twice; the evaluation data must "
                    "not repeat, and no two hosts may read the same file."
                )
            if image_id not in self._ground_truth.imgs:
                known_ids = annotation_file.few(sorted(self._ground_truth.imgs))
                raise errors.UserError(
                    f"Image {image_id} is not in the annotation file (ids "
                    f"{known_ids}); the TFRecords and the annotation file must come "
                    "from the same dataset."
                )
            self._image_ids.add(image_id)
            self._records += _image_records(detections, row, image_id)

    def result(self, *, is_partial: bool = False) -> dict[str, Any]:
        """Returns the metrics of all batches.

        Args:
          is_partial: Whether annotated images may be missing; only the others count.
        Returns:
          The twelve metrics in the order of METRICS, `per_class` ({category name: AP}),
          `num_images` and `num_detections`. A metric is 0 without detections and -1
          without annotations.
        Raises:
          UserError: An image is missing, there is no image, or a detection has a
            category that is not in the file.
        """
        truth = self._ground_truth
        self._check_categories()
        missing = sorted(set(truth.imgs) - self._image_ids)
        if missing and not is_partial:
            raise errors.UserError(
                f"{len(missing)} of {len(truth.imgs)} annotated images were never "
                f"predicted: ids {annotation_file.few(missing)}. Evaluate the whole "
                "set (do not drop the last batch), or pass is_partial=True."
            )
        if not self._image_ids:
            raise errors.UserError(
                "No image was predicted; check the evaluation files."
            )
        cocoeval_result = _run_cocoeval(truth, self._records, sorted(self._image_ids))
        stats = map(float, cocoeval_result.stats)
        result: dict[str, Any] = {
            metric.name: value for metric, value in zip(METRICS, stats, strict=True)
        }
        result["per_class"] = _ap_per_class(cocoeval_result)
        result["num_images"] = len(self._image_ids)
        result["num_detections"] = len(self._records)
        return result

    def _check_categories(self) -> None:
        known = self._ground_truth.cats
        unknown = {record["category_id"] for record in self._records} - set(known)
        if unknown:
            raise errors.UserError(
                f"Detections have category ids {annotation_file.few(sorted(unknown))}; "
                f"the annotation file has {annotation_file.few(sorted(known))}. Train "
                "and evaluate with the same categories.json; its ids must be those of "
                "the file."
            )


def evaluate(
    batches: Iterable[DetectionBatch],
    ground_truth: COCO,
    *,
    is_partial: bool = False,
) -> dict[str, Any]:
    """Evaluates detections against an annotation file.

    Args:
      batches: The batches, see `Evaluator.add`.
      ground_truth: The result of `ground_truth(path)`; may be used again.
      is_partial: Whether annotated images may be missing; only the others count.
    Returns:
      The metrics, see `Evaluator.result`.
    Raises:
      UserError: An image is there twice, is not in the file or is missing; a category
        is not in the file; a box or score is not finite.
    """
    evaluator = Evaluator(ground_truth)
    for detections, image_ids in batches:
        evaluator.add(detections, image_ids)
    return evaluator.result(is_partial=is_partial)


def table(result: Mapping[str, Any]) -> str:
    """Returns the metrics as pycocotools prints them, in twelve lines.

    Args:
      result: The result of `evaluate`.
    """
    lines = []
    for metric in METRICS:
        kind = f"({metric.name[:2]})"
        title = "Average Precision" if kind == "(AP)" else "Average Recall"
        lines.append(
            f" {title:<18} {kind} @[ IoU={metric.iou:<9} | area={metric.area:>6} "
            f"| maxDets={metric.max_detections:>3} ] = {result[metric.name]:0.3f}"
        )
    return "\n".join(lines)


def per_class_table(result: Mapping[str, Any], *, columns: int = 3) -> str:
    """Returns the AP of each category, in falling order down each column.

    Args:
      result: The result of `evaluate`.
      columns: The number of categories per line.
    """
    ranked = sorted(result["per_class"].items(), key=lambda item: -item[1])
    width = max(len(name) for name, _ in ranked)
    cells = [f"{name:<{width}} {_number(value)}" for name, value in ranked]
    rows = -(-len(cells) // columns)
    return "\n".join(" | ".join(cells[row::rows]) for row in range(rows))


def _number(value: float) -> str:
    return "    -" if value < 0 else f"{value:0.3f}"


def _check_any_counts(annotations: list[dict[str, Any]], path: str) -> None:
    """Raises UserError for a file against which every AP would be -1."""
    if not any(_counts(annotation) for annotation in annotations):
        num_crowds = sum(bool(a["iscrowd"]) for a in annotations)
        raise errors.UserError(
            f"{path} has no annotation that a detection can match: "
            f"{len(annotations)} annotations, {num_crowds} of them crowds (iscrowd), "
            f"the others without area or above {_MAX_AREA:.0f} px. Give a file with at "
            "least one object."
        )


def _counts(annotation: dict[str, Any]) -> bool:
    """Returns True if pycocotools can match the annotation with a detection."""
    _, _, width, height = annotation["bbox"]
    has_area = width * height > 0 and annotation["area"] <= _MAX_AREA
    return has_area and not annotation["iscrowd"]


def _image_records(
    detections: structures.Detections, row: int, image_id: int
) -> list[dict[str, Any]]:
    count = int(detections.num_detections[row])
    boxes = np.asarray(detections.boxes_yxyx)[row, :count]
    scores = np.asarray(detections.scores)[row, :count]
    classes = np.asarray(detections.classes)[row, :count]
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise errors.UserError(
            f"Image {image_id} has a detection that is not finite; the checkpoint's "
            "weights have probably diverged. Use an earlier checkpoint."
        )
    has_category = classes != _NO_CATEGORY
    return detection_records(
        boxes[has_category], scores[has_category], classes[has_category], image_id
    )


def _coco(dataset: dict[str, Any]) -> COCO:
    """Returns pycocotools' index of a file's content."""
    coco = COCO()
    coco.dataset = dataset
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _run_cocoeval(
    ground_truth: COCO, records: list[dict[str, Any]], image_ids: list[int]
) -> cocoeval.COCOeval:
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


def _ap_per_class(evaluator: cocoeval.COCOeval) -> dict[str, float]:
    # [IoU, recall, category], at all areas and 100 detections; -1 without annotations.
    precision = evaluator.eval["precision"][:, :, :, 0, -1]
    values = {}
    for index, category in enumerate(evaluator.params.catIds):
        known = precision[:, :, index][precision[:, :, index] > -1]
        name = evaluator.cocoGt.cats[category]["name"]
        values[name] = float(known.mean()) if known.size else -1.0
    return values
