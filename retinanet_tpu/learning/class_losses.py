"""Computes the losses of the class scores, for each anchor and class.

The losses are elementwise in the layout of the convolutions, with anchors and classes
together in the channel axis. Splitting that axis would move every logit on a TPU.
"""

import numpy as np
import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.learning import channels


def focal_loss(
    logits: tf.Tensor,
    classes: tf.Tensor,
    ious: tf.Tensor | None = None,
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
      ious: Not used.
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
    del ious
    ids, is_target_class = _target_classes(logits, classes)
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


def quality_focal_loss(
    logits: tf.Tensor, classes: tf.Tensor, ious: tf.Tensor, *, beta: float = 2.0
) -> tf.Tensor:
    """Returns |y - p|^beta times the cross-entropy of p with the target y.

    y is the IoU of the predicted box for the class of a positive anchor, else 0. So
    the score becomes an estimate of the IoU.

    Args:
      logits: float [B, H, W, A * K], anchor outer, class inner.
      classes: int32 [B, A, H, W], the class index, BACKGROUND or IGNORE (no loss).
      ious: float32 [B, A, H, W], the IoU of each predicted box with its object.
      beta: The exponent that reduces the loss of easy examples, at least 1.
    Returns:
      float32 [B, H, W, A * K].
    Source: Generalized Focal Loss, arXiv:2006.04388, equation 3.
    """
    ids, is_target_class = _target_classes(logits, classes)
    logits = tf.cast(logits, tf.float32)
    target = tf.where(is_target_class, _per_class(ious, logits), 0.0)
    error = tf.abs(target - tf.sigmoid(logits))
    loss = error**beta * _cross_entropy(logits, target)
    return tf.where(ids == structures.IGNORE, 0.0, loss)


def varifocal_loss(
    logits: tf.Tensor,
    classes: tf.Tensor,
    ious: tf.Tensor,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
) -> tf.Tensor:
    """Returns w times the cross-entropy of the score p with the target y.

    For the class of a positive anchor y and w are the IoU q of the predicted box, if it
    is above 0. Otherwise y is 0 and w is alpha p^gamma. So the score becomes an
    estimate of the IoU, and well predicted objects count most.

    Args:
      logits: float [B, H, W, A * K], anchor outer, class inner.
      classes: int32 [B, A, H, W], the class index, BACKGROUND or IGNORE (no loss).
      ious: float32 [B, A, H, W], the IoU of each predicted box with its object.
      alpha: The weight of the other classes and of the background.
      gamma: The exponent that reduces the loss of easy background.
    Returns:
      float32 [B, H, W, A * K].
    Source: VarifocalNet, arXiv:2008.13367, equation 2.
    """
    ids, is_target_class = _target_classes(logits, classes)
    logits = tf.cast(logits, tf.float32)
    quality = _per_class(ious, logits)
    target = tf.where(is_target_class, quality, 0.0)
    # p^gamma as in `focal_loss`, with a finite gradient at 0.
    background = alpha * tf.exp(gamma * (logits - tf.nn.softplus(logits)))
    weight = tf.where(is_target_class & (quality > 0.0), quality, background)
    loss = weight * _cross_entropy(logits, target)
    return tf.where(ids == structures.IGNORE, 0.0, loss)


def _cross_entropy(logits: tf.Tensor, target: tf.Tensor) -> tf.Tensor:
    """Returns -y log(p) - (1 - y) log(1 - p), finite for all logits."""
    return tf.nn.softplus(logits) - target * logits


def _target_classes(
    logits: tf.Tensor, classes: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns classes per channel, and whether the channel is the target's class."""
    num_anchors = classes.shape[1]
    num_classes = logits.shape[-1] // num_anchors
    ids = channels.repeat(classes, num_classes)
    return ids, ids == np.tile(np.arange(num_classes), num_anchors)


def _per_class(maps: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
    return channels.repeat(maps, logits.shape[-1] // maps.shape[1])
