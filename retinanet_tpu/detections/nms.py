"""Non-maximum suppression: of boxes that say the same, the best remains.

One greedy loop serves all kinds. Each step takes the best candidate left in every image
of the batch, then lowers the scores of those that overlap it; how much is a function of
the IoU. Its shapes are static and it has no host-only operation, so it runs inside a
compiled step on any device.

  per class, hard: nms(candidates)
  per class, soft: nms(candidates, rescore_fn=gaussian), or linear
  global: is_per_class=False
"""

from collections.abc import Callable

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.detections import decode


def hard(iou: tf.Tensor, iou_threshold: float) -> tf.Tensor:
    """Returns what remains of a score, [...]: nothing if the IoU is above."""
    return tf.where(iou > iou_threshold, 0.0, 1.0)


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


def nms(
    candidates: decode.Candidates,
    *,
    iou_threshold: float = 0.5,
    rescore_fn: Callable[[tf.Tensor, float], tf.Tensor] = hard,
    is_per_class: bool = True,
    score_threshold: float = 0.05,
    max_detections: int = 100,
) -> structures.Detections:
    """Keeps the best of the candidates that overlap.

    Of equal scores the first candidate wins.

    Args:
      candidates: C boxes an image, in any order.
      iou_threshold: what `rescore_fn` is given.
      rescore_fn: (IoU with a box taken before, iou_threshold) -> the part, in [0, 1],
        that remains of a score: hard, linear or gaussian.
      is_per_class: boxes of different classes leave each other alone.
      score_threshold: scores at or below it never come out, lowered ones included.
      max_detections: D.
    Returns:
      Detections with boxes in the candidates' frame; past num_detections all is 0.
    Raises:
      ValueError: score_threshold is below 0.
    """
    if score_threshold < 0:
        raise ValueError(f"score_threshold must be 0 or more, got {score_threshold}.")
    boxes_yxyx, scores, classes = candidates
    num_images, num_candidates = scores.shape[0], scores.shape[1]
    if num_images is None:
        num_images = tf.shape(scores)[0]

    def is_any_left(step, scores, taken, taken_scores):
        del step, taken, taken_scores
        return tf.reduce_any(scores > score_threshold)

    def take_best(step, scores, taken, taken_scores):
        best = tf.argmax(scores, axis=-1, output_type=tf.int32)
        best_score = tf.reduce_max(scores, axis=-1)
        is_now = tf.range(max_detections) == step
        taken = tf.where(is_now, best[:, None], taken)
        taken_scores = tf.where(is_now, best_score[:, None], taken_scores)

        best_box = tf.gather(boxes_yxyx, best[:, None], batch_dims=1)
        remains = rescore_fn(box_ops.iou(best_box, boxes_yxyx)[:, 0], iou_threshold)
        if is_per_class:
            best_class = tf.gather(classes, best[:, None], batch_dims=1)
            remains = tf.where(classes == best_class, remains, 1.0)
        # A box without area does not overlap itself, so the one taken goes by name.
        remains = tf.where(tf.range(num_candidates) == best[:, None], 0.0, remains)
        return step + 1, scores * remains, taken, taken_scores

    _, _, taken, taken_scores = tf.while_loop(
        is_any_left,
        take_best,
        (
            0,
            scores,
            tf.zeros([num_images, max_detections], tf.int32),
            tf.zeros([num_images, max_detections]),
        ),
        maximum_iterations=max_detections,
    )
    # The images of a batch run out at different steps.
    is_found = taken_scores > score_threshold
    taken_boxes = tf.gather(boxes_yxyx, taken, batch_dims=1)
    return structures.Detections(
        tf.where(is_found[..., None], taken_boxes, 0.0),
        tf.where(is_found, taken_scores, 0.0),
        tf.where(is_found, tf.gather(classes, taken, batch_dims=1), 0),
        tf.reduce_sum(tf.cast(is_found, tf.int32), axis=-1),
    )
