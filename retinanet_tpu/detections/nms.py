"""Non-maximum suppression: keeps the best of the boxes that overlap.

  per_class_hard, combined   a box suppresses worse boxes of its class
  global_hard                a box suppresses worse boxes of all classes
  per_class_soft             a box lowers the scores of worse boxes of its class
  global_soft                a box lowers the scores of worse boxes of all classes

All variants have static shapes and no host-only operations: they run inside a compiled
step and convert to other formats. `combined` is TensorFlow's name for per_class_hard.
"""

import dataclasses
import itertools
from collections.abc import Callable

import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.detections import decode

_SOFT = ("per_class_soft", "global_soft")
VARIANTS = ("combined", "per_class_hard", "global_hard", *_SOFT)
# IoU, iou_threshold -> the factor, in [0, 1], of the score of a box that overlaps a
# selected box: `linear` or `gaussian`.
SoftFn = Callable[[tf.Tensor, float], tf.Tensor]
# The number of candidates in a tile of hard NMS. A tile's work grows with its square.
_TILE = 128
# The window sizes that soft NMS tries first. A window's table has all pairs in it.
_WINDOWS = (128, 384)


def linear(iou: tf.Tensor, iou_threshold: float) -> tf.Tensor:
    """Returns the factors of scores, [...]: 1 - IoU above the threshold, else 1.

    Source: Soft-NMS, arXiv:1704.04503, section 3; its experiments' threshold is 0.3.
    """
    return tf.where(iou > iou_threshold, 1.0 - iou, 1.0)


def gaussian(
    iou: tf.Tensor, iou_threshold: float = 0.0, *, sigma: float = 0.5
) -> tf.Tensor:
    """Returns the factors of scores, [...]: exp(-IoU^2 / sigma), at any IoU.

    Source: Soft-NMS, arXiv:1704.04503, section 3.
    """
    del iou_threshold  # The factor is near 1 at a small IoU, so it needs none.
    return tf.exp(-(iou**2) / sigma)


