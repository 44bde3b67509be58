"""Assigns training targets to the anchors, on the device."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops, matcher
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.learning import channels

# Returns int32 [B, A] from the labels, the anchors, and the predictions if there are.
MatchFn = Callable[
    [structures.Labels, matcher.AnchorGrid, structures.Predictions | None], tf.Tensor
]


class Targets(NamedTuple):
    """The training targets of a batch.

    A TPU stores the last axis in tiles of 128: with the 9 anchors of a cell last, it
    would read 14 times as many bytes of classes. So classes are one map per anchor of a
    cell. The values of boxes have the layout of the predictions, from which
    `box_losses.huber_loss` subtracts them.

    Attributes:
      classes: int32 [B, A, H_l, W_l] for each level: the class index, BACKGROUND or
        IGNORE.
      box_values: float32 [B, H_l, W_l, A * 4] for each level: the values of the box
        coder; 0 where not positive.
      num_positives: float32 [], the number of matched anchors in the batch.
      matches: int32 [B, sum of A * H_l * W_l]: the index of the matched box, BACKGROUND
        or IGNORE; in the order level, anchor of a cell, row, column. For inspection;
        the losses do not read it.
    """

    classes: tuple[tf.Tensor, ...]
    box_values: tuple[tf.Tensor, ...]
    num_positives: tf.Tensor
    matches: tf.Tensor


def assign_targets(
    labels: structures.Labels,
    anchors: Anchors,
    image_size: tuple[int, int],
    *,
    match_fn: MatchFn = matcher.match_by_iou,
    predictions: structures.Predictions | None = None,
    is_valid: tf.Tensor | None = None,
) -> Targets:
    """Matches the anchors with boxes and returns what each should predict.

    Args:
      labels: The padded boxes of B images, px of the network's input.
      anchors: The anchors that the network predicts from.
      image_size: The height and width of the network's input, px.
      match_fn: Returns the index of each anchor's box, or BACKGROUND, or IGNORE, as
        `matcher.match_by_iou`.
      predictions: The predictions for these images, for a `match_fn` that reads them.
        They get no gradient from the targets. None if there is no network yet.
      is_valid: bool [B], False for padding images, which carry no loss. None means that
        all images are valid.
    Returns:
      The targets of all levels.
    Raises:
      UserError: The thresholds are out of order, or a side of image_size is not a
        multiple of the coarsest level's stride.
    """
    grid = matcher.make_grid(anchors, image_size)
    if predictions is not None:
        predictions = tf.nest.map_structure(tf.stop_gradient, predictions)
    matches = match_fn(labels, grid, predictions)
    if is_valid is not None:
        matches = tf.where(is_valid[:, None], matches, structures.IGNORE)
    is_positive = matches >= 0
    matched_classes = matcher.gather_by_one_hot(labels.classes[..., None], matches)[
        ..., 0
    ]
    matched_yxyx = matcher.gather_by_one_hot(labels.boxes_yxyx, matches)
    values = grid.box_coder.encode(
        tf.unstack(box_ops.yxyx_to_cyxhw(matched_yxyx), axis=-1),
        tf.unstack(grid.boxes_cyxhw, axis=-1),
    )

    def per_anchor_maps(values: tf.Tensor) -> list[tf.Tensor]:
        """Returns [B, A, H_l, W_l] for each level, from [B, all anchors]."""
        levels = tf.split(values, grid.lengths, 1)
        return [
            tf.reshape(level, [-1, grid.num_per_cell, *size])
            for level, size in zip(levels, grid.sizes, strict=True)
        ]

    value_maps = [per_anchor_maps(tf.where(is_positive, x, 0.0)) for x in values]
    return Targets(
        tuple(per_anchor_maps(tf.where(is_positive, matched_classes, matches))),
        tuple(
            channels.interleave(list(level)) for level in zip(*value_maps, strict=True)
        ),
        tf.reduce_sum(tf.cast(is_positive, tf.float32)),
        matches,
    )
