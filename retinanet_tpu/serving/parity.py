"""Compares two sets of detections of the same pictures, box by box."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops

# Boxes at most this far apart are the same, however small: corners are float32.
_SAME_PX = 0.5


class Tolerance(NamedTuple):
    """How far apart two detections of one object may be.

    Attributes:
      iou: the least overlap of their boxes.
      score: the greatest difference of their scores.
      share: the least part of all detections that must have a mate.
      num_without: how many may be without a mate whatever their share. Where a box just
        suppresses another or just does not, the last digit decides.
    """

    iou: float
    score: float
    share: float = 1.0
    num_without: int = 0


class ParityReport(NamedTuple):
    """What a comparison found.

    Attributes:
      num_compared: detections that ought to have a mate, of both sides.
      num_matched: those that have one.
      score_drift: the greatest difference of mates' scores.
      box_drift: the greatest distance of mates' corners along an axis, px.
      mean_iou: of mates.
    """

    num_compared: int
    num_matched: int
    score_drift: float
    box_drift: float
    mean_iou: float

    def is_within(self, tolerance: Tolerance) -> bool:
        """Returns whether enough detections have a mate."""
        allowed = (1 - tolerance.share) * self.num_compared
        without = self.num_compared - self.num_matched
        return without <= max(allowed, tolerance.num_without)

    def __str__(self) -> str:
        """Returns a line that says how well it went."""
        if not self.num_compared:
            return "no detection to compare"
        return (
            f"{self.num_matched} of {self.num_compared} detections agree, scores to "
            f"{self.score_drift:.2g}, boxes to {self.box_drift:.2g} px "
            f"(mean IoU {self.mean_iou:.4f})"
        )


def compare(
    found: Sequence[structures.Detections],
    expected: Sequence[structures.Detections],
    tolerance: Tolerance,
) -> ParityReport:
    """Looks for a mate of each detection, from either side.

    Which of the weakest detections come out is a matter of rounding: those that score
    within tolerance.score of the lowest score of their picture need no mate.

    Args:
      found: of each picture, as NumPy arrays with a batch of one.
      expected: of the same pictures.
      tolerance: what makes two detections mates: the same class, and near enough.
    """
    mates, num_compared, num_matched = [], 0, 0
    for pair in zip(found, expected, strict=True):
        one, other = (_unpadded(detections) for detections in pair)
        for a, b in ((one, other), (other, one)):
            needs = _needs_mate(a, b, tolerance)
            drifts = _nearest(a, b, tolerance)
            is_mated = np.isfinite(drifts[:, 0])
            num_compared += int(needs.sum())
            num_matched += int((needs & is_mated).sum())
            mates.append(drifts[is_mated])
    drifts = np.concatenate(mates or [np.zeros([0, 3])])
    worst = drifts.max(axis=0, initial=0.0)
    mean_iou = float(drifts[:, 2].mean()) if len(drifts) else float("nan")
    return ParityReport(
        num_compared, num_matched, float(worst[0]), float(worst[1]), mean_iou
    )


def _unpadded(detections):
    count = int(np.ravel(detections.num_detections)[0])
    rows = (detections.boxes_yxyx, detections.scores, detections.classes)
    return tuple(np.asarray(row)[0, :count] for row in rows)


def _needs_mate(a, b, tolerance):
    """Returns bool [N]: the detections of a that rounding does not explain away."""
    scores = [x[1].min() for x in (a, b) if len(x[1])]
    lowest = max(scores, default=0.0)
    return a[1] > lowest + tolerance.score


def _nearest(a, b, tolerance):
    """Returns [N, 3]: score and corner differences, and IoU, of each a's best mate.

    Infinite where b has none.
    """
    result = np.full([len(a[1]), 3], np.inf)
    if not len(a[1]) or not len(b[1]):
        return result
    iou = box_ops.iou(a[0].astype(np.float32), b[0].astype(np.float32)).numpy()
    corners = np.abs(a[0][:, None] - b[0][None]).max(axis=-1)
    iou = np.where(corners == 0, 1.0, iou)  # Of boxes without area it is 0.
    scores = np.abs(a[1][:, None] - b[1][None])
    is_mate = (iou >= tolerance.iou) | (corners <= _SAME_PX)
    is_mate &= (scores <= tolerance.score) & (a[2][:, None] == b[2][None])
    best = np.where(is_mate, corners, np.inf).argmin(axis=1)
    rows = np.arange(len(best))
    stacked = np.stack([scores, corners, iou], axis=-1)[rows, best]
    return np.where(is_mate[rows, best][:, None], stacked, np.inf)