@dataclasses.dataclass(frozen=True)
class NMS:
    """Non-maximum suppression with fixed settings.

    Attributes:
      variant: The variant, one of VARIANTS.
      iou_threshold: The highest IoU with a better box at which a box is kept. soft_fn
        gets it, too.
      soft_fn: The factors of scores, `linear` or `gaussian`. The hard variants ignore
        it.
      score_threshold: The score that a detection must exceed, also after its score
        was lowered.
      max_detections: The number of detections of an image, D.
    """

    variant: str = "per_class_hard"
    iou_threshold: float = 0.5
    soft_fn: SoftFn = gaussian
    score_threshold: float = 0.05
    max_detections: int = 100

    def __post_init__(self) -> None:
        """Raises UserError for an unknown variant, or a score_threshold below 0."""
        if self.variant not in VARIANTS:
            raise errors.UserError(
                f"NMS.variant is {self.variant!r}; choose one of {', '.join(VARIANTS)}."
            )
        if self.score_threshold < 0:
            raise errors.UserError(
                f"NMS.score_threshold is {self.score_threshold}; it must be >= 0."
            )

    def __str__(self) -> str:
        """Returns a summary on one line."""
        kind = getattr(self.soft_fn, "__name__", "soft") if self.is_soft else "hard"
        return (
            f"{self.variant} ({kind}), IoU {self.iou_threshold}, scores above "
            f"{self.score_threshold}, at most {self.max_detections} objects"
        )

    @property
    def is_soft(self) -> bool:
        """Returns True if overlap lowers scores, False if it removes boxes."""
        return self.variant in _SOFT

    @property
    def is_per_class(self) -> bool:
        """Returns True if only boxes of the same class affect each other."""
        return not self.variant.startswith("global")

    def __call__(self, candidates: decode.Candidates) -> structures.Detections:
        """Returns the detections. Of equal scores the first candidate is better.

        Args:
          candidates: The C candidates of each image, best first. Those at or below
            score_threshold may be anywhere.
        Returns:
          The detections, with boxes in the candidates' frame. All values past
          num_detections are 0.
        """
        is_candidate = candidates.scores > self.score_threshold
        scores = tf.where(is_candidate, candidates.scores, 0.0)
        select = self._soft_nms_progressive if self.is_soft else self._hard_nms
        selected = select(candidates._replace(scores=scores))
        is_detection = selected.scores > 0
        boxes_yxyx = tf.where(
            tf.expand_dims(is_detection, -1), selected.boxes_yxyx, 0.0
        )
        classes = tf.where(is_detection, selected.classes, 0)
        count = tf.reduce_sum(tf.cast(is_detection, tf.int32), axis=-1)
        return structures.Detections(boxes_yxyx, selected.scores, classes, count)

    def _hard_nms(self, candidates: decode.Candidates) -> decode.Candidates:
        """Returns the selected candidates, [B, D], best first, then scores of 0.

        Processes the candidates in tiles, best first, until D are selected. A tile
        loses the boxes that selected boxes suppress, then those that its own boxes
        suppress.
        """
        num_candidates = candidates.scores.shape[1]
        tile_size = min(_TILE, num_candidates)
        num_tiles = -(-num_candidates // tile_size)
        padding = num_tiles * tile_size - num_candidates

        def in_tiles(x):
            sides = [[0, 0]] * (x.shape.rank - 2)
            padded = tf.pad(x, [[0, 0], [0, padding], *sides])
            return tf.reshape(padded, [-1, num_tiles, tile_size, *x.shape[2:]])

        tiles = tf.nest.map_structure(in_tiles, candidates)
        best_scores = tf.reduce_max(tiles.scores, axis=-1)  # [B, tiles]
        num_needed = tf.reduce_max(
            tf.where(best_scores > 0, tf.range(1, num_tiles + 1), 0), axis=-1
        )

        def is_unfinished(tile, _, num_selected):
            is_image_unfinished = tf.logical_and(
                tile < num_needed, num_selected < self.max_detections
            )
            return tf.reduce_any(is_image_unfinished)

        def select_from_tile(tile, selected, num_selected):
            new = tf.nest.map_structure(lambda x: tf.gather(x, tile, axis=1), tiles)
            is_suppressor = self._overlaps(selected, new) > self.iou_threshold
            is_free = tf.logical_and(
                new.scores > 0, tf.logical_not(tf.reduce_any(is_suppressor, axis=1))
            )
            is_kept = _suppress_within_tile(
                self._overlaps(new, new) > self.iou_threshold, is_free
            )
            return tile + 1, *_append_selected(selected, num_selected, new, is_kept)

        batch_size = tf.shape(candidates.scores)[0]
        nothing = decode.Candidates(
            tf.zeros([batch_size, self.max_detections, 4]),
            tf.zeros([batch_size, self.max_detections]),
            tf.zeros([batch_size, self.max_detections], tf.int32),
        )
        _, selected, _ = tf.while_loop(
            is_unfinished,
            select_from_tile,
            (0, nothing, tf.zeros([batch_size], tf.int32)),
            maximum_iterations=num_tiles,
        )
        return selected

    def _soft_nms_progressive(self, candidates: decode.Candidates) -> decode.Candidates:
        """Returns the selected candidates, [B, D], best first, then scores of 0.

        A progressive window search. The table of all pairs grows with the square of the
        number of candidates. So the selection first runs on a window of the best ones.
        The invariant: scores only fall. Therefore, if the last score selected from a
        window is at least the best score outside of it, no step could have selected a
        candidate outside. The result is then that of all candidates. Otherwise the
        selection runs again on the next window; the last window has all candidates.
        The conditions follow one another, one for each pair of windows: tf2onnx loses
        the shapes of nested conditions.
        """
        num_candidates = candidates.scores.shape[1]

        def select(window: int) -> decode.Candidates:
            best = tf.nest.map_structure(lambda x: x[:, :window], candidates)
            return self._sequential_soft_nms(best)

        windows = [w for w in _WINDOWS if w < num_candidates] + [num_candidates]
        selected = select(windows[0])
        for window, wider in itertools.pairwise(windows):
            best_outside = tf.reduce_max(candidates.scores[:, window:], axis=-1)
            selected = tf.cond(
                tf.reduce_all(selected.scores[:, -1] >= best_outside),
                # Default arguments bind the values of this iteration.
                lambda selected=selected: selected,
                lambda wider=wider: select(wider),
            )
        return selected

    def _sequential_soft_nms(self, candidates: decode.Candidates) -> decode.Candidates:
        """Returns the selected candidates, [B, D], best first, then scores of 0.

        Each step selects the best candidate of every image, then lowers the scores of
        the candidates that overlap it.
        """
        batch_size = tf.shape(candidates.scores)[0]
        num_candidates = candidates.scores.shape[1]
        # The table of all candidates would be too large: 100 MB an image for 5,000.
        has_table = num_candidates <= max(_WINDOWS)
        table = self._score_factors(candidates, candidates) if has_table else None

        def is_unfinished(_, scores, *__):
            return tf.reduce_any(scores > self.score_threshold)

        def select_best(step, scores, selected, selected_scores):
            best = tf.argmax(scores, axis=-1, output_type=tf.int32)[:, tf.newaxis]
            is_slot = tf.range(self.max_detections) == step
            selected = tf.where(is_slot, best, selected)
            best_score = tf.gather(scores, best, batch_dims=1)
            selected_scores = tf.where(is_slot, best_score, selected_scores)
            if has_table:
                factors = tf.gather(table, best, batch_dims=1)
            else:
                factors = self._score_factors(_gather(candidates, best), candidates)
            # The IoU of a box without area with itself is 0, so the selected box is
            # removed by its index.
            factors = tf.where(tf.range(num_candidates) == best, 0.0, factors[:, 0])
            return step + 1, scores * factors, selected, selected_scores

        _, _, selected, selected_scores = tf.while_loop(
            is_unfinished,
            select_best,
            (
                0,
                candidates.scores,
                tf.zeros([batch_size, self.max_detections], tf.int32),
                tf.zeros([batch_size, self.max_detections]),
            ),
            maximum_iterations=self.max_detections,
        )
        # The images of a batch have no candidates left at different steps.
        selected_scores = tf.where(
            selected_scores > self.score_threshold, selected_scores, 0.0
        )
        return _gather(candidates, selected)._replace(scores=selected_scores)

    def _overlaps(self, a: decode.Candidates, b: decode.Candidates) -> tf.Tensor:
        """Returns IoUs, float32 [B, N, M]; 0 for pairs without effect on each other."""
        iou = box_ops.iou(a.boxes_yxyx, b.boxes_yxyx)
        if not self.is_per_class:
            return iou
        is_same = a.classes[:, :, tf.newaxis] == b.classes[:, tf.newaxis, :]
        return tf.where(is_same, iou, 0.0)

    def _score_factors(self, a: decode.Candidates, b: decode.Candidates) -> tf.Tensor:
        """Returns the factors of the scores of b, float32 [B, N, M], by selected a."""
        return self.soft_fn(self._overlaps(a, b), self.iou_threshold)


def _gather(candidates: decode.Candidates, indices: tf.Tensor) -> decode.Candidates:
    """Returns the candidates at int32 [B, N] indices."""
    return tf.nest.map_structure(
        lambda x: tf.gather(x, indices, batch_dims=1), candidates
    )


def _suppress_within_tile(is_overlap: tf.Tensor, is_free: tf.Tensor) -> tf.Tensor:
    """Returns the free boxes that greedy suppression keeps, bool [B, T].

    A box is kept if no kept box before it overlaps it. The loop begins with all free
    boxes and applies this rule to all boxes at once until nothing changes. Each pass
    makes at least one more box of a chain of overlapping boxes final.

    Args:
      is_overlap: bool [B, T, T]. Whether the IoU of two boxes exceeds the threshold.
      is_free: bool [B, T]. Whether no box selected before suppresses a box.
    """
    size = is_overlap.shape[1]
    is_before = tf.range(size)[:, tf.newaxis] < tf.range(size)
    # [B, T, T], (kept box, suppressed box). Numbers, because a product sums faster.
    suppresses = tf.cast(tf.logical_and(is_overlap, is_before), tf.float32)

    free = tf.cast(is_free, tf.float32)

    def apply_rule(_, kept):
        num_suppressors = tf.linalg.matvec(suppresses, kept, transpose_a=True)
        kept_now = tf.where(num_suppressors > 0.5, 0.0, free)
        return tf.reduce_any(kept_now != kept), kept_now

    # The flag is part of the loop's state: tf2onnx loses states that never change.
    _, kept = tf.while_loop(
        lambda has_changed, _: has_changed,
        apply_rule,
        (tf.constant(True), free),
        maximum_iterations=size,
    )
    return kept > 0.5


def _append_selected(
    selected: decode.Candidates,
    num_selected: tf.Tensor,
    new: decode.Candidates,
    is_kept: tf.Tensor,
) -> tuple[decode.Candidates, tf.Tensor]:
    """Returns the selected candidates with kept ones appended, and their number [B]."""
    num_kept = tf.reduce_sum(tf.cast(is_kept, tf.int32), axis=-1)
    slots = tf.range(selected.scores.shape[1]) - num_selected[:, tf.newaxis]
    is_new = tf.logical_and(slots >= 0, slots < num_kept[:, tf.newaxis])
    # Not top_k: not every runtime keeps the order of equal values.
    rank = tf.where(is_kept, tf.cumsum(tf.cast(is_kept, tf.int32), axis=-1), 0) - 1
    is_source = rank[:, tf.newaxis, :] == slots[:, :, tf.newaxis]  # [B, D, T]
    source = tf.argmax(tf.cast(is_source, tf.int32), axis=-1, output_type=tf.int32)

    def fill_slots(old, tile_values):
        values = tf.gather(tile_values, source, batch_dims=1)
        mask = tf.expand_dims(is_new, -1) if len(old.shape) == 3 else is_new
        return tf.where(mask, values, old)

    num_selected = tf.minimum(num_selected + num_kept, selected.scores.shape[1])
    return tf.nest.map_structure(fill_slots, selected, new), num_selected
