"""Converts annotations and detections to flat arrays over all images.

Classes are numbered in the order of their category ids, and images in the order of
their ids, as in pycocotools.
"""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask
from pycocotools.coco import COCO

from retinanet_tpu import errors
from retinanet_tpu.analysis import image_detections
from retinanet_tpu.evaluation import annotation_file, highest_recall

# An object that overlaps a detection less is not near it. Source: TIDE,
# arXiv:2008.08115, section 3.1.
MIN_IOU = 0.1


class Objects(NamedTuple):
    """The annotated objects, image by image.

    Attributes:
      image: int [G], the index of the image.
      label: int [G], the index of the class.
      boxes_yxyx: float64 [G, 4], px.
      area: float64 [G], the annotated area, px.
      is_crowd: bool [G], True for a region of uncounted objects.
    """

    image: np.ndarray
    label: np.ndarray
    boxes_yxyx: np.ndarray
    area: np.ndarray
    is_crowd: np.ndarray


class Found(NamedTuple):
    """The detections that count: of an image and a class, the best 100.

    They are sorted by image, then class, then falling score.

    Attributes:
      image: int [D], the index of the image.
      label: int [D], the index of the class.
      boxes_yxyx: float64 [D, 4], px.
      area: float64 [D], px.
      score: float64 [D].
      rank: int [D], the number of better detections of the same image and class.
    """

    image: np.ndarray
    label: np.ndarray
    boxes_yxyx: np.ndarray
    area: np.ndarray
    score: np.ndarray
    rank: np.ndarray


class Pairs(NamedTuple):
    """The detections and objects of the same image that overlap by MIN_IOU or more.

    The IoU with a crowd is the share of the detection that is inside, as in
    pycocotools.

    Attributes:
      detection: int [P], rising.
      object: int [P].
      iou: float64 [P].
    """

    detection: np.ndarray
    object: np.ndarray
    iou: np.ndarray

    def where(self, selected: np.ndarray) -> "Pairs":
        """Returns the selected pairs.

        Args:
          selected: bool [P].
        """
        return Pairs(*(values[selected] for values in self))


class Data(NamedTuple):
    """The input of an analysis as arrays.

    Attributes:
      images: The entries of the annotation file, in the order of the indices.
      names: The K names of the classes, in the order of the indices.
      objects: The annotated objects.
      found: The detections that count.
      pairs: Their overlaps.
      by_score: int [D], the detections by class, then falling score; equal ones by
        image.
      class_starts: int [K + 1], where each class begins in `by_score`.
    """

    images: Sequence[dict[str, Any]]
    names: Sequence[str]
    objects: Objects
    found: Found
    pairs: Pairs
    by_score: np.ndarray
    class_starts: np.ndarray


def collect(
    truth: COCO,
    detections: Sequence[image_detections.ImageDetections],
    image_ids: Collection[int] | None = None,
) -> Data:
    """Returns annotations and detections as arrays.

    Args:
      truth: The annotations, see `coco_metric.ground_truth`.
      detections: The detections, at most one entry per image. Other images have none.
      image_ids: The ids of the images that count; None for all annotated images.
    Raises:
      UserError: An image is there twice or is not in the file, a category is not in the
        file, or arrays have a wrong shape or numbers that are not finite.
    """
    ids = sorted(truth.imgs if image_ids is None else set(image_ids))
    unknown = [image_id for image_id in ids if image_id not in truth.imgs]
    if unknown:
        raise errors.UserError(
            f"Images {annotation_file.few(unknown)} are not in the annotation file "
            f"(ids {annotation_file.few(sorted(truth.imgs))})."
        )
    categories = sorted(truth.cats)
    objects = _objects(truth, ids, categories)
    found = _found(_checked(detections, ids), ids, categories)
    order, starts = _by_score(found.label, found.score, len(categories))
    return Data(
        images=[truth.imgs[image_id] for image_id in ids],
        names=[truth.cats[category]["name"] for category in categories],
        objects=objects,
        found=found,
        pairs=_pairs(objects, found, len(ids)),
        by_score=order,
        class_starts=starts,
    )


def iou(boxes_yxyx: np.ndarray, others_yxyx: np.ndarray, is_crowd: Any) -> np.ndarray:
    """Returns float64 [N, M], the IoU as pycocotools computes it.

    Args:
      boxes_yxyx: float64 [N, 4].
      others_yxyx: float64 [M, 4].
      is_crowd: bool [M]: the intersection is divided by the area of the first box.
    """
    if not len(boxes_yxyx) or not len(others_yxyx):
        return np.zeros((len(boxes_yxyx), len(others_yxyx)))
    crowds = np.asarray(is_crowd).astype(np.uint8).tolist()
    return mask.iou(_xywh(boxes_yxyx), _xywh(others_yxyx), crowds)


def _xywh(boxes_yxyx: np.ndarray) -> np.ndarray:
    ymin, xmin, ymax, xmax = boxes_yxyx.T
    return np.stack([xmin, ymin, xmax - xmin, ymax - ymin], axis=-1)


def _objects(truth: COCO, ids: Sequence[int], categories: Sequence[int]) -> Objects:
    index_of = {category: index for index, category in enumerate(categories)}
    rows = [
        (image, index_of[a["category_id"]], a["area"], bool(a["iscrowd"]), *a["bbox"])
        for image, image_id in enumerate(ids)
        for a in truth.imgToAnns.get(image_id, ())
    ]
    table = np.array(rows, np.float64).reshape(-1, 8)
    image, label, area, is_crowd, x, y, width, height = table.T
    return Objects(
        image=image.astype(np.int64),
        label=label.astype(np.int64),
        boxes_yxyx=np.stack([y, x, y + height, x + width], axis=-1),
        area=area,
        is_crowd=is_crowd.astype(bool),
    )


