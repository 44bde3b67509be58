"""Compares the scores of detections with the share that are right."""

import numpy as np

from retinanet_tpu.analysis import arrays, matching, results

_NUM_BINS = 20


def calibration(
    data: arrays.Data, matches: matching.Matches
) -> tuple[list[results.CalibrationBin], float]:
    """Returns the bins with detections, and the calibration error, 0 without any.

    Args:
      data: The detections.
      matches: Their matches; the first threshold is 0.5. Ignored detections are left
        out.
    Source: the expected calibration error of arXiv:1706.04599, equation 3.
    """
    is_correct = matches.is_correct[0]
    is_counted = is_correct | matches.is_wrong[0]
    scores, is_correct = data.found.score[is_counted], is_correct[is_counted]
    edges = np.arange(_NUM_BINS + 1) / _NUM_BINS
    index = np.searchsorted(edges, scores, side="right") - 1
    index = np.minimum(index, _NUM_BINS - 1)  # The last bin contains the score 1.
    count = np.bincount(index, minlength=_NUM_BINS)
    mean_score = np.bincount(index, scores, _NUM_BINS) / np.maximum(count, 1)
    precision = np.bincount(index, is_correct, _NUM_BINS) / np.maximum(count, 1)
    bins = [
        results.CalibrationBin(
            low=float(edges[i]),
            high=float(edges[i + 1]),
            mean_score=float(mean_score[i]),
            precision=float(precision[i]),
            num_detections=int(count[i]),
        )
        for i in np.flatnonzero(count)
    ]
    gaps = np.abs(mean_score - precision)
    return bins, float((gaps * count).sum() / max(len(scores), 1))
