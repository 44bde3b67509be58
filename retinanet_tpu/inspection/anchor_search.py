"""The coverage of boxes by anchors, and a search for anchors that cover more."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from retinanet_tpu import errors
from retinanet_tpu.boxes.anchors import Anchors

RECALL_IOU = 0.5  # RetinaNet's threshold of a positive anchor.
_MAX_BOXES = 3000  # The search samples as many; more make it slow, not better.
# Base sides to start from, in strides; the evolution continues from the best.
_FIRST_SIZES = tuple(2 ** (exponent / 2) for exponent in range(7))
_NUM_STARTS = 3
# The standard deviation of a mutation's log factors, first and last generation.
_MUTATION_SIGMAS = (0.3, 0.01)
_WHOLE_PIXELS_LEVEL = 5  # Anchors of whole pixels need sides of multiples of 2^5.
_DIGITS = 4  # Candidates are rounded, so that the gin file has the values evaluated.


class Coverage(NamedTuple):
    """The coverage of boxes by anchors.

    Attributes:
      num_boxes: The number of boxes.
      recall: The share of boxes with an anchor of IoU >= RECALL_IOU.
      mean_iou: The mean IoU of the boxes with their best anchors.
    """

    num_boxes: int
    recall: float
    mean_iou: float


@dataclasses.dataclass(frozen=True)
class _Shapes:
    """The settings of anchors that the search changes."""

    size: float
    scales: tuple[float, ...]
    ratios: tuple[float, ...]

    def rounded(self) -> "_Shapes":
        """Returns the same anchors in few digits, with scales rising from 1."""
        first = min(self.scales)
        return _Shapes(
            _round(self.size * first),
            tuple(sorted(_round(scale / first) for scale in self.scales)),
            tuple(sorted(map(_round, self.ratios))),
        )


def best_iou(
    boxes_yxyx: np.ndarray, anchors: Anchors, image_size: tuple[int, int]
) -> np.ndarray:
    """Returns float32 [N], the highest IoU of each box with any anchor.

    Among the anchors of one level and shape, the one nearest to the box's center
    overlaps most, since overlap falls with the distance along either axis.
    So the result is exact without building the grid.

    Args:
      boxes_yxyx: float32 [N, 4], px of the network's input.
      anchors: The shapes and levels.
      image_size: The height and width of the network's input, px.
    Raises:
      UserError: The coarsest level's stride does not divide a side.
    """
    boxes = np.asarray(boxes_yxyx, np.float32)
    sides = np.maximum(boxes[:, None, 2:] - boxes[:, None, :2], 0)
    centers = (boxes[:, None, 2:] + boxes[:, None, :2]) / 2
    all_sizes = _sizes_hw(anchors)
    best = np.zeros(len(boxes), np.float32)
    grids = anchors.grid_sizes(image_size)
    for level, grid, sizes in zip(anchors.levels, grids, all_sizes, strict=True):
        stride: np.ndarray = np.full(2, 2**level)
        if anchors.whole_pixels:
            stride = np.array(image_size) // grid
        nearest = np.floor(centers / stride - anchors.center + 0.5)
        cells = np.clip(nearest, 0, np.array(grid) - 1)
        offsets = np.abs(centers - (cells + anchors.center) * stride)
        shape = sizes[None]
        # Along an axis the overlap is either side, or what the offset leaves.
        overlaps = np.minimum(sides, shape)
        overlaps = np.minimum(overlaps, (sides + shape) / 2 - offsets)
        intersection = np.maximum(overlaps, 0).prod(axis=-1)
        union = sides.prod(axis=-1) + shape.prod(axis=-1) - intersection
        best = np.maximum(best, (intersection / union).max(axis=-1))
    return best.astype(np.float32)


def coverage(ious: np.ndarray) -> Coverage:
    """Returns the coverage of boxes; without boxes, recall and mean IoU are 0.

    Args:
      ious: float32 [N], the IoU of each box with its best anchor.
    """
    if not len(ious):
        return Coverage(0, 0.0, 0.0)
    return Coverage(len(ious), float(np.mean(ious >= RECALL_IOU)), float(np.mean(ious)))


def fit(
    boxes_yxyx: np.ndarray,
    start: Anchors,
    image_size: tuple[int, int],
    *,
    groups: np.ndarray | None = None,
    counts: tuple[int, int] | None = None,
    generations: int = 400,
    seed: int = 0,
) -> Anchors:
    """Finds the size, scales and aspect ratios that cover the boxes better.

    Aspect ratios start from the k-means of those of the boxes, scales from an octave in
    even steps. The best of several sizes, and `start`, are then mutated at random; a
    mutation with a higher sum of recall and mean IoU is kept. Groups are weighted by
    the square root of their size, so that small groups are not sacrificed for large
    ones. With as many scales and ratios as `start`, neither recall nor mean IoU falls
    over all boxes, nor their sum in any group.

    Args:
      boxes_yxyx: float32 [N, 4], px of the network's input, augmented.
      start: The anchors to improve; their levels stay.
      image_size: The height and width of the network's input, px.
      groups: int [N], the group of each box, e.g. by its size; None for one group.
      counts: The numbers of scales and of aspect ratios; None for those of `start`.
      generations: The number of candidates from each start.
      seed: The seed of the search; equal seeds give equal results.
    Returns:
      The anchors, or `start` itself if nothing better was found.
    Raises:
      UserError: There are no boxes, counts are below 1, or the size does not fit.
    Source: ours; k-means as in YOLO9000, arXiv:1612.08242, section 2 "Dimension
      Clusters". The evolution evaluates IoUs on the grid: the position of an anchor
      matters to small boxes as much as its shape.
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
    max_sampled = _MAX_BOXES // len(parts)
    samples = [part[rng.permutation(len(part))[:max_sampled]] for part in parts]
    sizes = [len(part) for part in parts]
    objective = _Objective(samples, sizes, start, image_size)
    starts = [_Candidate(objective(s), s) for s in _starts(boxes, start, counts)]
    starts.sort(key=lambda candidate: candidate.value, reverse=True)
    candidates = []
    for first in starts[:_NUM_STARTS]:
        candidates += _evolve(first, objective, generations, rng)
    candidates.sort(key=lambda candidate: candidate.value, reverse=True)
    if counts != start_counts:
        return _anchors(candidates[0].shapes, start)
    # A candidate that is better on the sample may be worse on all boxes.
    objective = _Objective(parts, sizes, start, image_size)
    for candidate in candidates:
        if objective(candidate.shapes) > (0.0, 0.0):
            return _anchors(candidate.shapes, start)
    return start


