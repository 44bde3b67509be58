"""Classifies errors and computes the AP that each kind costs.

Counts and costs are those of the package tidecv 1.0.1, with these exceptions:

- A class or localization error is corrected if it is the best error of its kind on the
  object, as in the paper. In tidecv it must be the best of both kinds.
- Classes without objects are left out, as in pycocotools. In tidecv their AP is 0.
- Detections inside crowds are no errors. In tidecv they are.
- The best 100 detections of each class in an image count. In tidecv the best 100 of all
  classes count.
- Equal scores keep their order. tidecv moves errors before correct detections, which
  lowers the costs.

Source: TIDE, arXiv:2008.08115, sections 3.1 to 3.3.
"""

import itertools
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.analysis import arrays, average_precision, matching, results

CORRECT = "correct"
IGNORED = "ignored"
# The numbers of kinds: an index of results.ERROR_KINDS, or one of these.
_CORRECT, _IGNORED = -1, -2
_CLASS, _LOCALIZATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(6)
_FOREGROUND_IOU = 0.5


class ErrorTypes(NamedTuple):
    """The kinds of all detections and objects, at IoU 0.5.

    Attributes:
      kind: int [D], an index of results.ERROR_KINDS, -1 for correct detections, -2 for
        ignored ones.
      object: int [D], the object that explains the kind, or -1.
      iou: float64 [D], the IoU with it, or 0.
      is_missed: bool [G], True for the objects that are an error of the kind "missed".
    """

    kind: np.ndarray
    object: np.ndarray
    iou: np.ndarray
    is_missed: np.ndarray

    def name(self, detection: int) -> str:
        """Returns the kind of a detection: CORRECT, IGNORED or one of ERROR_KINDS.

        Args:
          detection: The index of the detection.
        """
        number = int(self.kind[detection])
        return {_CORRECT: CORRECT, _IGNORED: IGNORED}.get(number) or (
            results.ERROR_KINDS[number]
        )

    def is_kind(self, kind: str) -> np.ndarray:
        """Returns bool [D], True for the errors of a kind.

        Args:
          kind: A name of ERROR_KINDS.
        """
        return self.kind == results.ERROR_KINDS.index(kind)


def classify(data: arrays.Data, matches: matching.Matches) -> ErrorTypes:
    """Returns the kinds of the detections and the missed objects.

    The first kind that applies counts: localization, class, duplicate, background,
    both. This is the order of TIDE's implementation.

    Args:
      data: The objects and detections.
      matches: Their matches; the first threshold is 0.5.
    """
    pairs = data.pairs.where(matches.counts[data.pairs.object])
    is_same = data.objects.label[pairs.object] == data.found.label[pairs.detection]
    num = len(data.found.label)
    same, same_iou = _nearest(pairs.where(is_same), num)
    other, other_iou = _nearest(pairs.where(~is_same), num)
    correct, wrong = matches.is_correct[0], matches.is_wrong[0]
    is_near = (same_iou >= arrays.MIN_IOU) & (same_iou < _FOREGROUND_IOU)
    conditions = [
        correct,
        ~wrong,
        is_near,
        other_iou >= _FOREGROUND_IOU,
        same_iou >= _FOREGROUND_IOU,
        other_iou >= arrays.MIN_IOU,
    ]
    kind = np.select(
        conditions,
        [_CORRECT, _IGNORED, _LOCALIZATION, _CLASS, _DUPLICATE, _BOTH],
        _BACKGROUND,
    )
    is_other = (kind == _CLASS) | (kind == _BOTH)
    nearest = np.where(is_other, other, same)
    overlap = np.where(is_other, other_iou, same_iou)
    matched = matches.object[0]
    nearest = np.where(correct, matched, nearest)
    overlap = np.where(correct, _iou_with(pairs, matched, num), overlap)
    has_object = (kind != _IGNORED) & (kind != _BACKGROUND)
    nearest = np.where(has_object, nearest, -1)
    overlap = np.where(has_object, overlap, 0.0)
    is_missed = matches.counts & ~matches.object_is_found()
    is_missed[nearest[(kind == _CLASS) | (kind == _LOCALIZATION)]] = False
    return ErrorTypes(kind, nearest, overlap, is_missed)


