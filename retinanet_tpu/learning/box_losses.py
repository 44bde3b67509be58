"""Computes the losses of boxes: Huber loss of the offsets, and losses of the IoU.

A loss of the IoU decodes the predicted box and its object in the frame of the anchor:
its center is the origin. An IoU does not depend on the position, so no anchor position
is read.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu.boxes import box_coder
from retinanet_tpu.learning import channels

# A box of no height would have no aspect ratio, and its gradient would be NaN.
_MIN_LOG_SCALE = -10.0


class _Boxes(NamedTuple):
    """Boxes in the frame of their anchors, each float32 [B, A, H, W]."""

    y: tf.Tensor
    x: tf.Tensor
    height: tf.Tensor
    width: tf.Tensor

    @property
    def area(self) -> tf.Tensor:
        return self.height * self.width

    @property
    def yxyx(self) -> tuple[tf.Tensor, ...]:
        h, w = 0.5 * self.height, 0.5 * self.width
        return self.y - h, self.x - w, self.y + h, self.x + w


class _Pair(NamedTuple):
    """Predicted boxes and their objects, with their overlaps.

    Attributes:
      predicted: The predicted boxes.
      target: The objects; the anchors themselves where an anchor has none.
      iou: float32 [B, A, H, W].
      union: float32 [B, A, H, W].
      enclosing: The heights and widths of the smallest boxes around both.
    """

    predicted: _Boxes
    target: _Boxes
    iou: tf.Tensor
    union: tf.Tensor
    enclosing: tuple[tf.Tensor, tf.Tensor]


def huber_loss(
    deltas: tf.Tensor,
    target_deltas: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray | None = None,
    *,
    delta: float = 0.1,
) -> tf.Tensor:
    """Returns the Huber loss of the positive anchors, the mean over 4 coordinates.

    The Huber loss of an error e is e^2 / 2 for |e| <= delta, else
    delta (|e| - delta / 2).

    Args:
      deltas: float [B, H, W, A * 4], the predicted offsets.
      target_deltas: float32 [B, H, W, A * 4].
      classes: int32 [B, A, H, W]; positive anchors have a class of at least 0.
      anchor_sizes: Not used.
      delta: The error at which the loss becomes linear.
    Returns:
      float32 [], the sum over anchors.
    Source: Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    del anchor_sizes
    error = tf.abs(tf.cast(deltas, tf.float32) - target_deltas)
    quadratic = tf.minimum(error, delta)
    loss = quadratic * (error - 0.5 * quadratic)
    # Not target_deltas != 0: a delta of exactly 0 is a target, too.
    is_positive = channels.repeat(classes, 4) >= 0
    return tf.reduce_sum(tf.where(is_positive, loss, 0.0)) / 4.0


def iou_loss(
    deltas: tf.Tensor,
    target_deltas: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
) -> tf.Tensor:
    """Returns the sum of 1 - IoU of the positive anchors, float32 [].

    The gradient is 0 where the boxes do not overlap.

    Args:
      deltas: float [B, H, W, A * 4], the predicted offsets.
      target_deltas: float32 [B, H, W, A * 4].
      classes: int32 [B, A, H, W]; positive anchors have a class of at least 0.
      anchor_sizes: float [A, 2], (height, width) of the anchors of a cell.
    Source: UnitBox, arXiv:1608.01471; the linear form as in arXiv:1902.09630.
    """
    pair = _decode(deltas, target_deltas, anchor_sizes)
    return _sum_positives(1.0 - pair.iou, classes)


def giou_loss(
    deltas: tf.Tensor,
    target_deltas: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
) -> tf.Tensor:
    """Returns the sum of 1 - GIoU of the positive anchors, float32 [].

    GIoU is the IoU minus the part of the enclosing box that no box covers.

    Args: See `iou_loss`.
    Source: Generalized IoU, arXiv:1902.09630, algorithm 2.
    """
    pair = _decode(deltas, target_deltas, anchor_sizes)
    height, width = pair.enclosing
    area = height * width
    return _sum_positives(1.0 - pair.iou + (area - pair.union) / area, classes)


