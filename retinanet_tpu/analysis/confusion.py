"""Counts which classes are detected as which."""

import numpy as np

from retinanet_tpu.analysis import arrays, matching, results

_MIN_IOU = 0.5


def confusion(
    data: arrays.Data, matches: matching.Matches, threshold: float
) -> results.Confusion:
    """Returns the confusion of classes: each object and detection counts once.

    First, objects are matched with detections of their class, as COCO does. Then the
    remaining detections choose among the remaining objects of other classes at IoU 0.5,
    from the highest score. Without the first step, an object inside one of another
    class, such as a helmet and a rider, would be confused with it.

    Args:
      data: The objects and detections.
      matches: Their matches; the first threshold is 0.5.
      threshold: The lowest score of the detections that count.
    Source: ours.
    """
    found, objects = data.found, data.objects
    is_shown = found.score >= threshold
    is_correct = matches.is_correct[0] & is_shown
    is_left = matches.is_wrong[0] & is_shown
    is_found = np.zeros(len(objects.label), bool)
    is_found[matches.object[0][is_correct]] = True
    other = _other_classes(data, is_left, matches.counts & ~is_found)
    num_classes = len(data.names)
    counts = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    matched = np.where(is_correct, matches.object[0], other)
    is_counted = is_correct | is_left
    # The last label stands for -1: background.
    row = np.append(objects.label, num_classes)[matched[is_counted]]
    np.add.at(counts, (row, found.label[is_counted]), 1)
    is_found[other[other >= 0]] = True
    missed = objects.label[matches.counts & ~is_found]
    counts[:, num_classes] += np.bincount(missed, minlength=num_classes + 1)
    return results.Confusion(data.names, threshold, counts)


def _other_classes(
    data: arrays.Data, is_left: np.ndarray, is_object_left: np.ndarray
) -> np.ndarray:
    """Returns int [D], the object of another class of each detection, or -1."""
    order = np.lexsort((-data.found.score, data.found.image))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    pairs = data.pairs
    is_other = data.objects.label[pairs.object] != data.found.label[pairs.detection]
    is_possible = is_left[pairs.detection] & is_object_left[pairs.object]
    pairs = pairs.where(is_other & is_possible & (pairs.iou >= _MIN_IOU))
    pairs = pairs._replace(detection=place[pairs.detection])
    nothing = np.zeros(len(data.objects.label), bool)
    chosen = matching.greedy(
        pairs,
        group=data.found.image[order],
        is_ignored=nothing,
        is_shared=nothing,
        thresholds=np.array([_MIN_IOU]),
    )
    return chosen[0][place]
