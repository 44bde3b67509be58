"""Computes the losses of boxes: of the offsets, of the IoU, and of distributions.

A loss of the IoU decodes the predicted box and its object in the frame of the anchor:
its center is the origin. An IoU does not depend on the position, so no anchor position
is read.
"""

import math
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.boxes.box_coder import (
    AnchorOffsets,
    BoxCoder,
    Four,
    SideDistributions,
)
from retinanet_tpu.learning import channels

# A box of no height would have no aspect ratio, and its gradient would be NaN. In
# heights and widths of the anchor.
_MIN_SIDE = math.exp(-10.0)


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
      target: The objects; where an anchor has none, the box of values of 0.
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
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
    *,
    delta: float = 0.1,
) -> tf.Tensor:
    """Returns the Huber loss of the positive anchors, the mean over 4 coordinates.

    The Huber loss of an error e is e^2 / 2 for |e| <= delta, else
    delta (|e| - delta / 2).

    Args:
      outputs: float [B, H, W, A * 4], the predicted offsets.
      target_values: float32 [B, H, W, A * 4].
      classes: int32 [B, A, H, W]; positive anchors have a class of at least 0.
      anchor_sizes: Not used.
      box_coder: `AnchorOffsets`, the representation that the loss is for.
      delta: The error at which the loss becomes linear.
    Returns:
      float32 [], the sum over anchors.
    Raises:
      UserError: The boxes have another representation.
    Source: Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    del anchor_sizes
    error = _absolute_errors("huber_loss", outputs, target_values, box_coder)
    quadratic = tf.minimum(error, delta)
    return _mean_of_coordinates(quadratic * (error - 0.5 * quadratic), classes)


def l1_loss(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> tf.Tensor:
    """Returns the absolute error of the positive anchors, the mean over 4 coordinates.

    Args: See `huber_loss`.
    Returns:
      float32 [], the sum over anchors.
    Raises:
      UserError: The boxes have another representation.
    Source: the box loss of MLPerf Training's RetinaNet and of torchvision's, which sum
      over the coordinates: there is 4 times this.
    """
    del anchor_sizes
    error = _absolute_errors("l1_loss", outputs, target_values, box_coder)
    return _mean_of_coordinates(error, classes)


def iou_loss(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> tf.Tensor:
    """Returns the sum of 1 - IoU of the positive anchors, float32 [].

    The gradient is 0 where the boxes do not overlap.

    Args:
      outputs: float [B, H, W, A * C], the C channels of the box coder.
      target_values: float32 [B, H, W, A * 4], the values of the box coder.
      classes: int32 [B, A, H, W]; positive anchors have a class of at least 0.
      anchor_sizes: float [A, 2], (height, width) of the anchors of a cell.
      box_coder: The representation of the boxes.
    Source: UnitBox, arXiv:1608.01471; the linear form as in arXiv:1902.09630.
    """
    pair = _decode(outputs, target_values, anchor_sizes, box_coder)
    return _sum_positives(1.0 - pair.iou, classes)


def giou_loss(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> tf.Tensor:
    """Returns the sum of 1 - GIoU of the positive anchors, float32 [].

    GIoU is the IoU minus the part of the enclosing box that no box covers.

    Args: See `iou_loss`.
    Source: Generalized IoU, arXiv:1902.09630, algorithm 2.
    """
    pair = _decode(outputs, target_values, anchor_sizes, box_coder)
    height, width = pair.enclosing
    area = height * width
    return _sum_positives(1.0 - pair.iou + (area - pair.union) / area, classes)


def diou_loss(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> tf.Tensor:
    """Returns the sum of 1 - DIoU of the positive anchors, float32 [].

    DIoU is the IoU minus the squared distance of the centers in units of the diagonal
    of the enclosing box.

    Args: See `iou_loss`.
    Source: Distance-IoU, arXiv:1911.08287, equation 7.
    """
    pair = _decode(outputs, target_values, anchor_sizes, box_coder)
    return _sum_positives(1.0 - pair.iou + _distance(pair), classes)


def ciou_loss(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> tf.Tensor:
    """Returns the sum of 1 - CIoU of the positive anchors, float32 [].

    CIoU is the DIoU minus a term for the difference of the aspect ratios.

    Args: See `iou_loss`.
    Source: Distance-IoU, arXiv:1911.08287, equations 8 to 11. The weight of the term
      has no gradient, as in the authors' code.
    """
    pair = _decode(outputs, target_values, anchor_sizes, box_coder)
    angle = tf.atan2(pair.predicted.width, pair.predicted.height)
    target_angle = tf.atan2(pair.target.width, pair.target.height)
    difference = 4.0 / math.pi**2 * (angle - target_angle) ** 2
    weight = difference / (1.0 - pair.iou + difference + 1e-7)
    penalty = tf.stop_gradient(weight) * difference
    return _sum_positives(1.0 - pair.iou + _distance(pair) + penalty, classes)


def distribution_focal_loss(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    box_coder: SideDistributions,
) -> tf.Tensor:
    """Returns the cross-entropy of the positive anchors, the mean over 4 sides.

    A target lies between two bins. The nearer it is to a bin, the greater is the target
    probability of this bin; the two are 1 together. All other bins have a target of 0.

    Args:
      outputs: float [B, H, W, A * C], the logits of the bins.
      target_values: float32 [B, H, W, A * 4], distances, limited to the range of the
        bins.
      classes: int32 [B, A, H, W]; positive anchors have a class of at least 0.
      box_coder: The bins.
    Returns:
      float32 [], the sum over anchors.
    Source: Generalized Focal Loss, arXiv:2006.04388, equation 6. The authors' code also
      weights anchors by their scores.
    """
    outputs = tf.cast(outputs, tf.float32)
    planes = channels.planes(outputs, box_coder.num_channels)
    bins = np.arange(box_coder.num_bins + 1, dtype=np.float32).reshape([-1, 1, 1])
    losses = []
    for logits, distance in zip(
        tf.split(planes, 4, axis=2), channels.split(target_values, 4), strict=True
    ):
        position = distance[:, :, None] / box_coder.bin_width
        position = tf.clip_by_value(position, 0.0, float(box_coder.num_bins))
        probability = tf.maximum(1.0 - tf.abs(position - bins), 0.0)
        expected_logit = tf.reduce_sum(probability * logits, axis=2)
        losses.append(tf.reduce_logsumexp(logits, axis=2) - expected_logit)
    return _sum_positives(tf.add_n(losses), classes) / 4.0


def predicted_ious(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    classes: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> tf.Tensor:
    """Returns the IoU of each predicted box with its object, without a gradient.

    Args: See `iou_loss`.
    Returns:
      float32 [B, A, H, W], 0 for anchors without an object.
    """
    outputs = tf.stop_gradient(outputs)
    pair = _decode(outputs, target_values, anchor_sizes, box_coder)
    return tf.where(classes >= 0, pair.iou, 0.0)


def _decode(
    outputs: tf.Tensor,
    target_values: tf.Tensor,
    anchor_sizes: np.ndarray,
    box_coder: BoxCoder,
) -> _Pair:
    height, width = np.reshape(anchor_sizes.T, [2, 1, -1, 1, 1]).astype(np.float32)
    outputs = tf.cast(outputs, tf.float32)
    planes = channels.planes(outputs, box_coder.num_channels)
    anchors = 0.0, 0.0, height, width
    predicted = _boxes(box_coder, box_coder.activate(planes, axis=2), anchors)
    target = _boxes(box_coder, channels.split(target_values, 4), anchors)
    sides = list(zip(predicted.yxyx, target.yxyx, strict=True))
    lower = [tf.minimum(a, b) for a, b in sides]
    upper = [tf.maximum(a, b) for a, b in sides]
    shared_height = tf.maximum(lower[2] - upper[0], 0.0)
    shared_width = tf.maximum(lower[3] - upper[1], 0.0)
    shared = shared_height * shared_width
    union = predicted.area + target.area - shared
    enclosing = upper[2] - lower[0], upper[3] - lower[1]
    return _Pair(predicted, target, shared / union, union, enclosing)


def _boxes(box_coder: BoxCoder, values: Four, anchors_cyxhw: Four) -> _Boxes:
    """Returns the boxes that values describe; no side is shorter than _MIN_SIDE."""
    y, x, height, width = box_coder.decode(values, anchors_cyxhw)
    _, _, anchor_height, anchor_width = anchors_cyxhw
    return _Boxes(
        y,
        x,
        tf.maximum(height, _MIN_SIDE * anchor_height),
        tf.maximum(width, _MIN_SIDE * anchor_width),
    )


def _distance(pair: _Pair) -> tf.Tensor:
    """Returns the squared distance of the centers / the enclosing box's diagonal."""
    height, width = pair.enclosing
    dy, dx = pair.predicted.y - pair.target.y, pair.predicted.x - pair.target.x
    return (dy**2 + dx**2) / (height**2 + width**2)


