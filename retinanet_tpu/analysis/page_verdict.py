"""Turns the numbers of an analysis into sentences."""

from collections.abc import Sequence

import numpy as np

from retinanet_tpu.analysis import results

DASH = "\N{EN DASH}"
# Below it scores are used as probabilities without harm; ours, a rule of thumb.
_CALIBRATED = 0.05
# A smaller group or class is too noisy to be named the weakest; ours.
_LEAST_OBJECTS = 10

_WHAT_IT_MEANS = {
    "class": (
        "objects detected as another class",
        "See the confusion matrix for the pairs; check their labels, then add examples "
        "of the rarer class.",
    ),
    "localization": (
        "detections of the right class whose box overlaps too little",
        "Check for loose or cut labels, fit the anchors to the data with fit_anchors, "
        "and try larger images.",
    ),
    "both": (
        "detections of another class whose box also overlaps too little",
        "See the confusion matrix and the images below.",
    ),
    "duplicate": (
        "second detections of an object",
        "Lower the IoU threshold of non-maximum suppression.",
    ),
    "background": (
        "detections where no object is annotated",
        "See the suspected label errors first: unlabeled objects count as errors. Then "
        "add images without objects that resemble them.",
    ),
    "missed": (
        "objects that no detection explains",
        "See AP by group: small objects need larger images; rare classes need more "
        "examples.",
    ),
}


def number(value: float) -> str:
    """Returns a value of 0..1 with three decimals, or a dash if it is negative."""
    return DASH if value < 0 or np.isnan(value) else f"{value:.3f}"


def signed(change: float) -> str:
    """Returns a difference with its sign and three decimals."""
    return f"{change:+.3f}" if is_shown(change) else "0.000"


def is_shown(change: float) -> bool:
    """Returns False for a difference that is zero in three decimals."""
    return abs(change) >= 0.0005


def meaning(kind: str) -> str:
    """Returns what a kind of errors consists of."""
    return _WHAT_IT_MEANS[kind][0]


def sentences(analysis: results.Analysis) -> list[str]:
    """Explains the result: its largest loss, weakest parts and scores.

    Args:
      analysis: The analysis.

    Returns:
      The sentences, in order.
    """
    whole = analysis.all_classes
    if not whole.num_objects:
        return ["No object is annotated, so there is nothing to measure."]
    if not whole.num_detections:
        return [
            f"Nothing is detected, although {whole.num_objects:,} objects are "
            "annotated. Check the checkpoint and the lowest score that is kept."
        ]
    return [
        _overall(analysis),
        *_largest_error(analysis.errors),
        *_weakest_class(analysis.classes),
        *_weakest_group(analysis.groups),
        *_scores(analysis),
    ]


def _overall(analysis: results.Analysis) -> str:
    whole = analysis.all_classes
    parts = [f"AP is {number(whole.ap)} on {whole.num_objects:,} objects"]
    if len(analysis.classes) > 1:
        parts.append(f" of {len(analysis.classes):,} classes")
    parts.append(f" in {len(analysis.images):,} images.")
    curve = whole.curve
    best = curve.best
    if best is not None:
        parts.append(
            f" At a score of {curve.thresholds[best]:.2f} or more, "
            f"{curve.recall[best]:.0%} of the objects are detected, and "
            f"{curve.precision[best]:.0%} of the detections are right."
        )
    return "".join(parts)


def _largest_error(errors: Sequence[results.ErrorCost]) -> list[str]:
    worst = max(errors, key=lambda error: error.ap50_cost, default=None)
    if worst is None or worst.ap50_cost <= 0:
        return []
    what, advice = _WHAT_IT_MEANS[worst.kind]
    return [
        f"The most expensive errors are {worst.kind} errors ({what}): correcting all "
        f"{worst.num_errors:,} would raise AP50 by {worst.ap50_cost:.3f}. {advice}"
    ]


def _weakest_class(classes: Sequence[results.ClassResult]) -> list[str]:
    measured = [result for result in classes if result.ap >= 0]
    frequent = [r for r in measured if r.num_objects >= _LEAST_OBJECTS] or measured
    if len(frequent) < 2:
        return []
    worst = min(frequent, key=lambda result: result.ap)
    best = max(frequent, key=lambda result: result.ap)
    return [
        f"The worst class is {worst.name} with an AP of {number(worst.ap)} "
        f"({worst.num_objects:,} objects); the best is {best.name} with "
        f"{number(best.ap)} ({best.num_objects:,})."
    ]


def _weakest_group(groups: Sequence[results.Group]) -> list[str]:
    measured = [
        group
        for group in groups
        if group.ap >= 0 and group.num_objects >= _LEAST_OBJECTS
    ]
    dimensions = {group.dimension for group in measured}
    spreads = []
    for dimension in dimensions:
        of_it = [group for group in measured if group.dimension == dimension]
        low = min(of_it, key=lambda group: group.ap)
        high = max(of_it, key=lambda group: group.ap)
        spreads.append((high.ap - low.ap, dimension, low, high))
    if not spreads:
        return []
    spread, dimension, low, high = max(spreads, key=lambda each: each[:2])
    if spread <= 0:
        return []
    return [
        f"Of the groups, those by {dimension} differ most: AP is {number(low.ap)} for "
        f"“{low.name}” ({low.num_objects:,} objects) and {number(high.ap)} for "
        f"“{high.name}” ({high.num_objects:,})."
    ]


def _scores(analysis: results.Analysis) -> list[str]:
    error = analysis.calibration_error
    bins = [each for each in analysis.calibration if each.num_detections]
    if error < 0 or not bins:
        return []
    # Most detections have a low score and are right to have it, which hides the
    # difference of those that are used.
    threshold = analysis.all_classes.threshold
    used = [each for each in bins if each.mean_score >= threshold] or bins
    weights = [each.num_detections for each in used]
    score = float(np.average([each.mean_score for each in used], weights=weights))
    precision = float(np.average([each.precision for each in used], weights=weights))
    numbers = (
        f"the mean difference to the precision is {error:.3f}, and above the best "
        f"threshold the mean score is {score:.2f} where the precision is "
        f"{precision:.2f}."
    )
    if error < _CALIBRATED and abs(score - precision) < _CALIBRATED:
        return [f"Scores are calibrated: {numbers}"]
    side = "high" if score > precision else "low"
    return [
        f"Scores are not calibrated, and mostly too {side}: {numbers} Do not read them "
        "as probabilities; AP does not depend on their calibration."
    ]
