"""Computes the losses: focal loss of classes, Huber loss of boxes, L2 of kernels.

The losses are elementwise in the layout of the convolutions, with anchors and classes
together in the channel axis. Splitting that axis would move every logit on a TPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas, structures
from retinanet_tpu.learning.targets import Targets


class Losses(NamedTuple):
    """The parts of the detection loss.

    Attributes:
      class_loss: float32 [], focal loss / normalizer.
      box_loss: float32 [], Huber loss / normalizer.
      weighted_loss: float32 [], the weighted sum, which is trained on together with the
        L2 of the kernels.
    """

    class_loss: tf.Tensor
    box_loss: tf.Tensor
    weighted_loss: tf.Tensor


def focal_loss(
    logits: tf.Tensor,
    classes: tf.Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Returns -alpha_t (1 - p_t)^gamma log(p_t) for each anchor and class.

    Args:
      logits: float [B, H, W, A * K], anchor outer, class inner.
      classes: int32 [B, A, H, W], the class index, BACKGROUND (none of the K classes),
        or IGNORE (no loss).
      alpha: The weight of the target class, in [0, 1]. Other classes have the weight
        1 - alpha.
      gamma: The exponent that reduces the loss of easy examples. 0 is weighted
        cross-entropy.
      label_smoothing: The smoothing s: the targets of the cross-entropy are s/2 and
        1 - s/2 instead of 0 and 1. alpha_t and (1 - p_t)^gamma do not depend on it.
    Returns:
      float32 [B, H, W, A * K].
    Source: RetinaNet, arXiv:1708.02002, equation 5.
    """
    num_anchors = classes.shape[1]
    num_classes = logits.shape[-1] // num_anchors
    ids = _repeat_per_channel(classes, num_classes)
    is_target_class = ids == np.tile(np.arange(num_classes), num_anchors)
    logits = tf.cast(logits, tf.float32)
    # 1 - p_t = sigmoid(margin), so log(1 - p_t) = margin - softplus(margin). A power of
    # 1 - p_t would have an infinite gradient at 0; this form has none.
    margin = tf.where(is_target_class, -logits, logits)
    cross_entropy = tf.nn.softplus(margin)
    modulating_factor = tf.exp(gamma * (margin - cross_entropy))
    if label_smoothing:
        cross_entropy -= 0.5 * label_smoothing * margin
    alpha_t = tf.where(is_target_class, alpha, 1.0 - alpha)
    loss = alpha_t * modulating_factor * cross_entropy
    return tf.where(ids == structures.IGNORE, 0.0, loss)


def huber_loss(
    deltas: tf.Tensor, target_deltas: tf.Tensor, *, delta: float = 0.1
) -> tf.Tensor:
    """Returns e^2 / 2 for |e| <= delta, else delta (|e| - delta / 2), float32 [...].

    Args:
      deltas: float [...], the predicted deltas.
      target_deltas: float32 [...].
      delta: The error at which the loss becomes linear.
    Source: Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    error = tf.abs(tf.cast(deltas, tf.float32) - target_deltas)
    quadratic = tf.minimum(error, delta)
    return quadratic * (error - 0.5 * quadratic)


def loss_normalizer(num_positives: tf.Tensor) -> tf.Tensor:
    """Returns the divisor of the losses, float32 [], equal on all replicas.

    It is the mean over replicas, so that the update depends on the whole batch but not
    on its distribution over replicas. The sum over replicas counts as at least 1,
    because a batch without objects must not divide by 0.

    Args:
      num_positives: float32 [], the number of matched anchors on this replica.
    """
    mean = replicas.cross_replica_mean(num_positives)
    return tf.maximum(mean, 1.0 / replicas.num_replicas())


def detection_losses(
    predictions: structures.Predictions,
    targets: Targets,
    *,
    normalizer: tf.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    huber_delta: float = 0.1,
    class_weight: float = 1.0,
    box_weight: float = 50.0,
) -> Losses:
    """Returns the losses, summed over all levels and images of this replica.

    The box loss is the mean over the four coordinates of an anchor. Only matched
    anchors have one.

    Args:
      predictions: The predictions of the network.
      targets: The targets of the same images.
      normalizer: float32 [], the divisor, see `loss_normalizer`.
      alpha: The weight of the target class in the focal loss.
      gamma: The exponent of the focal loss.
      label_smoothing: The label smoothing of the focal loss.
      huber_delta: The error at which the box loss becomes linear.
      class_weight: The weight of the class loss in the weighted loss.
      box_weight: The weight of the box loss in the weighted loss. It is large because
        deltas are small.
    """
    class_loss = box_loss = 0.0
    for logits, deltas, classes, target_deltas in zip(
        *predictions, targets.classes, targets.deltas, strict=True
    ):
        class_loss += tf.reduce_sum(
            focal_loss(
                logits,
                classes,
                alpha=alpha,
                gamma=gamma,
                label_smoothing=label_smoothing,
            )
        )
        # Not target_deltas != 0: a delta of exactly 0 is a target, too.
        is_positive = _repeat_per_channel(classes, 4) >= 0
        box_losses = huber_loss(deltas, target_deltas, delta=huber_delta)
        box_loss += tf.reduce_sum(tf.where(is_positive, box_losses, 0.0)) / 4.0
    class_loss /= normalizer
    box_loss /= normalizer
    return Losses(
        class_loss, box_loss, class_weight * class_loss + box_weight * box_loss
    )


def l2_loss(kernels: Sequence[tf.Tensor], coefficient: float) -> tf.Tensor:
    """Returns coefficient * sum(w^2) / 2 over all kernels, float32 [].

    Args:
      kernels: The kernels, of any float dtype and shape.
      coefficient: The factor.
    """
    halves = [tf.nn.l2_loss(tf.cast(kernel, tf.float32)) for kernel in kernels]
    return coefficient * tf.add_n(halves) if halves else tf.zeros([])


def _repeat_per_channel(maps: tf.Tensor, num_channels: int) -> tf.Tensor:
    """Returns [B, H, W, A * num_channels]: each of A maps `num_channels` times.

    Args:
      maps: [B, A, H, W].
      num_channels: The number of channels of an anchor.
    """
    num_anchors = maps.shape[1]
    anchor_of_channel = np.repeat(np.arange(num_anchors), num_channels)
    # Selects of broadcasts fuse into the loss: a TPU never writes the repeated map.
    repeated = maps[:, 0, :, :, None]
    for anchor in range(1, num_anchors):
        is_later = anchor_of_channel >= anchor
        repeated = tf.where(is_later, maps[:, anchor, :, :, None], repeated)
    return repeated
