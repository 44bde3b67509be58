"""How well anchors reach boxes, and which anchors would reach them better."""

import dataclasses
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from retinanet_tpu import errors
from retinanet_tpu.boxes import anchors as anchors_lib

RECALL_IOU = 0.5  # RetinaNet's threshold of a positive anchor.
_MAX_BOXES = 3000  # That the search looks at: of more it learns little, and slowly.
# Base sides to start from, in strides; the evolution moves on from the best.
_FIRST_SIZES = tuple(2 ** (exponent / 2) for exponent in range(7))
_NUM_STARTS = 3
# Spread of a mutation's factors, from the first generation to the last.
_MUTATION_SIGMAS = (0.3, 0.01)
_DIGITS = 4  # Of what is found: as it is judged, so can it be written down.


class Coverage(NamedTuple):
    """How well anchors reach boxes."""

    num_boxes: int
    recall: float  # share of boxes with an anchor of IoU >= REACHED_AT
    mean_iou: float  # of each box with its best anchor


@dataclasses.dataclass(frozen=True)
class _Shapes:
    size: float
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    def rounded(self) -> "_Shapes":
        """Returns the same anchors, scales rising from 1, in few digits."""
        first = min(self.scales)
        return _Shapes(
            _round(self.size * first),
            tuple(sorted(_round(scale / first) for scale in self.scales)),
            tuple(sorted(map(_round, self.ratios))),
        )


def best_iou(
    boxes_yxyx: np.ndarray, anchors: anchors_lib.Anchors, image_size: tuple[int, int]
) -> np.ndarray:
    """Returns float32 [N], the highest IoU that any anchor has with each box.

    Of one level and shape that is the anchor of the cell in which the box's center
    lies, since overlap falls with the distance along either axis. So the grid is never
    written out, and the answer is exact.

    Args:
      boxes_yxyx: float32 [N, 4], px of the network's input.
      anchors: the shapes and levels.
      image_size: height and width of the network's input, px.
    Raises:
      UserError: a side that the coarsest level's stride does not divide.
    """
    boxes = np.asarray(boxes_yxyx, np.float32)
    sides = np.maximum(boxes[:, None, 2:] - boxes[:, None, :2], 0)
    centers = (boxes[:, None, 2:] + boxes[:, None, :2]) / 2
    shapes = _shapes_hw(anchors)
    best = np.zeros(len(boxes), np.float32)
    for level, grid in zip(anchors.levels, anchors.grid_sizes(image_size), strict=True):
        stride = 2**level
        cells = np.clip(np.floor(centers / stride), 0, np.array(grid) - 1)
        offsets = np.abs(centers - (cells + 0.5) * stride)
        shape = (shapes * stride)[None]
        # Two intervals share the shorter of: either one, or what the offset leaves.
        shared = np.minimum(sides, shape)
        shared = np.minimum(shared, (sides + shape) / 2 - offsets)
        shared = np.maximum(shared, 0).prod(axis=-1)
        union = sides.prod(axis=-1) + shape.prod(axis=-1) - shared
        best = np.maximum(best, (shared / union).max(axis=-1))
    return best.astype(np.float32)


def coverage(ious: np.ndarray) -> Coverage:
    """Returns what best IoUs, float32 [N], come to; recall and mean of none are 0."""
    if not len(ious):
        return Coverage(0, 0.0, 0.0)
    return Coverage(len(ious), float(np.mean(ious >= RECALL_IOU)), float(np.mean(ious)))


def fit(
    boxes_yxyx: np.ndarray,
    start: anchors_lib.Anchors,
    image_size: tuple[int, int],
    *,
    groups: np.ndarray | None = None,
    counts: tuple[int, int] | None = None,
    generations: int = 400,
    seed: int = 0,
) -> anchors_lib.Anchors:
    """Finds size, scales and aspect ratios that reach the boxes better.

    Aspect ratios start from k-means of the boxes' own, scales from an octave in even
    steps; the best of some sizes, and `start`, are then changed at random, and what
    has the higher sum of recall and mean IoU stays. Groups count by the root of their
    size, so that the few boxes of one are not given up for the many of another. With
    as many scales and ratios as `start` neither figure falls over all boxes, nor their
    sum in any group.

    Args:
      boxes_yxyx: float32 [N, 4], px of the network's input, as training shows them.
      start: the anchors to improve on; their levels stay.
      image_size: height and width of the network's input, px.
      groups: int [N], of which group each box is, by its size say; None for one.
      counts: how many scales and how many aspect ratios; None for those of `start`.
      generations: candidates to try from each start.
      seed: of the search; the same again finds the same.
    Returns:
      Anchors, or `start` itself where nothing better was found.
    Raises:
      UserError: there are no boxes, counts are below 1, or the size does not fit.
    Source: ours; k-means as in YOLO9000, arXiv:1612.08242, section 2 "Dimension
      Clusters". The evolution judges IoUs on the grid: where an anchor lies matters to
      small boxes as much as its shape.
    """
    start_counts = len(start.scales), len(start.aspect_ratios)
    counts = counts or start_counts
    if not len(boxes_yxyx) or min(counts) < 1:
        raise errors.UserError(
            f"fit got {len(boxes_yxyx)} boxes, {counts[0]} scales and {counts[1]} "
            "aspect ratios; it needs at least one of each."
        )
    boxes = np.asarray(boxes_yxyx, np.float32)
    groups = np.zeros(len(boxes), int) if groups is None else groups
    parts = [boxes[groups == group] for group in np.unique(groups)]
    rng = np.random.default_rng(seed)
    room = _MAX_BOXES // len(parts)
    samples = [part[rng.permutation(len(part))[:room]] for part in parts]
    sizes = [len(part) for part in parts]
    judge = _Objective(samples, sizes, start, image_size)
    starts = [(judge.merit(s), s) for s in _starts(boxes, start, counts)]
    starts.sort(key=lambda pair: pair[0], reverse=True)
    found = []
    for first in starts[:_NUM_STARTS]:
        found += _evolve(first, judge.merit, generations, rng)
    found.sort(key=lambda pair: pair[0], reverse=True)
    if counts != start_counts:
        return _anchors(found[0][1], start)
    # What is better on a sample need not be so on all.
    judge = _Objective(parts, sizes, start, image_size)
    for _, shapes in found:
        if judge.merit(shapes) > (0.0, 0.0):
            return _anchors(shapes, start)
    return start


