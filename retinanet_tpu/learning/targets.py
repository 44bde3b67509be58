"""What each anchor is to say, made on the device from the padded boxes."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import anchors as anchors_lib, box_coder, box_ops, matcher


class Targets(NamedTuple):
    """The right answers, a tensor a pyramid level, in the predictions' layout."""

    classes: (
        tuple  # per level int32 [B, H_l, W_l, A], class index, BACKGROUND or IGNORE
    )
    deltas: tuple  # per level float32 [B, H_l, W_l, A * 4], 0 where not positive
    num_positives: tf.Tensor  # float32 [], matched anchors of the batch


def assign_targets(
    labels: structures.Labels,
    anchors: anchors_lib.Anchors,
    image_size: tuple[int, int],
    *,
    positive_at: float = 0.5,
    negative_below: float = 0.4,
    is_real: tf.Tensor | None = None,
) -> Targets:
    """Matches every anchor of every image and says what it should predict.

    Args:
      labels: the padded boxes of B images, px of the network's input.
      anchors: the anchors that the network predicts from.
      image_size: height and width of the network's input, px.
      positive_at: lowest IoU of a positive anchor.
      negative_below: IoU under which an anchor is background.
      is_real: bool [B], or None for all. An image that only fills up the batch carries
        no loss.
    Returns:
      The targets of all levels.
    Raises:
      ValueError: thresholds out of order, or a size that the anchors do not fit.
    """
    anchors_cyxhw = np.concatenate(anchors.boxes_cyxhw(image_size))
    matches = matcher.match(
        labels,
        box_ops.cyxhw_to_yxyx(anchors_cyxhw),
        positive_at=positive_at,
        negative_below=negative_below,
    )
    if is_real is not None:
        matches = tf.where(is_real[:, None], matches, structures.IGNORE)
    is_positive = matches >= 0
    matched_classes = matcher.take(labels.classes[..., None], matches)[..., 0]
    matched_yxyx = matcher.take(labels.boxes_yxyx, matches)
    deltas = box_coder.encode(matched_yxyx, anchors_cyxhw)

    grids = anchors.grid_sizes(image_size)
    per_cell = anchors.num_per_cell
    lengths = [rows * columns * per_cell for rows, columns in grids]
    classes = tf.split(tf.where(is_positive, matched_classes, matches), lengths, axis=1)
    deltas = tf.split(tf.where(is_positive[..., None], deltas, 0.0), lengths, axis=1)
    return Targets(
        tuple(
            tf.reshape(level, [-1, *grid, per_cell])
            for level, grid in zip(classes, grids, strict=True)
        ),
        tuple(
            tf.reshape(level, [-1, *grid, per_cell * 4])
            for level, grid in zip(deltas, grids, strict=True)
        ),
        tf.reduce_sum(tf.cast(is_positive, tf.float32)),
    )