def _mean_of_coordinates(losses: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Returns the sum over positive anchors of the mean of 4 losses, float32 [].

    Args:
      losses: float32 [B, H, W, A * 4].
      classes: int32 [B, A, H, W].
    """
    # Not target_values != 0: an offset of exactly 0 is a target, too.
    is_positive = channels.repeat(classes, 4) >= 0
    return tf.reduce_sum(tf.where(is_positive, losses, 0.0)) / 4.0


def _absolute_errors(
    name: str, outputs: tf.Tensor, target_values: tf.Tensor, box_coder: BoxCoder
) -> tf.Tensor:
    """Returns the absolute errors of the offsets, float32 [B, H, W, A * 4].

    Args:
      name: The name of the loss, for the error.
      outputs: float [B, H, W, A * 4].
      target_values: float32 [B, H, W, A * 4].
      box_coder: The representation of the boxes.
    Raises:
      UserError: Boxes are not represented by offsets.
    """
    if not isinstance(box_coder, AnchorOffsets):
        raise errors.UserError(
            f"detection_losses.box_loss_fn is @{name}, which compares offsets, but "
            f"Anchors.box_coder is {box_coder}; set a loss of the IoU such as "
            "@giou_loss with detection_losses.box_weight = 2.0, or Anchors.box_coder = "
            "@AnchorOffsets()."
        )
    return tf.abs(tf.cast(outputs, tf.float32) - target_values)


def _sum_positives(losses: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(classes >= 0, losses, 0.0))
