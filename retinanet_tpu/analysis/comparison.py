"""Compares evaluations of the same images: where do they differ, and by how much?

truth = coco_metric.ground_truth(path)
result = compare(truth, {"old": old_detections, "new": new_detections})
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pycocotools.coco import COCO

from retinanet_tpu.analysis import (
    arrays,
    average_precision,
    bootstrap,
    curves,
    error_types,
    image_detections,
    matching,
    results,
    shown,
)


class Evaluation(NamedTuple):
    """The result of one evaluation; see results.Analysis.

    Attributes:
      name: The name in the comparison.
      num_detections: The number of detections that count.
      threshold: The score from which on detections count in images: that of the highest
        F1. Without a correct detection it is that of another evaluation, or 0.
      metrics: The twelve metrics of COCO by name.
      all_classes: The result of all classes together.
      classes: The result of each class.
      errors: The cost of each kind of errors.
      images: All images, in the order of the annotation file.
    """

    name: str
    num_detections: int
    threshold: float
    metrics: Mapping[str, float]
    all_classes: results.ClassResult
    classes: Sequence[results.ClassResult]
    errors: Sequence[results.ErrorCost]
    images: Sequence[results.ImageResult]


class Change(NamedTuple):
    """An image in two evaluations.

    Attributes:
      before: The image in the baseline.
      after: The image in the other evaluation.
      gain: By how much the correct detections minus the wrong ones increased, each
        evaluation at its own threshold.
    """

    before: results.ImageResult
    after: results.ImageResult
    gain: int


class Difference(NamedTuple):
    """An evaluation compared with the baseline.

    Attributes:
      evaluation: The evaluation.
      intervals: The interval of the difference of "AP" and of "AP50".
      worse: The images that got worse, the worst first.
      better: The images that got better, the best first.
    """

    evaluation: Evaluation
    intervals: Mapping[str, bootstrap.Interval]
    worse: Sequence[Change]
    better: Sequence[Change]


class Comparison(NamedTuple):
    """A comparison of evaluations.

    Attributes:
      baseline: The first evaluation.
      others: The others, compared with it.
      num_images: The number of images.
      num_samples: The number of bootstrap samples of the intervals.
      coverage: The number of images with detections, of each evaluation that does not
        have all. It is empty if all evaluations have detections for the same images.
    """

    baseline: Evaluation
    others: Sequence[Difference]
    num_images: int
    num_samples: int
    coverage: Mapping[str, int]

    @property
    def evaluations(self) -> list[Evaluation]:
        """Returns all evaluations, the baseline first."""
        return [self.baseline, *(other.evaluation for other in self.others)]


def compare(
    truth: COCO,
    detections: Mapping[str, Sequence[image_detections.ImageDetections]],
    *,
    num_samples: int | None = None,
) -> Comparison:
    """Returns the comparison of evaluations on all annotated images.

    Args:
      truth: The annotations, see `coco_metric.ground_truth`.
      detections: The detections of two or more evaluations by name, the baseline first.
      num_samples: The number of bootstrap samples of the intervals; None for
        bootstrap.default_num_samples.
    Raises:
      UserError: See `analyze.analyze`.
    """
    collected = [arrays.collect(truth, each) for each in detections.values()]
    matched = [(data, matching.match(data)) for data in collected]
    measured = [curves.class_results(*pair) for pair in matched]
    best = [all_classes.curve.best_threshold for all_classes, _ in measured]
    # With 0, all detections of an evaluation without a correct one would be shown.
    fallback = next((each for each in best if each is not None), 0.0)
    evaluations = [
        _evaluation(name, *pair, result, fallback if threshold is None else threshold)
        for name, pair, result, threshold in zip(
            detections, matched, measured, best, strict=True
        )
    ]
    baseline, *others = evaluations
    if num_samples is None:
        total = sum(each.num_detections for each in evaluations)
        num_samples = bootstrap.default_num_samples(total)
    intervals = bootstrap.intervals(matched, num_samples=num_samples)
    return Comparison(
        baseline=baseline,
        others=[
            _difference(baseline, other, interval)
            for other, interval in zip(others, intervals, strict=True)
        ],
        num_images=len(truth.imgs),
        num_samples=num_samples,
        coverage=_coverage(detections, len(truth.imgs)),
    )


def _coverage(
    detections: Mapping[str, Sequence[image_detections.ImageDetections]],
    num_images: int,
) -> dict[str, int]:
    """Returns Comparison.coverage."""
    covered = {
        name: {int(image.image_id) for image in images}
        for name, images in detections.items()
    }
    if len({frozenset(ids) for ids in covered.values()}) == 1:
        return {}
    return {name: len(ids) for name, ids in covered.items() if len(ids) < num_images}


def _evaluation(
    name: str,
    data: arrays.Data,
    matches: matching.Matches,
    result: tuple[results.ClassResult, list[results.ClassResult]],
    threshold: float,
) -> Evaluation:
    types = error_types.classify(data, matches)
    all_classes, classes = result
    boxes = shown.Boxes(data, matches, types, threshold)
    images = shown.images(data, matches, boxes, threshold)
    return Evaluation(
        name=name,
        num_detections=len(data.found.score),
        threshold=threshold,
        metrics=average_precision.metrics(data, matches),
        all_classes=all_classes,
        classes=classes,
        errors=error_types.costs(data, matches, types),
        images=sorted(images, key=lambda image: image.image_id),
    )


def _difference(
    baseline: Evaluation,
    other: Evaluation,
    intervals: tuple[bootstrap.Interval, bootstrap.Interval],
) -> Difference:
    pairs = zip(baseline.images, other.images, strict=True)
    changes = [
        Change(before, after, _balance(after) - _balance(before))
        for before, after in pairs
    ]
    # Of equal gains, the image with fewer objects changed more.
    changes.sort(key=lambda each: (each.gain, each.after.f1 - each.before.f1))
    return Difference(
        evaluation=other,
        intervals=dict(zip(("AP", "AP50"), intervals, strict=True)),
        worse=[each for each in changes if each.gain < 0],
        better=[each for each in reversed(changes) if each.gain > 0],
    )


def _balance(image: results.ImageResult) -> int:
    """Returns the number of correct detections minus that of wrong ones."""
    return sum(1 if box.kind == "correct" else -1 for box in image.detections)
