"""Compares two sets of detections of the same images, box by box."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.boxes import box_ops

# Boxes whose corners are at most this far apart match at any size.
_SAME_PX = 0.5


class Tolerance(NamedTuple):
    """The greatest allowed differences between two detections of one object.

    Attributes:
      iou: The lowest IoU of their boxes.
      score: The greatest difference of their scores.
      share: The lowest share of all detections that must have a match.
      max_unmatched: The number of detections that may lack a match at any share. If a
        box just suppresses another or just does not, the last digit decides.
    """

    iou: float
    score: float
    share: float = 1.0
    max_unmatched: int = 0


class ParityReport(NamedTuple):
    """The result of a comparison.

    Attributes:
      num_compared: The number of detections that require a match, on both sides.
      num_matched: The number of those that have one.
      score_drift: The greatest difference of the scores of matches.
      box_drift: The greatest distance of the corners of matches along an axis, px.
      mean_iou: The mean IoU of matches.
      mean_score_drift: The mean difference of the scores of matches.
    """

    num_compared: int
    num_matched: int
    score_drift: float
    box_drift: float
    mean_iou: float
    mean_score_drift: float

    def is_within(self, tolerance: Tolerance) -> bool:
        """Returns True if enough detections have a match."""
        allowed = (1 - tolerance.share) * self.num_compared
        num_unmatched = self.num_compared - self.num_matched
        return num_unmatched <= max(allowed, tolerance.max_unmatched)

    def __str__(self) -> str:
        """Returns the result as one line."""
        if not self.num_compared:
            return "no detection to compare"
        return (
            f"{self.num_matched} of {self.num_compared} detections agree, scores to "
            f"{self.score_drift:.2g}, boxes to {self.box_drift:.2g} px "
            f"(mean IoU {self.mean_iou:.4f})"
        )


class _Rows(NamedTuple):
    """The detections of one image, without padding."""

    boxes_yxyx: np.ndarray  # float [N, 4], px
    scores: np.ndarray  # float [N]
    classes: np.ndarray  # int [N]


def compare(
    actual: Sequence[structures.Detections],
    expected: Sequence[structures.Detections],
    tolerance: Tolerance,
) -> ParityReport:
    """Searches a match for each detection, on both sides.

    Rounding decides which of the weakest detections are returned. Those that score
    within tolerance.score of the lowest score of their image require no match.

    Args:
      actual: The detections of each image, as NumPy arrays with a batch of one.
      expected: The expected detections of the same images.
      tolerance: The tolerance within which detections of the same class match.
    """
    matches = []
    num_compared = 0
    num_matched = 0
    for pair in zip(actual, expected, strict=True):
        one, other = (_without_padding(detections) for detections in pair)
        for a, b in ((one, other), (other, one)):
            needs_match = _needs_match(a, b, tolerance)
            drifts = _best_matches(a, b, tolerance)
            is_matched = np.isfinite(drifts[:, 0])
            num_compared += int(needs_match.sum())
            num_matched += int((needs_match & is_matched).sum())
            matches.append(drifts[is_matched])
    drifts = np.concatenate(matches or [np.zeros([0, 3])])
    greatest = drifts.max(axis=0, initial=0.0)
    means = drifts.mean(axis=0) if len(drifts) else np.full(3, np.nan)
    return ParityReport(
        num_compared,
        num_matched,
        score_drift=float(greatest[0]),
        box_drift=float(greatest[1]),
        mean_iou=float(means[2]),
        mean_score_drift=float(means[0]),
    )


def check_parity(
    name: str,
    results: Iterable[Sequence[structures.Detections]],
    expected: Sequence[structures.Detections],
    tolerance: Tolerance,
) -> ParityReport:
    """Checks the detections of a format, and returns the worst comparison.

    Args:
      name: The name of the format.
      results: The detections in the images, for each signature of the format.
      expected: The checkpoint's own detections in the images.
      tolerance: The allowed differences.
    Raises:
      UserError: The detections of a signature differ.
    """
    reports = [compare(detections, expected, tolerance) for detections in results]
    worst = min(reports, key=lambda r: (r.num_matched - r.num_compared, -r.score_drift))
    if not worst.is_within(tolerance):
        raise errors.UserError(
            f"The {name} export differs from the checkpoint: {worst}. Detections match "
            f"with IoU >= {tolerance.iou} and scores within {tolerance.score}; "
            f"{tolerance.share:.0%} must match. Nothing was exported."
        )
    logging.info("export | %s | %s", name, worst)
    if not worst.num_compared:
        logging.warning(
            "export | %s was checked on images in which the checkpoint detects too "
            "little to compare; give other images: --check_images.",
            name,
        )
    return worst


def _without_padding(detections: structures.Detections) -> _Rows:
    count = int(np.ravel(detections.num_detections)[0])
    return _Rows(
        np.asarray(detections.boxes_yxyx)[0, :count],
        np.asarray(detections.scores)[0, :count],
        np.asarray(detections.classes)[0, :count],
    )


def _needs_match(a: _Rows, b: _Rows, tolerance: Tolerance) -> np.ndarray:
    """Returns bool [N]: the detections of a whose absence rounding cannot explain."""
    lowest = min((x.scores.min() for x in (a, b) if len(x.scores)), default=0.0)
    return a.scores > lowest + tolerance.score


def _best_matches(a: _Rows, b: _Rows, tolerance: Tolerance) -> np.ndarray:
    """Returns [N, 3]: score and corner differences, and IoU, of the best matches in b.

    The values are infinite for a detection without a match.
    """
    result = np.full([len(a.scores), 3], np.inf)
    if not len(a.scores) or not len(b.scores):
        return result
    iou = box_ops.iou(
        a.boxes_yxyx.astype(np.float32), b.boxes_yxyx.astype(np.float32)
    ).numpy()
    corners = np.abs(a.boxes_yxyx[:, None] - b.boxes_yxyx[None]).max(axis=-1)
    iou = np.where(corners == 0, 1.0, iou)  # The IoU of boxes without area is 0.
    scores = np.abs(a.scores[:, None] - b.scores[None])
    is_match = (iou >= tolerance.iou) | (corners <= _SAME_PX)
    is_match &= scores <= tolerance.score
    is_match &= a.classes[:, None] == b.classes[None]
    best = np.where(is_match, corners, np.inf).argmin(axis=1)
    rows = np.arange(len(best))
    stacked = np.stack([scores, corners, iou], axis=-1)[rows, best]
    return np.where(is_match[rows, best][:, None], stacked, np.inf)
