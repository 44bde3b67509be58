"""Reads detections for an analysis: of a batch, or of a file in COCO's results format.

A results file is a JSON list of {"image_id", "category_id", "bbox": [x, y, width,
height], "score"}.
"""

import reprlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.coco import COCO

from retinanet_tpu import annotation_fields, errors, json_files, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.evaluation import annotation_file

_KEYS = ("image_id", "category_id", "bbox", "score")
_MAX_NUMBER = 1e9


class ImageDetections(NamedTuple):
    """The detections of an image.

    Attributes:
      image_id: The id of the image in the annotation file.
      boxes_yxyx: float [D, 4], px of the original image.
      scores: float [D], in 0..1; in any order.
      category_ids: int [D], category ids of the annotation file.
    """

    image_id: int
    boxes_yxyx: np.ndarray
    scores: np.ndarray
    category_ids: np.ndarray


def from_batch(
    detections: structures.Detections, image_ids: np.ndarray
) -> list[ImageDetections]:
    """Returns the detections of a batch, an entry per image.

    Images whose id is PADDING_IMAGE are skipped, and so are detections of NO_CATEGORY
    (-1, from an output without a category).

    Args:
      detections: The detections as arrays, with boxes in pixels of the original image
        and classes as category ids of the annotation file.
      image_ids: int64 [B], the ids of the images.
    """
    images = []
    for row, image_id in enumerate(np.asarray(image_ids).tolist()):
        if image_id == structures.PADDING_IMAGE:
            continue
        count = int(detections.num_detections[row])
        classes = np.asarray(detections.classes)[row, :count]
        has_category = classes != category_map.NO_CATEGORY
        boxes = np.asarray(detections.boxes_yxyx)[row, :count][has_category]
        scores = np.asarray(detections.scores)[row, :count][has_category]
        images.append(ImageDetections(image_id, boxes, scores, classes[has_category]))
    return images


def read_results(path: str, truth: COCO) -> list[ImageDetections]:
    """Reads a file in COCO's results format.

    Args:
      path: The path of the JSON file, local or remote.
      truth: The annotations of the same images, see `coco_metric.ground_truth`.
    Returns:
      An entry for each image of which the file has detections.
    Raises:
      NotFoundError: There is no such file (an error of TensorFlow).
      UserError: The file is not such a file; contains the path and the entry.
    """
    return parse_results(json_files.read(path), path, truth)


def parse_results(content: Any, source: str, truth: COCO) -> list[ImageDetections]:
    """Returns the detections of a list in COCO's results format.

    Args:
      content: The list.
      source: The path of the file, for error messages.
      truth: The annotations of the same images, see `coco_metric.ground_truth`.
    Raises:
      UserError: The list is not valid; contains the source and the entry.
    """
    if not isinstance(content, list):
        raise errors.UserError(
            f"{source} is {reprlib.repr(content)}; expected a list of detections, as "
            f"in COCO's results format: objects with {', '.join(_KEYS)}."
        )
    rows: dict[int, list[tuple[int, list[float], float]]] = {}
    for position, entry in enumerate(content):
        where = f"{source}: entry [{position}]"
        _check_keys(entry, where)
        image_id = _known_id(entry, "image_id", truth.imgs, where)
        category_id = _known_id(entry, "category_id", truth.cats, where)
        x, y, width, height = _box(entry["bbox"], where)
        score = _score(entry["score"], where)
        row = (category_id, [y, x, y + height, x + width], score)
        rows.setdefault(image_id, []).append(row)
    return [_image_detections(image_id, rows[image_id]) for image_id in rows]


def _image_detections(
    image_id: int, rows: Sequence[tuple[int, list[float], float]]
) -> ImageDetections:
    categories, boxes, scores = zip(*rows, strict=True)
    return ImageDetections(
        image_id, np.array(boxes, np.float64), np.array(scores), np.array(categories)
    )


def _check_keys(entry: Any, where: str) -> None:
    if not isinstance(entry, dict):
        raise errors.UserError(
            f"{where} is {reprlib.repr(entry)}; expected an object with "
            f"{', '.join(_KEYS)}."
        )
    absent = [key for key in _KEYS if key not in entry]
    if absent:
        raise errors.UserError(
            f"{where} lacks {', '.join(absent)}; it has "
            f"{annotation_file.few(entry) or 'no keys'}. Every detection requires "
            f"{', '.join(_KEYS)}; detections of masks or keypoints cannot be analyzed."
        )


def _known_id(entry: dict[str, Any], key: str, known: Any, where: str) -> int:
    number = annotation_fields.integer(entry[key])
    if number is None or number not in known:
        raise errors.UserError(
            f"{where} has {key} {reprlib.repr(entry[key])}; the annotation file has "
            f"{annotation_file.few(sorted(known))}. Give the detections of the images "
            "of this annotation file, with its ids."
        )
    return number


def _box(box: Any, where: str) -> list[float]:
    is_box = isinstance(box, list) and len(box) == 4 and all(map(_is_finite, box))
    if not is_box or min(box[2:]) < 0:
        raise errors.UserError(
            f"{where} has bbox {reprlib.repr(box)}; expected [x, y, width, height] in "
            "pixels: four finite numbers without a negative side."
        )
    return box


def _score(score: Any, where: str) -> float:
    if not _is_finite(score) or not 0 <= score <= 1:
        raise errors.UserError(
            f"{where} has score {reprlib.repr(score)}; expected a number from 0 to 1. "
            "Divide percentages by 100."
        )
    return score


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # False for NaN. Larger numbers are no pixels, and their sums may overflow.
    return is_number and abs(value) <= _MAX_NUMBER
