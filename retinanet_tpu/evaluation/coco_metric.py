"""Evaluates detections by COCO's metrics, as pycocotools computes them.

  result = coco_metric.evaluate(batches, coco_metric.ground_truth(path))
  print(coco_metric.table(result))

A metric is -1 if its area range or category has no annotated box, as in pycocotools.
"""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from pycocotools.coco import COCO

from retinanet_tpu import annotation_fields, errors, structures
from retinanet_tpu.evaluation import annotation_file, metric_engines

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
# The indices of the thresholds 0.5, 0.55, ..., 0.95 over which each result is a mean.
_PER_CLASS = {
    "per_class": slice(None),
    "per_class_50": slice(0, 1),
    "per_class_75": slice(5, 6),
}
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
    return metric_engines.index(dataset)


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
    boxes_xywh = _boxes_xywh(boxes_yxyx).tolist()
    rows = zip(boxes_xywh, np.asarray(scores, np.float64), classes, strict=True)
    return [
        {
            "image_id": int(image_id),
            "category_id": int(category),
            "bbox": box,
            "score": float(score),
        }
        for box, score, category in rows
    ]


def _boxes_xywh(boxes_yxyx: np.ndarray) -> np.ndarray:
    """Converts float [D, 4] to float64 [D, 4]."""
    ymin, xmin, ymax, xmax = np.asarray(boxes_yxyx, np.float64).T
    return np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)


class Evaluator:
    """The detections of an evaluation, to be compared with an annotation file."""

    def __init__(
        self,
        ground_truth: COCO,
        engine_fn: metric_engines.EngineFn = metric_engines.PROCESS_ENGINE,
    ):
        """Initializes the evaluator.

        Args:
          ground_truth: The result of `ground_truth(path)`; may be used again.
          engine_fn: Computes the metrics.
        """
        self._ground_truth = ground_truth
        self._engine_fn = engine_fn
        # Arrays: dicts of 500,000 detections would take 300 MB and 3 s.
        self._images: list[_Image] = []
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
            self._images.append(_select_image(detections, row, image_id))

    def detected(
        self, *, is_partial: bool = False
    ) -> tuple[metric_engines.DetectionColumns, list[int]]:
        """Returns the detections of all batches, and the rising ids of their images.

        Args:
          is_partial: Whether annotated images may be missing.
        Raises:
          UserError: See `result`.
        """
        truth = self._ground_truth
        detected = _columns(self._images)
        self._check_categories(detected.category_ids)
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
        return detected, sorted(self._image_ids)

    def result(self, *, is_partial: bool = False) -> dict[str, Any]:
        """Returns the metrics of all batches.

        Args:
          is_partial: Whether annotated images may be missing; only the others count.
        Returns:
          The twelve metrics in the order of METRICS, `per_class` ({category name: AP}),
          `per_class_50` and `per_class_75` (the same at these IoUs), `num_images`,
          `num_detections` and `metric_engine` (the name and version of the package that
          computed them). A metric is 0 without detections and -1 without annotations.
        Raises:
          UserError: An image is missing, there is no image, or a detection has a
            category that is not in the file.
        """
        truth = self._ground_truth
        detected, image_ids = self.detected(is_partial=is_partial)
        computed = self._engine_fn(truth, detected, image_ids)
        result: dict[str, Any] = {
            metric.name: value
            for metric, value in zip(METRICS, computed.stats.tolist(), strict=True)
        }
        names = [truth.cats[category]["name"] for category in sorted(truth.cats)]
        for name, ious in _PER_CLASS.items():
            result[name] = _ap_per_class(computed.precision[ious], names)
        result["num_images"] = len(image_ids)
        result["num_detections"] = len(detected.scores)
        result["metric_engine"] = computed.engine
        return result

    def _check_categories(self, category_ids: np.ndarray) -> None:
        known = self._ground_truth.cats
        unknown = set(np.unique(category_ids).tolist()) - set(known)
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


def per_class_table(result: Mapping[str, Any], *, columns: int = 2) -> str:
    """Returns AP, AP50 and AP75 of each category, by falling AP down each column.

    Args:
      result: The result of `evaluate`.
      columns: The number of categories per line.
    """
    names = sorted(result["per_class"], key=lambda name: -result["per_class"][name])
    width = max(map(len, names))
    cells = [
        " ".join(
            [f"{name:<{width}}", *(_number(result[key][name]) for key in _PER_CLASS)]
        )
        for name in names
    ]
    rows = -(-len(cells) // columns)
    head = f"{'':<{width}}    AP  AP50  AP75"
    lines = [[head] * len(cells[::rows]), *(cells[row::rows] for row in range(rows))]
    return "\n".join(" | ".join(line) for line in lines)


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


class _Image(NamedTuple):
    """The detections of one image."""

    image_id: int
    boxes_yxyx: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


def _select_image(detections: structures.Detections, row: int, image_id: int) -> _Image:
    """Returns copies, so that the batch is freed."""
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
    return _Image(
        image_id, boxes[has_category], scores[has_category], classes[has_category]
    )


def _columns(images: list[_Image]) -> metric_engines.DetectionColumns:
    """Joins the detections of all images."""
    nothing = _Image(0, np.zeros([0, 4]), np.zeros(0), np.zeros(0, np.int64))
    ids, boxes_yxyx, scores, classes = zip(nothing, *images, strict=True)
    counts = [len(values) for values in scores]
    return metric_engines.DetectionColumns(
        image_ids=np.repeat(np.array(ids, np.int64), counts),
        category_ids=np.concatenate(classes).astype(np.int64),
        boxes_xywh=_boxes_xywh(np.concatenate(boxes_yxyx)),
        scores=np.concatenate(scores).astype(np.float64),
    )


def _ap_per_class(precision: np.ndarray, names: list[str]) -> dict[str, float]:
    """Returns AP by category, at all areas and 100 detections."""
    values = {}
    for index, name in enumerate(names):
        of_category = precision[:, :, index, 0, -1]
        known = of_category[of_category > -1]  # -1 without annotations.
        values[name] = float(known.mean()) if known.size else -1.0
    return values
