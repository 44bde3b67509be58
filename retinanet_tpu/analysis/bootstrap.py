"""Estimates how AP depends on the choice of the images, by a paired bootstrap.

A bootstrap sample has as many images as there are, drawn with replacement. All
evaluations are measured on the same samples. The AP of a sample is exact: detections
are matched and sorted once, and each counts as often as its image was drawn.
"""

import concurrent.futures
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu.analysis import arrays, average_precision, matching

SEED = 0
# With 1,000 samples another seed moves the ends of an interval by a tenth of the
# standard error, with 200 by a fifth. 200 of 1,000,000 detections take 5 s.
_NUM_SAMPLES = (200, 1000)
_NUM_COUNTED = 200_000_000
_PERCENTILES = (2.5, 97.5)


class Interval(NamedTuple):
    """A 95 % confidence interval of the difference of two APs.

    Attributes:
      low: The lower end.
      high: The upper end.
    """

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Returns True if the difference has the same sign at both ends."""
        return self.low > 0 or self.high < 0


class ResampledAp:
    """The detections of an evaluation, prepared for the AP of any drawn images.

    Precision and recall change the AP only at correct detections. The arrays contain
    those of all IoU thresholds and classes, one after the other.
    """

    def __init__(self, data: arrays.Data, matches: matching.Matches):
        """Initializes the arrays.

        Args:
          data: The objects and detections.
          matches: Their matches at matching.IOU_THRESHOLDS.
        """
        self._num_classes = len(data.names)
        self._object_image = data.objects.image[matches.counts]
        self._object_label = data.objects.label[matches.counts]
        rows, is_correct = _needed(data, matches)
        labels = data.found.label[rows]
        self._image = data.found.image[rows]
        threshold, position = np.nonzero(is_correct)
        self._label = labels[position]
        self._correct_image = self._image[position]
        first = np.searchsorted(labels, self._label)
        # The number of detections is required at these places only.
        self._cuts = np.unique(np.concatenate([[0], first, position + 1]))
        self._from = np.searchsorted(self._cuts, first)
        self._to = np.searchsorted(self._cuts, position + 1)
        segment = threshold * self._num_classes + self._label
        is_first = np.append(True, segment[1:] != segment[:-1])[: len(segment)]
        self._starts = np.flatnonzero(is_first)
        self._segments = segment[self._starts]
        self._lengths = np.diff(np.append(self._starts, len(segment)))
        # Makes the precisions of a segment higher than those of all later ones, so that
        # one call accumulates all segments.
        rising = np.arange(len(self._starts))[::-1] * 2.0
        self._offset = np.repeat(rising, self._lengths)
        is_ignored = ~(is_correct | matches.is_wrong[:, rows])
        ignored_threshold, ignored = np.nonzero(is_ignored)
        self._ignored_image = self._image[ignored]
        size = len(rows) + 1
        places = ignored_threshold * size + ignored
        self._ignored_from = np.searchsorted(places, threshold * size + first)
        self._ignored_to = np.searchsorted(places, threshold * size + position)

    def __call__(self, weights: np.ndarray) -> np.ndarray:
        """Returns float64 [2]: AP and AP50; NaN if no object is drawn.

        Args:
          weights: int [N], how often each image is drawn.
        """
        num_objects = np.bincount(
            self._object_label,
            weights[self._object_image],
            minlength=self._num_classes,
        )
        is_present = num_objects > 0
        if not is_present.any():
            return np.full(2, np.nan)
        shape = (len(matching.IOU_THRESHOLDS), self._num_classes)
        values = np.zeros(shape)
        if len(self._starts):
            values.flat[self._segments] = self._areas(weights, num_objects)
        values = values[:, is_present]
        return np.array([values.mean(), values[matching.AT_50].mean()])

    def _areas(self, weights: np.ndarray, num_objects: np.ndarray) -> np.ndarray:
        """Returns the AP of each segment: the mean precision at 101 recalls."""
        total = np.cumsum(np.take(weights, self._correct_image), dtype=np.float64)
        before = np.append(0.0, total)[self._starts]
        correct = total - np.repeat(before, self._lengths)
        highest = correct / np.maximum(self._num_detections(weights), 1)
        highest += self._offset
        np.maximum.accumulate(highest[::-1], out=highest[::-1])
        highest -= self._offset
        recall = correct
        recall /= np.take(np.maximum(num_objects, 1), self._label)
        reached = np.rint(recall * 100)
        # The products are average_precision.RECALLS, to the bit.
        reached += recall >= reached * 0.01
        newly = np.diff(reached, prepend=0.0)
        newly[self._starts] = reached[self._starts]
        newly *= highest
        return np.add.reduceat(newly, self._starts) / len(average_precision.RECALLS)

    def _num_detections(self, weights: np.ndarray) -> np.ndarray:
        """Returns int [P], the detections of the segment up to each correct one."""
        drawn = np.take(weights, self._image)
        total = np.append(0, np.cumsum(np.add.reduceat(drawn, self._cuts[:-1])))
        count = total[self._to] - total[self._from]
        if len(self._ignored_image):
            total = np.append(0, np.cumsum(weights[self._ignored_image]))
            count -= total[self._ignored_to] - total[self._ignored_from]
        return count


def default_num_samples(num_detections: int) -> int:
    """Returns 1,000, or fewer, but at least 200, so that they take a few seconds.

    Args:
      num_detections: The number of detections of all evaluations together.
    """
    lowest, highest = _NUM_SAMPLES
    return min(max(_NUM_COUNTED // max(num_detections, 1), lowest), highest)


def intervals(
    evaluations: Sequence[tuple[arrays.Data, matching.Matches]],
    *,
    num_samples: int,
    seed: int = SEED,
) -> list[tuple[Interval, Interval]]:
    """Returns the intervals of the differences of AP and AP50 from the first one.

    Samples without an object have no AP and are left out.

    Args:
      evaluations: The objects and detections of each, with the matches at
        matching.IOU_THRESHOLDS. All have the same images and objects.
      num_samples: The number of bootstrap samples.
      seed: The seed of the random numbers.
    Returns:
      An entry for each evaluation but the first.
    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13:
      the percentile interval.
    """
    rng = np.random.default_rng(seed)
    num_images = len(evaluations[0][0].images)
    drawn = rng.integers(0, num_images, (num_samples, num_images))
    weights = [np.bincount(row, minlength=num_images).astype(np.int32) for row in drawn]

    def resampled(evaluation: tuple[arrays.Data, matching.Matches]) -> np.ndarray:
        ap = ResampledAp(*evaluation)
        return np.array([ap(row) for row in weights])

    # NumPy releases Python's global lock.
    with concurrent.futures.ThreadPoolExecutor() as pool:
        values = np.stack(list(pool.map(resampled, evaluations)), axis=1)
    differences = values[:, 1:] - values[:, :1]
    is_measured = ~np.isnan(differences).any(axis=(1, 2))
    if not is_measured.any():
        zero = Interval(0.0, 0.0)
        return [(zero, zero)] * (len(evaluations) - 1)
    ends = np.percentile(differences[is_measured], _PERCENTILES, axis=0)
    return [
        (Interval(*ends[:, number, 0].tolist()), Interval(*ends[:, number, 1].tolist()))
        for number in range(len(evaluations) - 1)
    ]


def _needed(
    data: arrays.Data, matches: matching.Matches
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the detections by class and falling score, and bool [T, R] if correct.

    Those after the last correct one of their class do not change the AP.
    """
    is_correct = matches.is_correct[:, data.by_score]
    labels = data.found.label[data.by_score]
    last = np.full(len(data.names), -1)
    places = np.flatnonzero(is_correct.any(axis=0))
    np.maximum.at(last, labels[places], places)
    is_needed = np.arange(len(labels)) <= last[labels]
    return data.by_score[is_needed], is_correct[:, is_needed]