def _checked(
    detections: Sequence[image_detections.ImageDetections], ids: Sequence[int]
) -> list[image_detections.ImageDetections]:
    """Returns the detections of the images in the order of their ids, or raises."""
    known = set(ids)
    by_id: dict[int, image_detections.ImageDetections] = {}
    for record in detections:
        image_id = int(record.image_id)
        if image_id in by_id:
            raise errors.UserError(
                f"Image {image_id} was predicted twice; give each image once."
            )
        if image_id not in known:
            raise errors.UserError(
                f"Image {image_id} is not one of the annotated images that count (ids "
                f"{annotation_file.few(ids)}); the detections and the annotation file "
                "must be of the same dataset."
            )
        by_id[image_id] = _checked_image(record)
    return [by_id[image_id] for image_id in ids if image_id in by_id]


def _checked_image(
    record: image_detections.ImageDetections,
) -> image_detections.ImageDetections:
    boxes = np.asarray(record.boxes_yxyx, np.float64)
    scores = np.asarray(record.scores, np.float64)
    labels = np.asarray(record.category_ids)
    if not boxes.size:
        boxes = boxes.reshape(0, 4)
    if scores.ndim != 1 or (boxes.shape, labels.shape) != (
        (len(scores), 4),
        scores.shape,
    ):
        raise errors.UserError(
            f"Image {record.image_id} has boxes {boxes.shape}, scores {scores.shape} "
            f"and category_ids {labels.shape}; expected [D, 4], [D] and [D]."
        )
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise errors.UserError(
            f"Image {record.image_id} has a detection that is not finite; the "
            "checkpoint's weights have probably diverged. Use an earlier checkpoint."
        )
    if len(scores) and not (scores.min() >= 0 and scores.max() <= 1):
        raise errors.UserError(
            f"Image {record.image_id} has scores from {scores.min():g} to "
            f"{scores.max():g}; expected 0 to 1. Divide percentages by 100."
        )
    return record._replace(boxes_yxyx=boxes, scores=scores, category_ids=labels)


def _found(
    records: Sequence[image_detections.ImageDetections],
    ids: Sequence[int],
    categories: Sequence[int],
) -> Found:
    index_of = {image_id: index for index, image_id in enumerate(ids)}
    numbers = [index_of[int(record.image_id)] for record in records]
    image = np.repeat(
        np.array(numbers, np.int64), [len(record.scores) for record in records]
    )
    boxes = np.concatenate([np.zeros((0, 4)), *(r.boxes_yxyx for r in records)])
    score = np.concatenate([np.zeros(0), *(r.scores for r in records)])
    ids_of = np.concatenate([np.zeros(0, int), *(r.category_ids for r in records)])
    label = np.searchsorted(categories, ids_of)
    is_known = np.take(categories, label, mode="clip") == ids_of
    if not is_known.all():
        unknown = annotation_file.few(np.unique(ids_of[~is_known]).tolist())
        raise errors.UserError(
            f"Detections have category ids {unknown}; the annotation file has "
            f"{annotation_file.few(categories)}. Give detections with the ids of the "
            "annotation file."
        )
    # lexsort is stable: of equal scores the first counts, as in pycocotools.
    order = np.lexsort((-score, label, image))
    image, label, score, boxes = image[order], label[order], score[order], boxes[order]
    rank = rank_in_group(image * len(categories) + label)
    kept = rank < highest_recall.MAX_PER_CLASS
    image, label, score, boxes = image[kept], label[kept], score[kept], boxes[kept]
    ymin, xmin, ymax, xmax = boxes.T
    area = (xmax - xmin) * (ymax - ymin)
    return Found(image, label, boxes, area, score, rank[kept])


def rank_in_group(group: np.ndarray) -> np.ndarray:
    """Returns int [N], the number of earlier entries of the same group.

    Args:
      group: int [N], with equal values side by side.
    """
    position = np.arange(len(group))
    is_first = np.ones(len(group), bool)
    is_first[1:] = group[1:] != group[:-1]
    return position - np.maximum.accumulate(np.where(is_first, position, 0))


def _pairs(objects: Objects, found: Found, num_images: int) -> Pairs:
    edges = np.arange(num_images + 1)
    object_starts = np.searchsorted(objects.image, edges)
    found_starts = np.searchsorted(found.image, edges)
    has_both = (np.diff(object_starts) > 0) & (np.diff(found_starts) > 0)
    parts = [(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0))]
    for image in np.flatnonzero(has_both):
        mine = slice(found_starts[image], found_starts[image + 1])
        theirs = slice(object_starts[image], object_starts[image + 1])
        ious = iou(
            found.boxes_yxyx[mine], objects.boxes_yxyx[theirs], objects.is_crowd[theirs]
        )
        row, column = np.nonzero(ious >= MIN_IOU)
        parts.append((row + mine.start, column + theirs.start, ious[row, column]))
    detection, other, overlap = map(np.concatenate, zip(*parts, strict=True))
    return Pairs(detection, other, overlap)


def _by_score(
    label: np.ndarray, score: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the order by class and falling score, and where each class begins."""
    order = np.lexsort((-score, label))
    return order, np.searchsorted(label[order], np.arange(num_classes + 1))
