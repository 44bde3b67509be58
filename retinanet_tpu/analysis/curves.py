"""Computes precision, recall and F1 by the threshold of the score."""

from collections.abc import Sequence

import numpy as np

from retinanet_tpu.analysis import arrays, average_precision, matching, results

# Quotients are the doubles nearest to 0.01, 0.02, …, and so are rounded scores.
THRESHOLDS = np.arange(101) / 100


def curve(
    scores: np.ndarray, is_correct: np.ndarray, is_wrong: np.ndarray, num_objects: int
) -> results.Curve:
    """Returns the curve at the thresholds 0, 0.01, …, 1.

    A detection counts if its score is the threshold or higher.

    Args:
      scores: float [N].
      is_correct: bool [N].
      is_wrong: bool [N].
      num_objects: The number of objects.
    """
    return results.Curve(
        THRESHOLDS,
        num_correct=_num_above(scores[is_correct]),
        num_wrong=_num_above(scores[is_wrong]),
        num_objects=num_objects,
    )


def class_results(
    data: arrays.Data, matches: matching.Matches
) -> tuple[results.ClassResult, list[results.ClassResult]]:
    """Returns the result of all classes together, and that of each class.

    Args:
      data: The objects and detections.
      matches: Their matches at matching.IOU_THRESHOLDS.
    """
    precision = average_precision.by_class(data, matches)
    num_objects = average_precision.num_counted(data, matches)
    classes = [
        _result(
            name,
            data,
            matches,
            average_precision.of_class(data, label),
            precision[:, :, [label]],
            int(num_objects[label]),
        )
        for label, name in enumerate(data.names)
    ]
    everything = _result(
        "all classes",
        data,
        matches,
        data.by_score,
        precision[:, :, num_objects > 0],
        int(num_objects.sum()),
    )
    return everything, classes


def _result(
    name: str,
    data: arrays.Data,
    matches: matching.Matches,
    rows: np.ndarray,
    precision: np.ndarray,
    num_objects: int,
) -> results.ClassResult:
    """Returns the result of some detections; precision is [T, 101, classes]."""
    ious = [matching.AT_50, matching.AT_75]
    if precision.size:
        by_recall = precision[ious].mean(axis=-1)
    else:
        by_recall = np.full((2, len(average_precision.RECALLS)), -1.0)
    return results.ClassResult(
        name=name,
        num_objects=num_objects,
        num_detections=len(rows),
        ap=average_precision.mean(precision),
        ap50=average_precision.mean(precision[matching.AT_50]),
        ap75=average_precision.mean(precision[matching.AT_75]),
        curve=curve(
            data.found.score[rows],
            matches.is_correct[matching.AT_50, rows],
            matches.is_wrong[matching.AT_50, rows],
            num_objects,
        ),
        precision_by_recall=by_recall,
    )


def _num_above(scores: Sequence[float] | np.ndarray) -> np.ndarray:
    """Returns int [T], the number of scores at each threshold or above."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS)
