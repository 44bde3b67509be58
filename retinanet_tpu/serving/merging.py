"""Merges the detections of several views of an image, in NumPy.

  nms     keeps the best of the boxes of different views that overlap
  fusion  averages the boxes of different views that overlap, and their scores

Boxes of one view do not affect each other: the model's own NMS has already separated
them. The detections of a single view are therefore returned unchanged.
"""

import heapq
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np


class Candidates(NamedTuple):
    """The detections of all views of one image, in falling order of their scores.

    Attributes:
      boxes_yxyx: float32 [N, 4], px of the image.
      scores: float32 [N].
      classes: int32 [N].
      views: int32 [N], the index of the view that contains the detection.
      num_views: int32 [N], the number of views that show the whole box. For a part, it
        is the number of views of the same window.
      is_part: bool [N], True for a box that touches an inner edge of its view.
      windows: int32 [N], a number that is equal for views of the same window. A view
        and its mirrored view have the same window.
    """

    boxes_yxyx: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    views: np.ndarray
    num_views: np.ndarray
    is_part: np.ndarray
    windows: np.ndarray


class Merged(NamedTuple):
    """The detections of one image, in falling order of their scores.

    Attributes:
      boxes_yxyx: float32 [M, 4], px of the image.
      scores: float32 [M].
      classes: int32 [M].
    """

    boxes_yxyx: np.ndarray
    scores: np.ndarray
    classes: np.ndarray


# Candidates, the IoU above which boxes are of one object, and the most detections.
MergeFn: TypeAlias = Callable[[Candidates, float, int], Merged]
# The share of a part of an object that a box of the whole object covers at least.
# Source: SAHI's postprocessing, arXiv:2202.06934, whose "IOS" threshold is 0.5.
_COVERED = 0.5


def without_parts(candidates: Candidates) -> Candidates:
    """Removes parts of objects of which a better box shows more.

    The IoU of an object and its part is low, so the merging functions would keep both.
    A part is removed if a better box of its class and of another window covers it. The
    mirrored view shows the same part, which is merged with it instead.

    Args:
      candidates: The detections of all views.
    """
    boxes_yxyx = candidates.boxes_yxyx
    is_kept = np.ones(len(candidates.scores), bool)
    for part in np.flatnonzero(candidates.is_part).tolist():
        is_better = candidates.classes[:part] == candidates.classes[part]
        is_better &= candidates.windows[:part] != candidates.windows[part]
        better = np.flatnonzero(is_better & is_kept[:part])
        shared = _intersections(boxes_yxyx[part], boxes_yxyx[better])
        area = _intersections(boxes_yxyx[part], boxes_yxyx[part : part + 1])
        is_kept[part] = not (shared > _COVERED * area).any()
    return Candidates(*(values[is_kept] for values in candidates))


def nms(candidates: Candidates, iou_threshold: float, max_detections: int) -> Merged:
    """Removes boxes that overlap a better box of their class and of another view.

    Not with `detections.nms`, in which boxes of one view would suppress each other.

    Args:
      candidates: The detections of all views.
      iou_threshold: The highest IoU with a better box at which a box is kept.
      max_detections: The most detections that are returned.
    """
    is_free = np.ones(len(candidates.scores), bool)
    kept: list[int] = []
    for best in range(len(candidates.scores)):
        if len(kept) == max_detections:
            break
        if is_free[best]:
            kept.append(best)
            others = _others(candidates, best, is_free)
            overlaps = _iou(candidates.boxes_yxyx[best], candidates.boxes_yxyx[others])
            is_free[others[overlaps > iou_threshold]] = False
    return Merged(*(values[kept] for values in candidates[:3]))


def fusion(candidates: Candidates, iou_threshold: float, max_detections: int) -> Merged:
    """Averages boxes of one class and of different views that overlap.

    The best box is combined with the box that overlaps it most in each other view. Then
    the best of the remaining boxes is, and so on. The new box is the mean weighted by
    score. The new score is the sum of the scores divided by the number of views that
    show the whole box: a view without the object counts as a score of 0. For a part of
    an object, the views of the same window count.

    Args:
      candidates: The detections of all views.
      iou_threshold: The IoU with a better box that a box must exceed.
      max_detections: The most detections that are returned.
    Source: Weighted Boxes Fusion, arXiv:1910.13302, section 3. Ours: the overlap is
      that with the best box, as in box voting, arXiv:1505.01749, section 4; at most one
      box of each view; and only the views that show the whole box count.
    """
    is_free = np.ones(len(candidates.scores), bool)
    boxes_yxyx, scores, classes = [], [], []
    highest: list[float] = []  # A heap of the best max_detections scores.
    for best, score in enumerate(candidates.scores):
        # No new score exceeds that of the best box, so none of the rest is selected.
        if len(highest) == max_detections and highest[0] >= score:
            break
        if not is_free[best]:
            continue
        members = [best, *_matches(candidates, best, is_free, iou_threshold)]
        is_free[members] = False
        weights = candidates.scores[members].astype(np.float64)
        total = weights.sum()
        boxes_yxyx.append(weights @ candidates.boxes_yxyx[members] / total)
        scores.append(total / max(candidates.num_views[best], len(members)))
        classes.append(candidates.classes[best])
        heapq.heappush(highest, scores[-1])
        if len(highest) > max_detections:
            heapq.heappop(highest)
    # Sorted in the precision of the result, so that equal scores keep their order.
    new_scores = np.array(scores, np.float32)
    order = np.argsort(-new_scores, kind="stable")[:max_detections]
    return Merged(
        np.array(boxes_yxyx, np.float32).reshape(-1, 4)[order],
        new_scores[order],
        np.array(classes, candidates.classes.dtype)[order],
    )


def _others(candidates: Candidates, best: int, is_free: np.ndarray) -> np.ndarray:
    """Returns the indices of the free boxes of the same class in other views."""
    is_other = (candidates.classes == candidates.classes[best]) & is_free
    return np.flatnonzero(is_other & (candidates.views != candidates.views[best]))


def _matches(
    candidates: Candidates, best: int, is_free: np.ndarray, iou_threshold: float
) -> np.ndarray:
    """Returns the index of the box that overlaps the best box most, in each view.

    Of equal overlaps the box with the higher score is returned.
    """
    others = _others(candidates, best, is_free)
    overlaps = _iou(candidates.boxes_yxyx[best], candidates.boxes_yxyx[others])
    is_match = overlaps > iou_threshold
    others = others[is_match][np.argsort(-overlaps[is_match], kind="stable")]
    _, first = np.unique(candidates.views[others], return_index=True)
    return others[np.sort(first)]


def _iou(box_yxyx: np.ndarray, boxes_yxyx: np.ndarray) -> np.ndarray:
    """Returns float64 [N], the IoUs of a box with N boxes."""
    box, boxes = box_yxyx.astype(np.float64), boxes_yxyx.astype(np.float64)
    intersections = _intersections(box, boxes)
    areas = np.maximum(boxes[:, 2:] - boxes[:, :2], 0.0).prod(axis=1)
    unions = areas + np.maximum(box[2:] - box[:2], 0.0).prod() - intersections
    return np.divide(intersections, unions, out=np.zeros_like(unions), where=unions > 0)


def _intersections(box_yxyx: np.ndarray, boxes_yxyx: np.ndarray) -> np.ndarray:
    """Returns float64 [N], the areas that a box shares with N boxes."""
    box, boxes = box_yxyx.astype(np.float64), boxes_yxyx.astype(np.float64)
    shared = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2])
    result: np.ndarray = np.maximum(shared, 0.0).prod(axis=1)
    return result
