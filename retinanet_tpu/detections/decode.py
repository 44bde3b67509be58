"""Decodes predictions to boxes with scores."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes import box_ops
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.boxes.box_coder import BoxCoder


class Candidates(NamedTuple):
    """The most probable pairs of an anchor and a class, highest score first.

    Attributes:
      boxes_yxyx: float32 [B, C, 4], px of the network's input.
      scores: float32 [B, C], in descending order.
      classes: int32 [B, C] in 0..K-1.
    """

    boxes_yxyx: tf.Tensor
    scores: tf.Tensor
    classes: tf.Tensor


def decode(
    predictions: structures.Predictions,
    anchors: Anchors,
    image_size: tuple[int, int],
    *,
    num_classes: int,
    num_candidates: int = 5000,
    num_per_level: int | None = None,
) -> Candidates:
    """Returns the most probable pairs of an anchor and a class, with their boxes.

    Equal scores are ordered by anchor, then by class. Boxes are clipped to the input of
    the network.

    Args:
      predictions: The predictions of all levels, of any float dtype.
      anchors: The anchors that the network predicts from.
      image_size: The height and width of the network's input, px.
      num_classes: The number of classes K.
      num_candidates: The number of candidates C. There are fewer candidates if there
        are fewer pairs.
      num_per_level: The most candidates of one level, as in torchvision. None means
        no limit.
    Returns:
      The candidates of each image.
    Raises:
      UserError: A side is not a multiple of the coarsest level's stride.
    """
    anchors_cyxhw = np.concatenate(anchors.boxes_cyxhw(image_size))
    logits = _flatten(predictions.class_logits, num_classes)
    outputs = _flatten(predictions.box_outputs, anchors.box_coder.num_channels)

    if num_per_level is None:
        best = _best_pairs(logits, num_candidates)
    else:
        levels = [_flatten([x], num_classes) for x in predictions.class_logits]
        best = _best_pairs_of_levels(levels, num_candidates, num_per_level)
    boxes_yxyx = _predicted_boxes(
        tf.gather(outputs, best.anchors, batch_dims=1),
        tf.gather(anchors_cyxhw, best.anchors),
        anchors.box_coder,
    )
    return Candidates(
        box_ops.clip(boxes_yxyx, image_size),
        tf.sigmoid(best.logits),
        best.classes,
    )


def every_box(
    predictions: structures.Predictions,
    anchors: Anchors,
    image_size: tuple[int, int],
    *,
    num_classes: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns boxes and logits of all anchors, for runtimes that select themselves.

    Args:
      predictions: The predictions of all levels, of any float dtype.
      anchors: The anchors that the network predicts from.
      image_size: The height and width of the network's input, px.
      num_classes: The number of classes K.
    Returns:
      The boxes, float32 [B, A, 4], yxyx, px, clipped to the network's input; and the
      class logits, float32 [B, A, K]. A counts the anchors of all levels.
    Raises:
      UserError: A side is not a multiple of the coarsest level's stride.
    """
    anchors_cyxhw = np.concatenate(anchors.boxes_cyxhw(image_size))
    outputs = _flatten(predictions.box_outputs, anchors.box_coder.num_channels)
    boxes_yxyx = _predicted_boxes(outputs, anchors_cyxhw, anchors.box_coder)
    logits = _flatten(predictions.class_logits, num_classes)
    return box_ops.clip(boxes_yxyx, image_size), tf.cast(logits, tf.float32)


def to_original(
    boxes_yxyx: tf.Tensor, scales: tf.Tensor, image_sizes: tf.Tensor
) -> tf.Tensor:
    """Returns boxes in pixels of the original images, clipped to these.

    Args:
      boxes_yxyx: float32 [B, D, 4], px of the network's input.
      scales: float32 [B, 2], (y, x), resized size / original size.
      image_sizes: int32 [B, 2], height and width of the original images, px.
    Returns:
      float32 [B, D, 4], px of the original images.
    """
    # A padding image may have a scale of 0.
    scales = tf.concat([scales, scales], axis=-1)[:, None, :]
    boxes_yxyx = tf.math.divide_no_nan(boxes_yxyx, scales)
    return box_ops.clip(boxes_yxyx, image_sizes[:, None, :])


class _Pairs(NamedTuple):
    """Pairs of an anchor and a class, highest logit first."""

    logits: tf.Tensor  # float32 [B, C]
    anchors: tf.Tensor  # int32 [B, C]
    classes: tf.Tensor  # int32 [B, C]


def _best_pairs(logits: tf.Tensor, num_best: int) -> _Pairs:
    """Returns the best pairs of logits, float [B, A, K]."""
    _, total, num_classes = logits.shape
    # It is enough to sort the pairs of the C anchors with the highest maximal logits.
    # Each of them has a pair that is at least as good as all pairs of other anchors.
    num_anchors = min(num_best, total)
    anchor_indices = tf.math.top_k(tf.reduce_max(logits, axis=-1), num_anchors).indices
    # top_k keeps the order of equal values: after sorting, that of the anchors.
    anchor_indices = tf.sort(anchor_indices, axis=-1)
    anchor_logits = tf.gather(logits, anchor_indices, batch_dims=1)
    pairs = tf.reshape(anchor_logits, [-1, num_anchors * num_classes])
    best_logits, best = tf.math.top_k(
        tf.cast(pairs, tf.float32), min(num_best, pairs.shape[1])
    )
    anchor_indices = tf.gather(anchor_indices, best // num_classes, batch_dims=1)
    return _Pairs(best_logits, anchor_indices, best % num_classes)


def _best_pairs_of_levels(
    levels: Sequence[tf.Tensor], num_best: int, num_per_level: int
) -> _Pairs:
    """Returns what `_best_pairs` does, with at most num_per_level pairs of a level."""
    parts = []
    first_anchor = 0
    for logits in levels:
        part = _best_pairs(logits, num_per_level)
        parts.append(part._replace(anchors=part.anchors + first_anchor))
        first_anchor += logits.shape[1]
    pairs = _Pairs(
        *(tf.concat(columns, axis=-1) for columns in zip(*parts, strict=True))
    )
    best_logits, best = tf.math.top_k(
        pairs.logits, min(num_best, pairs.logits.shape[1])
    )
    return _Pairs(
        best_logits,
        tf.gather(pairs.anchors, best, batch_dims=1),
        tf.gather(pairs.classes, best, batch_dims=1),
    )


def _predicted_boxes(
    outputs: tf.Tensor, anchors_cyxhw: tf.Tensor, box_coder: BoxCoder
) -> tf.Tensor:
    """Returns float32 [..., 4], yxyx, px, from float [..., C] and float32 [..., 4]."""
    values = box_coder.activate(tf.cast(outputs, tf.float32))
    boxes_cyxhw = box_coder.decode(values, tf.unstack(anchors_cyxhw, axis=-1))
    return box_ops.cyxhw_to_yxyx(tf.stack(boxes_cyxhw, axis=-1))


def _flatten(levels: Sequence[tf.Tensor], depth: int) -> tf.Tensor:
    """Returns [B, A, depth]: the anchors of all levels along one axis."""
    rows = []
    for level in levels:
        _, height, width, channels = level.shape
        rows.append(tf.reshape(level, [-1, height * width * channels // depth, depth]))
    return tf.concat(rows, axis=1)
