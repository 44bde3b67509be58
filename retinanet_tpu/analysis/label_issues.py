"""Finds annotations that confident detections contradict."""

import numpy as np

from retinanet_tpu.analysis import arrays, error_types, matching, results, shown

# The kind of error, and what may be wrong with the annotation.
_REASONS = {
    "background": "missing label",
    "class": "wrong class",
    "localization": "loose box",
}


def label_issues(
    data: arrays.Data,
    matches: matching.Matches,
    types: error_types.ErrorTypes,
    boxes: shown.Boxes,
    threshold: float,
) -> list[results.LabelIssue]:
    """Returns the suspected annotations, the most confident first.

    A detection is confident if its score is the threshold or higher, and at least that
    of half of the correct detections of its class. An object is suspected only if no
    detection of its class with at least the threshold finds it, and only once.

    Args:
      data: The objects and detections.
      matches: Their matches; the first threshold is 0.5.
      types: The kinds of errors.
      boxes: The records of the boxes.
      threshold: The score threshold of all classes.
    Source: ours.
    """
    found = data.found
    is_confident = found.score >= _confident_scores(data, matches, threshold)
    kinds = np.array(error_types.kinds_of(types))
    is_found = np.zeros(len(data.objects.label) + 1, bool)
    finds = matches.is_correct[0] & (found.score >= threshold)
    is_found[matches.object[0][finds]] = True
    # The last entry stands for -1, no object.
    is_issue = is_confident & np.isin(kinds, list(_REASONS)) & ~is_found[types.object]
    candidates = np.flatnonzero(is_issue)
    candidates = candidates[np.argsort(-found.score[candidates], kind="stable")]
    suspected: set[int] = set()
    issues = []
    for number in candidates.tolist():
        other = int(types.object[number])
        if other in suspected:
            continue
        if other >= 0:
            suspected.add(other)
        issues.append(
            results.LabelIssue(
                image_id=int(data.images[found.image[number]]["id"]),
                reason=_REASONS[str(kinds[number])],
                detection=boxes.detection(number),
                annotated=boxes.object(other) if other >= 0 else None,
            )
        )
    return issues


def _confident_scores(
    data: arrays.Data, matches: matching.Matches, threshold: float
) -> np.ndarray:
    """Returns float64 [D], the score from which each detection is confident."""
    is_correct = matches.is_correct[0]
    lowest = np.full(len(data.names), np.inf)
    for label in np.unique(data.found.label[is_correct]):
        scores = data.found.score[is_correct & (data.found.label == label)]
        lowest[label] = max(float(np.median(scores)), threshold)
    return lowest[data.found.label]