class _Objective:
    """Compares shapes with the anchors to improve on, group by group."""

    def __init__(self, parts, sizes, start, image_size):
        self._parts, self._start, self._image_size = parts, start, image_size
        self._shares = np.array(sizes) / np.sum(sizes)
        self._weights = np.sqrt(self._shares) / np.sqrt(self._shares).sum()
        self._floors = self._figures(start)

    def merit(self, shapes: "_Shapes") -> tuple[float, float]:
        """Returns minus what is lost where there is a loss, and what is won in all.

        A loss is one of recall or mean IoU over all boxes, or of a group's sum of both;
        recall alone moves in steps, so that a small group could never change at all.
        """
        gains = self._figures(_anchors(shapes, self._start)) - self._floors
        bounded = np.concatenate([self._shares @ gains, gains.sum(axis=-1)])
        return float(np.minimum(bounded, 0).sum()), float(
            self._weights @ gains.sum(axis=-1)
        )

    def _figures(self, anchors):
        """Returns float64 [groups, 2]: recall and mean IoU."""
        reaches = [
            coverage(best_iou(part, anchors, self._image_size)) for part in self._parts
        ]
        return np.array([(r.recall, r.mean_iou) for r in reaches])


def k_means(values: np.ndarray, k: int, *, rounds: int = 50) -> np.ndarray:
    """Returns float64 [k], rising: the centers of numbers [N], from their quantiles."""
    centers = np.quantile(values, (np.arange(k) + 0.5) / k)
    for _ in range(rounds):
        nearest = np.abs(values[:, None] - centers).argmin(axis=-1)
        moved = [
            values[nearest == i].mean() if (nearest == i).any() else centers[i]
            for i in range(k)
        ]
        if np.allclose(moved, centers):
            break
        centers = np.array(moved)
    return np.sort(centers)


def _evolve(
    first, merit, generations, rng
) -> list[tuple[tuple[float, float], _Shapes]]:
    """Returns what was best on the way, with its merit."""
    found = [first]
    for spread in np.geomspace(*_MUTATION_SIGMAS, generations):
        candidate = _mutated(found[-1][1], spread, rng)
        candidate_merit = merit(candidate)
        if candidate_merit > found[-1][0]:
            found.append((candidate_merit, candidate))
    return found


def _mutated(shapes: _Shapes, spread: float, rng: np.random.Generator) -> _Shapes:
    values = np.array([shapes.size, *shapes.scales, *shapes.ratios])
    is_changed = rng.random(len(values)) < 0.5
    is_changed[rng.integers(len(values))] = True  # At least one.
    values = values * np.exp(rng.normal(0, spread, len(values)) * is_changed)
    last = 1 + len(shapes.scales)
    return _Shapes(values[0], tuple(values[1:last]), tuple(values[last:])).rounded()


def _starts(boxes, start, counts) -> Iterable[_Shapes]:
    num_scales, num_ratios = counts
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    ratios = tuple(np.exp(k_means(np.log(sides[:, 1] / sides[:, 0]), num_ratios)))
    scales = tuple(2 ** (np.arange(num_scales) / num_scales))
    for size in _FIRST_SIZES:
        yield _Shapes(size, scales, ratios).rounded()
    if counts == (len(start.scales), len(start.aspect_ratios)):
        yield _Shapes(start.size, start.scales, start.aspect_ratios).rounded()


def _anchors(shapes: _Shapes, like: anchors_lib.Anchors) -> anchors_lib.Anchors:
    return anchors_lib.Anchors(
        min_level=like.min_level,
        max_level=like.max_level,
        scales=shapes.scales,
        aspect_ratios=shapes.ratios,
        size=shapes.size,
    )


def _shapes_hw(anchors: anchors_lib.Anchors) -> np.ndarray:
    """Returns float32 [shapes, 2], heights and widths in strides."""
    sides = [
        (scale / ratio**0.5, scale * ratio**0.5)
        for ratio in anchors.aspect_ratios
        for scale in anchors.scales
    ]
    return np.array(sides, np.float32) * np.float32(anchors.size)


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
