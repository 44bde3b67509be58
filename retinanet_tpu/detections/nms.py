"""Non-maximum suppression: of boxes that say the same, the best remains.

  per_class_hard, combined   boxes of one class suppress each other
  global_hard                all boxes do
  per_class_soft             boxes of one class lower each other's scores
  global_soft                all boxes do

All have static shapes and no host-only operations, so that they run inside a compiled
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
# Candidates that hard suppression settles at once; its work grows with their square.
_TILE = 128
# Candidates that soft suppression tries to do with, each time a table of all pairs.
_WINDOWS = (128, 384)


def linear(iou: tf.Tensor, iou_threshold: float) -> tf.Tensor:
    """Returns what remains of a score, [...]: 1 - IoU above a threshold.

    Source: Soft-NMS, arXiv:1704.04503, section 3; its experiments' threshold is 0.3.
    """
    return tf.where(iou > iou_threshold, 1.0 - iou, 1.0)


def gaussian(
    iou: tf.Tensor, iou_threshold: float = 0.0, *, sigma: float = 0.5
) -> tf.Tensor:
    """Returns what remains of a score, [...]: exp(-IoU^2 / sigma), at any IoU.

    Source: Soft-NMS, arXiv:1704.04503, section 3.
    """
    del iou_threshold  # Falls smoothly from 1, so it needs none.
    return tf.exp(-(iou**2) / sigma)


@dataclasses.dataclass(frozen=True)
class NMS:
    """Keeps the best of the candidates that overlap.

    Attributes:
      variant: one of VARIANTS.
      iou_threshold: a box is suppressed by a better one with a greater IoU; soft_fn is
        given it too.
      soft_fn: (IoU with a box taken before, iou_threshold) -> the part, in [0, 1],
        that remains of a score: linear or gaussian. The hard variants need none.
      score_threshold: scores at or below it never come out, lowered ones included.
      max_detections: D.
    """

    variant: str = "per_class_hard"
    iou_threshold: float = 0.5
    soft_fn: Callable[[tf.Tensor, float], tf.Tensor] = gaussian
    score_threshold: float = 0.05
    max_detections: int = 100

    def __post_init__(self):
        """Raises UserError for an unknown variant, or a score_threshold below 0."""
        if self.variant not in VARIANTS:
            raise errors.UserError(
                f"NMS.variant is {self.variant!r}; choose one of {', '.join(VARIANTS)}."
            )
        if self.score_threshold < 0:
            raise errors.UserError(
                f"NMS.score_threshold is {self.score_threshold}; it must be 0 or more."
            )

    def __str__(self) -> str:
        """Returns a line for people."""
        kind = getattr(self.soft_fn, "__name__", "soft") if self.is_soft else "hard"
        return (
            f"{self.variant} ({kind}), IoU {self.iou_threshold}, scores above "
            f"{self.score_threshold}, at most {self.max_detections} objects"
        )

    @property
    def is_soft(self) -> bool:
        """Whether overlap lowers scores instead of striking boxes out."""
        return self.variant in _SOFT

    @property
    def is_per_class(self) -> bool:
        """Whether boxes of different classes leave each other alone."""
        return not self.variant.startswith("global")

    def __call__(self, candidates: decode.Candidates) -> structures.Detections:
        """Returns what remains. Of equal scores the first candidate wins.

        Args:
          candidates: C boxes an image, best first; those at or below score_threshold
            may lie anywhere.
        Returns:
          Detections with boxes in the candidates' frame; past num_detections all is 0.
        """
        is_candidate = candidates.scores > self.score_threshold
        scores = tf.where(is_candidate, candidates.scores, 0.0)
        take = self._take_softly if self.is_soft else self._take_hard
        taken = take(candidates._replace(scores=scores))
        is_found = taken.scores > 0
        boxes_yxyx = tf.where(tf.expand_dims(is_found, -1), taken.boxes_yxyx, 0.0)
        classes = tf.where(is_found, taken.classes, 0)
        count = tf.reduce_sum(tf.cast(is_found, tf.int32), axis=-1)
        return structures.Detections(boxes_yxyx, taken.scores, classes, count)

    def _take_hard(self, candidates):
        """Returns the candidates left, [B, D], best first; scores 0 past them.

        Takes a tile of the best candidates, drops what boxes taken before suppress,
        settles the rest among themselves, and goes on with the next until D are taken.
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

        def is_any_left(tile, _, num_taken):
            is_left = tf.logical_and(tile < num_needed, num_taken < self.max_detections)
            return tf.reduce_any(is_left)

        def take_tile(tile, taken, num_taken):
            new = tf.nest.map_structure(lambda x: tf.gather(x, tile, axis=1), tiles)
            suppressors = self._overlaps(taken, new) > self.iou_threshold
            is_free = tf.logical_and(
                new.scores > 0, tf.logical_not(tf.reduce_any(suppressors, axis=1))
            )
            is_kept = _suppress_within_tile(
                self._overlaps(new, new) > self.iou_threshold, is_free
            )
            return tile + 1, *_append_selected(taken, num_taken, new, is_kept)

        rows = tf.shape(candidates.scores)[0]
        nothing = decode.Candidates(
            tf.zeros([rows, self.max_detections, 4]),
            tf.zeros([rows, self.max_detections]),
            tf.zeros([rows, self.max_detections], tf.int32),
        )
        _, taken, _ = tf.while_loop(
            is_any_left,
            take_tile,
            (0, nothing, tf.zeros([rows], tf.int32)),
            maximum_iterations=num_tiles,
        )
        return taken

    def _take_softly(self, candidates):
        """Returns the candidates taken, [B, D], best first; scores 0 past them.

        Scores only fall. So the best hundreds decide among themselves as long as none
        of them is taken with a score below the first scores of those left out.
        """
        num_candidates = candidates.scores.shape[1]

        def take(window):
            shown = tf.nest.map_structure(lambda x: x[:, :window], candidates)
            return self._take_one_by_one(shown)

        windows = [w for w in _WINDOWS if w < num_candidates] + [num_candidates]
        taken = take(windows[0])
        # In a row: of nested conditions tf2onnx loses the shapes.
        for window, wider in itertools.pairwise(windows):
            best_outside = tf.reduce_max(candidates.scores[:, window:], axis=-1)
            taken = tf.cond(
                tf.reduce_all(taken.scores[:, -1] >= best_outside),
                lambda taken=taken: taken,
                lambda wider=wider: take(wider),
            )
        return taken

    def _take_one_by_one(self, candidates):
        """Returns the candidates taken, [B, D], best first; scores 0 past them.

        Each step takes the best candidate left in every image, then lowers the scores
        of those that overlap it.
        """
        rows, size = tf.shape(candidates.scores)[0], candidates.scores.shape[1]
        has_table = size <= max(_WINDOWS)
        table = self._remains(candidates, candidates) if has_table else None

        def is_any_left(_, scores, *__):
            return tf.reduce_any(scores > self.score_threshold)

        def take_best(step, scores, taken, taken_scores):
            best = tf.argmax(scores, axis=-1, output_type=tf.int32)[:, tf.newaxis]
            is_now = tf.range(self.max_detections) == step
            taken = tf.where(is_now, best, taken)
            best_score = tf.gather(scores, best, batch_dims=1)
            taken_scores = tf.where(is_now, best_score, taken_scores)
            if has_table:
                remains = tf.gather(table, best, batch_dims=1)
            else:
                remains = self._remains(_gathered(candidates, best), candidates)
            # A box without area does not overlap itself, so the one taken goes by name.
            remains = tf.where(tf.range(size) == best, 0.0, remains[:, 0])
            return step + 1, scores * remains, taken, taken_scores

        _, _, taken, taken_scores = tf.while_loop(
            is_any_left,
            take_best,
            (
                0,
                candidates.scores,
                tf.zeros([rows, self.max_detections], tf.int32),
                tf.zeros([rows, self.max_detections]),
            ),
            maximum_iterations=self.max_detections,
        )
        # The images of a batch run out at different steps.
        taken_scores = tf.where(taken_scores > self.score_threshold, taken_scores, 0.0)
        return _gathered(candidates, taken)._replace(scores=taken_scores)

    def _overlaps(self, a, b):
        """Returns float32 [B, N, M]: IoUs, 0 for pairs that leave each other alone."""
        iou = box_ops.iou(a.boxes_yxyx, b.boxes_yxyx)
        if not self.is_per_class:
            return iou
        is_same = a.classes[:, :, tf.newaxis] == b.classes[:, tf.newaxis, :]
        return tf.where(is_same, iou, 0.0)

    def _remains(self, a, b):
        """Returns float32 [B, N, M]: what each taken a leaves of the scores of b."""
        return self.soft_fn(self._overlaps(a, b), self.iou_threshold)