class _Objective:
    """The objective of the search: the gains over `start`, group by group."""

    def __init__(
        self,
        parts: Sequence[np.ndarray],
        sizes: Sequence[int],
        start: Anchors,
        image_size: tuple[int, int],
    ):
        """Initializes the objective.

        Args:
          parts: float32 [n, 4] for each group, its boxes or a sample of them.
          sizes: The number of all boxes of each group.
          start: The anchors to improve.
          image_size: The height and width of the network's input, px.
        """
        self._parts = parts
        self._start = start
        self._image_size = image_size
        self._shares = np.array(sizes) / np.sum(sizes)
        self._weights = np.sqrt(self._shares) / np.sqrt(self._shares).sum()
        self._baseline = self._coverages(start)

    def __call__(self, shapes: _Shapes) -> tuple[float, float]:
        """Returns minus the sum of all losses, and the weighted sum of all gains.

        A loss is one of recall or mean IoU over all boxes, or of a group's sum of both.
        The recall of one group is not limited by itself: it moves in steps, so that a
        small group could never change at all.
        """
        gains = self._coverages(_anchors(shapes, self._start)) - self._baseline
        group_gains = gains.sum(axis=-1)
        bounded = np.concatenate([self._shares @ gains, group_gains])
        losses = np.minimum(bounded, 0).sum()
        return float(losses), float(self._weights @ group_gains)

    def _coverages(self, anchors: Anchors) -> np.ndarray:
        """Returns float64 [groups, 2]: recall and mean IoU."""
        coverages = [
            coverage(best_iou(part, anchors, self._image_size)) for part in self._parts
        ]
        return np.array([(c.recall, c.mean_iou) for c in coverages])


class _Candidate(NamedTuple):
    value: tuple[float, float]  # the value of the objective
    shapes: _Shapes


def k_means(values: np.ndarray, k: int, *, rounds: int = 50) -> np.ndarray:
    """Returns float64 [k], rising: the cluster centers of numbers.

    Args:
      values: float [N], the numbers; the search starts from their quantiles.
      k: The number of clusters.
      rounds: The most iterations.
    """
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
    first: _Candidate,
    objective: _Objective,
    generations: int,
    rng: np.random.Generator,
) -> list[_Candidate]:
    """Returns the successive improvements by random mutations, `first` included."""
    improvements = [first]
    for sigma in np.geomspace(*_MUTATION_SIGMAS, generations):
        shapes = _mutated(improvements[-1].shapes, sigma, rng)
        value = objective(shapes)
        if value > improvements[-1].value:
            improvements.append(_Candidate(value, shapes))
    return improvements


def _mutated(shapes: _Shapes, sigma: float, rng: np.random.Generator) -> _Shapes:
    values = np.array([shapes.size, *shapes.scales, *shapes.ratios])
    is_changed = rng.random(len(values)) < 0.5
    is_changed[rng.integers(len(values))] = True  # At least one.
    values = values * np.exp(rng.normal(0, sigma, len(values)) * is_changed)
    last = 1 + len(shapes.scales)
    return _Shapes(values[0], tuple(values[1:last]), tuple(values[last:])).rounded()


def _starts(
    boxes: np.ndarray, start: Anchors, counts: tuple[int, int]
) -> Iterator[_Shapes]:
    num_scales, num_ratios = counts
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    ratios = tuple(np.exp(k_means(np.log(sides[:, 1] / sides[:, 0]), num_ratios)))
    scales = tuple(2 ** (np.arange(num_scales) / num_scales))
    for size in _FIRST_SIZES:
        yield _Shapes(size, scales, ratios).rounded()
    if counts == (len(start.scales), len(start.aspect_ratios)):
        yield _Shapes(start.size, start.scales, start.aspect_ratios).rounded()


def _anchors(shapes: _Shapes, like: Anchors) -> Anchors:
    return Anchors(
        min_level=like.min_level,
        max_level=like.max_level,
        scales=shapes.scales,
        aspect_ratios=shapes.ratios,
        size=shapes.size,
        center=like.center,
        whole_pixels=like.whole_pixels,
        box_coder=like.box_coder,
    )


def _sizes_hw(anchors: Anchors) -> list[np.ndarray]:
    """Returns float32 [shapes, 2] for each level, heights and widths in px."""
    if anchors.whole_pixels:
        # Sizes do not depend on the image. The smallest image has the fewest boxes.
        side = 2**_WHOLE_PIXELS_LEVEL
        levels = anchors.boxes_cyxhw((side, side))
        return [boxes[: anchors.num_per_cell, 2:] for boxes in levels]
    sides = [
        (scale / ratio**0.5, scale * ratio**0.5)
        for ratio in anchors.aspect_ratios
        for scale in anchors.scales
    ]
    shapes = np.array(sides, np.float32) * np.float32(anchors.size)
    return [shapes * 2**level for level in anchors.levels]


def _round(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
