"""What each anchor is to say, made on the device from the padded boxes."""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import anchors as anchors_lib, box_coder, box_ops, matcher


class Targets(NamedTuple):
    """The right answers, a tensor a pyramid level.

    A TPU keeps the last axes in tiles of 128: with 9 anchors last, what is read of
    classes is 14 times as much. So they come in planes; the deltas, which meet the
    predictions number by number, in the predictions' layout.
    """

    classes: tuple  # int32 [B, A, H_l, W_l], class index, BACKGROUND or IGNORE
    deltas: tuple  # float32 [B, H_l, W_l, A * 4], 0 where not positive
    num_positives: tf.Tensor  # float32 [], matched anchors of the batch


def assign_targets(
    labels: structures.Labels,
    anchors: anchors_lib.Anchors,
    image_size: tuple[int, int],
    *,
    positive_iou_threshold: float = 0.5,
    negative_iou_threshold: float = 0.4,
    is_valid: tf.Tensor | None = None,
) -> Targets:
    """Matches every anchor of every image and says what it should predict.

    Args:
      labels: the padded boxes of B images, px of the network's input.
      anchors: the anchors that the network predicts from.
      image_size: height and width of the network's input, px.
      positive_iou_threshold: lowest IoU of a positive anchor.
      negative_iou_threshold: IoU under which an anchor is background.
      is_valid: bool [B], or None for all. An image that only fills up the batch carries
        no loss.
    Returns:
      The targets of all levels.
    Raises:
      ValueError: thresholds out of order, or a size that the anchors do not fit.
    """
    grids, per_cell = anchors.grid_sizes(image_size), anchors.num_per_cell
    anchors_cyxhw = np.concatenate(
        [
            boxes.reshape(-1, per_cell, 4).swapaxes(0, 1).reshape(-1, 4)
            for boxes in anchors.boxes_cyxhw(image_size)
        ]
    )
    matches = matcher.match(
        labels,
        box_ops.cyxhw_to_yxyx(anchors_cyxhw),
        positive_iou_threshold=positive_iou_threshold,
        negative_iou_threshold=negative_iou_threshold,
    )
    if is_valid is not None:
        matches = tf.where(is_valid[:, None], matches, structures.IGNORE)
    is_positive = matches >= 0
    matched_classes = matcher.gather_by_one_hot(labels.classes[..., None], matches)[
        ..., 0
    ]
    matched_yxyx = matcher.gather_by_one_hot(labels.boxes_yxyx, matches)
    deltas = tf.unstack(box_coder.encode(matched_yxyx, anchors_cyxhw), axis=-1)

    def planes(values):
        """Returns [B, A, H_l, W_l] of each level from [B, anchors]."""
        lengths = [rows * columns * per_cell for rows, columns in grids]
        return [
            tf.reshape(level, [-1, per_cell, *grid])
            for level, grid in zip(tf.split(values, lengths, 1), grids, strict=True)
        ]

    offsets = [planes(tf.where(is_positive, delta, 0.0)) for delta in deltas]
    return Targets(
        tuple(planes(tf.where(is_positive, matched_classes, matches))),
        tuple(_in_channels(level) for level in zip(*offsets, strict=True)),
        tf.reduce_sum(tf.cast(is_positive, tf.float32)),
    )


def _in_channels(planes):
    """Returns [B, H, W, A * n] from n tensors [B, A, H, W]."""
    stacked = tf.stack(planes, axis=2)
    _, per_cell, count, height, width = stacked.shape
    flat = tf.reshape(stacked, [-1, per_cell * count, height, width])
    return tf.transpose(flat, [0, 2, 3, 1])
