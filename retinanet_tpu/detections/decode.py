"""From what the network says to boxes with scores."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import anchors as anchors_lib, box_coder, box_ops


class Candidates(NamedTuple):
    """The most probable pairs of anchor and class, best first."""

    boxes_yxyx: tf.Tensor  # float32 [B, C, 4], px of the network's input
    scores: tf.Tensor  # float32 [B, C], falling
    classes: tf.Tensor  # int32 [B, C] in 0..K-1


def decode(
    predictions: structures.Predictions,
    anchors: anchors_lib.Anchors,
    image_size: tuple[int, int],
    *,
    num_classes: int,
    num_candidates: int = 5000,
) -> Candidates:
    """Picks the most probable pairs of anchor and class, and makes their boxes.

    Equal scores rank by anchor, then by class. Boxes end at the border of the input.

    Args:
      predictions: of all levels, any float dtype.
      anchors: those that the network predicts from.
      image_size: height and width of the network's input, px.
      num_classes: K.
      num_candidates: C, or fewer where there are fewer pairs.
    Returns:
      The candidates of each image.
    Raises:
      ValueError: a size that the anchors do not fit.
    """
    anchors_cyxhw = np.concatenate(anchors.boxes_cyxhw(image_size))
    logits = _flatten(predictions.class_logits, num_classes)
    deltas = _flatten(predictions.box_deltas, 4)

    # The C best pairs lie on the C anchors with the best class of their own: an anchor
    # that is not among these has C better pairs before it. So only those are sorted.
    num_picked = min(num_candidates, len(anchors_cyxhw))
    picked = tf.math.top_k(tf.reduce_max(logits, axis=-1), num_picked).indices
    # top_k keeps the order of equals; in the order of anchors that is "by anchor".
    picked = tf.sort(picked, axis=-1)
    picked_logits = tf.gather(logits, picked, batch_dims=1)
    pairs = tf.reshape(picked_logits, [-1, num_picked * num_classes])
    best_logits, best = tf.math.top_k(
        tf.cast(pairs, tf.float32), min(num_candidates, pairs.shape[1])
    )
    picked = tf.gather(picked, best // num_classes, batch_dims=1)
    boxes_yxyx = box_coder.decode(
        tf.cast(tf.gather(deltas, picked, batch_dims=1), tf.float32),
        tf.gather(anchors_cyxhw, picked),
    )
    return Candidates(
        box_ops.clip(boxes_yxyx, image_size),
        tf.sigmoid(best_logits),
        best % num_classes,
    )


def every_box(
    predictions: structures.Predictions,
    anchors: anchors_lib.Anchors,
    image_size: tuple[int, int],
    *,
    num_classes: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Makes the boxes of all anchors, for what picks the probable ones itself.

    Args:
      predictions: of all levels, any float dtype.
      anchors: those that the network predicts from.
      image_size: height and width of the network's input, px.
      num_classes: K.
    Returns:
      float32 [B, A, 4] boxes yxyx, px of the network's input, which they end at, and
      float32 [B, A, K] logits; A over all levels.
    Raises:
      ValueError: a size that the anchors do not fit.
    """
    anchors_cyxhw = np.concatenate(anchors.boxes_cyxhw(image_size))
    deltas = tf.cast(_flatten(predictions.box_deltas, 4), tf.float32)
    boxes_yxyx = box_ops.clip(box_coder.decode(deltas, anchors_cyxhw), image_size)
    logits = _flatten(predictions.class_logits, num_classes)
    return boxes_yxyx, tf.cast(logits, tf.float32)


def to_original(
    boxes_yxyx: tf.Tensor, scales: tf.Tensor, image_sizes: tf.Tensor
) -> tf.Tensor:
    """Moves boxes from the network's input to the original images, and cuts them there.

    Args:
      boxes_yxyx: float32 [B, D, 4], px of the network's input.
      scales: float32 [B, 2], (y, x) resized size / original size.
      image_sizes: int32 [B, 2], height and width of the originals, px.
    Returns:
      float32 [B, D, 4], px of the originals.
    """
    # An image that only fills up the batch may have a scale of 0.
    scales = tf.concat([scales, scales], axis=-1)[:, None, :]
    boxes_yxyx = tf.math.divide_no_nan(boxes_yxyx, scales)
    return box_ops.clip(boxes_yxyx, image_sizes[:, None, :])


def _flatten(levels: tuple, depth: int) -> tf.Tensor:
    """Returns [B, A, depth], the anchors of all levels in one row."""
    rows = []
    for level in levels:
        _, height, width, channels = level.shape
        rows.append(tf.reshape(level, [-1, height * width * channels // depth, depth]))
    return tf.concat(rows, axis=1)