def diou_loss(
    deltas: tf.Tensor,
    target_deltas: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
) -> tf.Tensor:
    """Returns the sum of 1 - DIoU of the positive anchors, float32 [].

    DIoU is the IoU minus the squared distance of the centers in units of the diagonal
    of the enclosing box.

    Args: See `iou_loss`.
    Source: Distance-IoU, arXiv:1911.08287, equation 7.
    """
    pair = _decode(deltas, target_deltas, anchor_sizes)
    return _sum_positives(1.0 - pair.iou + _distance(pair), classes)


def ciou_loss(
    deltas: tf.Tensor,
    target_deltas: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
) -> tf.Tensor:
    """Returns the sum of 1 - CIoU of the positive anchors, float32 [].

    CIoU is the DIoU minus a term for the difference of the aspect ratios.

    Args: See `iou_loss`.
    Source: Distance-IoU, arXiv:1911.08287, equations 8 to 11. The weight of the term
      has no gradient, as in the authors' code.
    """
    pair = _decode(deltas, target_deltas, anchor_sizes)
    angle = tf.atan2(pair.predicted.width, pair.predicted.height)
    target_angle = tf.atan2(pair.target.width, pair.target.height)
    difference = 4.0 / math.pi**2 * (angle - target_angle) ** 2
    weight = difference / (1.0 - pair.iou + difference + 1e-7)
    penalty = tf.stop_gradient(weight) * difference
    return _sum_positives(1.0 - pair.iou + _distance(pair) + penalty, classes)


def predicted_ious(
    deltas: tf.Tensor,
    target_deltas: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
) -> tf.Tensor:
    """Returns the IoU of each predicted box with its object, without a gradient.

    Args: See `iou_loss`.
    Returns:
      float32 [B, A, H, W], 0 for anchors without an object.
    """
    pair = _decode(tf.stop_gradient(deltas), target_deltas, anchor_sizes)
    return tf.where(classes >= 0, pair.iou, 0.0)


def _decode(
    deltas: tf.Tensor, target_deltas: tf.Tensor, anchor_sizes: np.ndarray
) -> _Pair:
    predicted = _boxes(tf.cast(deltas, tf.float32), anchor_sizes)
    target = _boxes(target_deltas, anchor_sizes)
    sides = list(zip(predicted.yxyx, target.yxyx, strict=True))
    lower = [tf.minimum(a, b) for a, b in sides]
    upper = [tf.maximum(a, b) for a, b in sides]
    shared_height = tf.maximum(lower[2] - upper[0], 0.0)
    shared_width = tf.maximum(lower[3] - upper[1], 0.0)
    shared = shared_height * shared_width
    union = predicted.area + target.area - shared
    enclosing = upper[2] - lower[0], upper[3] - lower[1]
    return _Pair(predicted, target, shared / union, union, enclosing)


def _boxes(deltas: tf.Tensor, anchor_sizes: np.ndarray) -> _Boxes:
    """Returns the boxes that offsets describe, with the anchor's center at 0."""
    dy, dx, dh, dw = channels.split(deltas, 4)
    height, width = np.reshape(anchor_sizes.T, [2, 1, -1, 1, 1]).astype(np.float32)
    return _Boxes(dy * height, dx * width, height * _exp(dh), width * _exp(dw))


def _exp(log_scale: tf.Tensor) -> tf.Tensor:
    limits = _MIN_LOG_SCALE, box_coder.MAX_LOG_SCALE
    return tf.exp(tf.clip_by_value(log_scale, *limits))


def _distance(pair: _Pair) -> tf.Tensor:
    """Returns the squared distance of the centers / the enclosing box's diagonal."""
    height, width = pair.enclosing
    dy, dx = pair.predicted.y - pair.target.y, pair.predicted.x - pair.target.x
    return (dy**2 + dx**2) / (height**2 + width**2)


def _sum_positives(losses: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(classes >= 0, losses, 0.0))
