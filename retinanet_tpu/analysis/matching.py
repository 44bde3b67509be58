"""Matches detections with objects as COCO does, for all images at once.

Detections of one image and class are matched in turn, from the highest score. Different
images and classes are independent, so that a round matches one detection of each.
"""

import itertools
from typing import NamedTuple

import numpy as np

from retinanet_tpu.analysis import arrays

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AT_50, AT_75 = 0, 5  # Their indices.
# Larger boxes do not count in pycocotools, px.
_MAX_AREA = 1e10


class Matches(NamedTuple):
    """The matches of the detections at T thresholds of the IoU.

    Attributes:
      object: int [T, D], the object of each detection, or -1.
      is_correct: bool [T, D], True for a detection with an object that counts.
      is_wrong: bool [T, D], True for a detection without an object. Neither is True for
        a detection that is ignored.
      counts: bool [G], True for the objects that count.
    """

    object: np.ndarray
    is_correct: np.ndarray
    is_wrong: np.ndarray
    counts: np.ndarray

    def object_is_found(self) -> np.ndarray:
        """Returns bool [G], True for objects with a detection at the first IoU."""
        is_found = np.zeros(len(self.counts), bool)
        is_found[self.object[0][self.is_correct[0]]] = True
        return is_found


def match(
    data: arrays.Data,
    *,
    thresholds: np.ndarray = IOU_THRESHOLDS,
    objects: np.ndarray | None = None,
    detections: np.ndarray | None = None,
) -> Matches:
    """Returns the matches of COCO's evaluation.

    Args:
      data: The objects and detections.
      thresholds: float [T], the lowest IoU of a match.
      objects: bool [G], the objects that count. Crowds never do. None for all objects.
        Detections that match another object are ignored.
      detections: bool [D], the detections that count without a match; None for all.
    Source: pycocotools, `COCOeval.evaluateImg`.
    """
    is_crowd = data.objects.is_crowd
    ignored = is_crowd | (data.objects.area > _MAX_AREA)
    if objects is not None:
        ignored = ignored | ~objects
    area = data.found.area
    counts_unmatched = (area >= 0) & (area <= _MAX_AREA)
    if detections is not None:
        counts_unmatched = counts_unmatched & detections
    pairs = data.pairs
    is_same = data.objects.label[pairs.object] == data.found.label[pairs.detection]
    matched = greedy(
        pairs.where(is_same & (pairs.iou >= min(thresholds.min(), 1 - 1e-10))),
        group=data.found.image * len(data.names) + data.found.label,
        is_ignored=ignored,
        is_shared=is_crowd,
        thresholds=thresholds,
    )
    is_matched = matched >= 0
    # The last entry stands for -1, no object.
    has_counted = np.append(~ignored, False)[matched]
    return Matches(matched, has_counted, ~is_matched & counts_unmatched, ~ignored)


def greedy(
    pairs: arrays.Pairs,
    *,
    group: np.ndarray,
    is_ignored: np.ndarray,
    is_shared: np.ndarray,
    thresholds: np.ndarray,
) -> np.ndarray:
    """Returns int [T, D], the object that each detection gets, or -1.

    In each group the detections choose in the order of their numbers. Each gets the
    object with the highest IoU that is still free, of equal ones the last. An ignored
    object is chosen only if no other can be.

    Args:
      pairs: The pairs that may match.
      group: int [D], with equal values side by side. Detections of different groups
        have no object in common.
      is_ignored: bool [G].
      is_shared: bool [G], True for objects that any number of detections may get.
      thresholds: float [T], the lowest IoU of a match.
    """
    # pycocotools' limit, which lets an IoU of 1 match in spite of rounding.
    lowest = np.minimum(thresholds, 1 - 1e-10)[:, None]
    result = np.full((len(thresholds), len(group)), -1)
    detection, turn = np.unique(pairs.detection, return_inverse=True)
    turn = arrays.rank_in_group(group[detection])[turn]
    order = np.lexsort(
        (-pairs.object, -pairs.iou, is_ignored[pairs.object], pairs.detection, turn)
    )
    pairs, turn = pairs.where(order), turn[order]
    is_used = np.zeros((len(thresholds), len(is_ignored)), bool)
    edges = np.searchsorted(turn, np.arange(turn.max(initial=-1) + 2))
    for start, stop in itertools.pairwise(edges):
        chosen, other, iou = pairs.where(np.arange(start, stop))
        is_free = ~is_used[:, other] | is_shared[other]
        # The first possible pair of each detection is its best one.
        position = np.where(
            is_free & (iou >= lowest), np.arange(stop - start), len(iou)
        )
        first_of = np.flatnonzero(np.append(True, chosen[1:] != chosen[:-1]))
        first = np.minimum.reduceat(position, first_of, axis=1)
        row, column = np.nonzero(first < len(iou))
        best = first[row, column]
        result[row, chosen[best]] = other[best]
        is_used[row, other[best]] = True
    return result