def costs(
    data: arrays.Data, matches: matching.Matches, types: ErrorTypes
) -> list[results.ErrorCost]:
    """Returns the cost of each kind of errors.

    Args:
      data: The objects and detections.
      matches: Their matches; the first threshold is 0.5.
      types: The kinds.
    """
    before = max(corrected_ap50(data, matches, types, ()), 0.0)
    values = []
    for kind in results.ERROR_KINDS:
        is_error = types.is_missed if kind == "missed" else types.is_kind(kind)
        after = max(corrected_ap50(data, matches, types, [kind]), 0.0)
        values.append(results.ErrorCost(kind, int(is_error.sum()), after - before))
    return values


def corrected_ap50(
    data: arrays.Data,
    matches: matching.Matches,
    types: ErrorTypes,
    kinds: Collection[str],
) -> float:
    """Returns the AP at IoU 0.5 after errors of some kinds are corrected.

    Class and localization errors become correct detections of their object. If several
    have the same object the best remains, and none if another detection has found it.
    The other wrong detections are removed. Missed objects no longer count. A class of
    which no object and no detection remains has AP 1; TIDE leaves it out.

    Args:
      data: The objects and detections.
      matches: Their matches; the first threshold is 0.5.
      types: The kinds.
      kinds: The names of the corrected kinds.
    """
    numbers = [results.ERROR_KINDS.index(kind) for kind in kinds]
    is_fixed = np.isin(types.kind, numbers)
    promoted = _promoted(data, matches, types, is_fixed, len(data.found.label))
    is_correct = matches.is_correct[0] | promoted
    is_wrong = matches.is_wrong[0] & ~is_fixed
    label = data.found.label.copy()
    label[promoted] = data.objects.label[types.object[promoted]]
    before = average_precision.num_counted(data, matches)
    total = before.copy()
    if "missed" in kinds:
        total -= np.bincount(
            data.objects.label[types.is_missed], minlength=len(data.names)
        )
    order = np.lexsort((-data.found.score, label))
    edges = np.searchsorted(label[order], np.arange(len(data.names) + 1))
    return average_precision.mean(
        np.array(
            [
                _class_ap(
                    is_correct[order[start:stop]],
                    is_wrong[order[start:stop]],
                    int(total[k]),
                )
                for k, (start, stop) in enumerate(itertools.pairwise(edges))
                if before[k]
            ]
        )
    )


def _class_ap(is_correct: np.ndarray, is_wrong: np.ndarray, total: int) -> float:
    if not total:
        return 0.0 if is_wrong.any() else 1.0
    return float(
        average_precision.precision_by_recall(
            is_correct[None], is_wrong[None], total
        ).mean()
    )


def _promoted(
    data: arrays.Data,
    matches: matching.Matches,
    types: ErrorTypes,
    is_fixed: np.ndarray,
    num: int,
) -> np.ndarray:
    """Returns bool [D], True for errors that become correct detections."""
    is_possible = is_fixed & np.isin(types.kind, [_CLASS, _LOCALIZATION])
    is_possible &= ~np.append(matches.object_is_found(), True)[types.object]
    candidates = np.flatnonzero(is_possible)
    order = np.lexsort((-data.found.score[candidates], types.object[candidates]))
    _, first = np.unique(types.object[candidates][order], return_index=True)
    promoted = np.zeros(num, bool)
    promoted[candidates[order][first]] = True
    return promoted


def _nearest(pairs: arrays.Pairs, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the object with the highest IoU of each detection, or -1, and the IoU."""
    order = np.lexsort((-pairs.iou, pairs.detection))
    detection, first = np.unique(pairs.detection[order], return_index=True)
    nearest, iou = np.full(num, -1), np.zeros(num)
    nearest[detection] = pairs.object[order][first]
    iou[detection] = pairs.iou[order][first]
    return nearest, iou


def _iou_with(pairs: arrays.Pairs, matched: np.ndarray, num: int) -> np.ndarray:
    iou = np.zeros(num)
    is_match = matched[pairs.detection] == pairs.object
    iou[pairs.detection[is_match]] = pairs.iou[is_match]
    return iou


def kinds_of(types: ErrorTypes) -> Sequence[str]:
    """Returns the name of the kind of each detection.

    Args:
      types: The kinds.
    """
    names = np.array([*results.ERROR_KINDS, IGNORED, CORRECT])
    return names[types.kind].tolist()