def _gathered(candidates, places):
    """Returns the Candidates at int32 [B, N] places."""
    return tf.nest.map_structure(
        lambda x: tf.gather(x, places, batch_dims=1), candidates
    )


def _suppress_within_tile(is_overlap, is_free):
    """Returns bool [B, T]: the free boxes that greedy suppression keeps.

    A box is kept if no kept box before it overlaps it. Starting from all, and asking
    again until nothing changes, settles at least one box more of a chain each time.

    Args:
      is_overlap: bool [B, T, T].
      is_free: bool [B, T].
    """
    size = is_overlap.shape[1]
    is_before = tf.range(size)[:, tf.newaxis] < tf.range(size)
    # [B, T, T], (kept one, suppressed one); as numbers, for a product sums faster.
    suppresses = tf.cast(tf.logical_and(is_overlap, is_before), tf.float32)

    free = tf.cast(is_free, tf.float32)

    def ask_again(_, kept):
        num_suppressors = tf.linalg.matvec(suppresses, kept, transpose_a=True)
        now = tf.where(num_suppressors > 0.5, 0.0, free)
        return tf.reduce_any(now != kept), now

    # The flag is a state, for tf2onnx loses states that are only passed on.
    _, settled = tf.while_loop(
        lambda is_moving, _: is_moving,
        ask_again,
        (tf.constant(True), free),
        maximum_iterations=size,
    )
    return settled > 0.5


def _append_selected(taken, num_taken, new, is_kept):
    """Returns what is taken with the kept ones behind it, and its number [B]."""
    num_kept = tf.reduce_sum(tf.cast(is_kept, tf.int32), axis=-1)
    slots = tf.range(taken.scores.shape[1]) - num_taken[:, tf.newaxis]
    is_new = tf.logical_and(slots >= 0, slots < num_kept[:, tf.newaxis])
    # Not top_k, which keeps the order of equals here but not in every runtime.
    place = tf.where(is_kept, tf.cumsum(tf.cast(is_kept, tf.int32), axis=-1), 0) - 1
    is_source = place[:, tf.newaxis, :] == slots[:, :, tf.newaxis]  # [B, D, T]
    source = tf.argmax(tf.cast(is_source, tf.int32), axis=-1, output_type=tf.int32)

    def choose(old, offered):
        offered = tf.gather(offered, source, batch_dims=1)
        mask = tf.expand_dims(is_new, -1) if len(old.shape) == 3 else is_new
        return tf.where(mask, offered, old)

    num_taken = tf.minimum(num_taken + num_kept, taken.scores.shape[1])
    return tf.nest.map_structure(choose, taken, new), num_taken
