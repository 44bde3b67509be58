"""Focal loss for classes, Huber loss for boxes, L2 for kernels.

All of it is elementwise in the convolution's own layout, anchors and classes together
in the channel axis: splitting that axis would move every logit on a TPU.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas, structures
from retinanet_tpu.learning import targets as targets_lib


class Losses(NamedTuple):
    """The parts of the detection loss, float32 []."""

    class_loss: tf.Tensor  # focal loss / normalizer
    box_loss: tf.Tensor  # Huber loss / normalizer
    weighted_loss: tf.Tensor  # what is trained on, kernels' L2 apart


def focal_loss(
    logits: tf.Tensor,
    classes: tf.Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
) -> tf.Tensor:
    """Returns -alpha_t (1 - p_t)^gamma log(p_t) of each anchor and class.

    Args:
      logits: float [B, H, W, A * K], anchor outer, class inner.
      classes: int32 [B, A, H, W], class index, BACKGROUND (all K classes are wrong), or
        IGNORE (no loss).
      alpha: weight of the right class, in [0, 1]; the wrong ones weigh 1 - alpha.
      gamma: how much less an easy example counts; 0 is weighted cross-entropy.
      label_smoothing: the cross-entropy aims at s/2 and 1 - s/2 instead of 0 and 1;
        alpha_t and (1 - p_t)^gamma know nothing of it.
    Returns:
      float32 [B, H, W, A * K].
    Source: RetinaNet, arXiv:1708.02002, equation 5.
    """
    num_anchors = classes.shape[1]
    num_classes = logits.shape[-1] // num_anchors
    ids = _in_channels(classes, num_classes)
    is_right = ids == np.tile(np.arange(num_classes), num_anchors)
    logits = tf.cast(logits, tf.float32)
    # p_wrong = sigmoid(wrongness), so log(1 - p_t) = wrongness - softplus(wrongness).
    # Powers of probabilities would have infinite gradients at 0; this has none.
    wrongness = tf.where(is_right, -logits, logits)
    cross_entropy = tf.nn.softplus(wrongness)
    modulator = tf.exp(gamma * (wrongness - cross_entropy))
    if label_smoothing:
        cross_entropy -= 0.5 * label_smoothing * wrongness
    loss = tf.where(is_right, alpha, 1.0 - alpha) * modulator * cross_entropy
    return tf.where(ids == structures.IGNORE, 0.0, loss)


def huber_loss(
    deltas: tf.Tensor, target_deltas: tf.Tensor, *, delta: float = 0.1
) -> tf.Tensor:
    """Returns float32 [...]: e^2 / 2 up to |e| = delta, delta (|e| - delta / 2) beyond.

    Args:
      deltas: float [...].
      target_deltas: float32 [...].
      delta: where the parabola becomes a line.
    Source: Huber, "Robust Estimation of a Location Parameter", 1964.
    """
    error = tf.abs(tf.cast(deltas, tf.float32) - target_deltas)
    bent = tf.minimum(error, delta)
    return bent * (error - 0.5 * bent)


def loss_normalizer(num_positives: tf.Tensor) -> tf.Tensor:
    """Returns the number that a replica's losses are divided by, float32 [].

    It is the mean over replicas and the same on each, so that the update depends on the
    whole batch and not on how it was dealt out. All replicas together count as at least
    one positive anchor: a batch without objects must not divide by 0.

    Args:
      num_positives: float32 [], matched anchors on this replica.
    """
    mean = replicas.cross_replica_mean(num_positives)
    return tf.maximum(mean, 1.0 / replicas.num_replicas())


def detection_losses(
    predictions: structures.Predictions,
    targets: targets_lib.Targets,
    *,
    normalizer: tf.Tensor,
    alpha: float = 0.25,
    gamma: float = 2.0,
    label_smoothing: float = 0.0,
    huber_delta: float = 0.1,
    class_weight: float = 1.0,
    box_weight: float = 50.0,
) -> Losses:
    """Sums the losses of all levels and images of this replica.

    The box loss is the mean of an anchor's four coordinates, of matched anchors only.

    Args:
      predictions: what the network said.
      targets: what it should have said.
      normalizer: float32 [], see `normalizer`.
      alpha: of the focal loss.
      gamma: of the focal loss.
      label_smoothing: of the focal loss.
      huber_delta: where the box loss becomes linear.
      class_weight: of the class loss in the weighted loss.
      box_weight: of the box loss in the weighted loss; small deltas make small losses.
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
        # The match decides, not the value: an offset of exactly 0 is a target too.
        is_positive = _in_channels(classes, 4) >= 0
        box_losses = huber_loss(deltas, target_deltas, delta=huber_delta)
        box_loss += tf.reduce_sum(tf.where(is_positive, box_losses, 0.0)) / 4.0
    class_loss /= normalizer
    box_loss /= normalizer
    return Losses(
        class_loss, box_loss, class_weight * class_loss + box_weight * box_loss
    )


def l2_loss(kernels: Sequence[tf.Tensor], coefficient: float) -> tf.Tensor:
    """Returns coefficient * sum(w^2) / 2 over all kernels, float32 []."""
    halves = [tf.nn.l2_loss(tf.cast(kernel, tf.float32)) for kernel in kernels]
    return coefficient * tf.add_n(halves) if halves else tf.zeros([])


def _in_channels(planes: tf.Tensor, times: int) -> tf.Tensor:
    """Returns [B, H, W, A * times], each of A planes `times` times.

    Args:
      planes: [B, A, H, W].
      times: channels of an anchor.

    Selects of broadcasts fuse into the loss: the repeated map never exists on a TPU.
    """
    num_anchors = planes.shape[1]
    anchor_of_channel = np.repeat(np.arange(num_anchors), times)
    repeated = planes[:, 0, :, :, None]
    for anchor in range(1, num_anchors):
        is_later = anchor_of_channel >= anchor
        repeated = tf.where(is_later, planes[:, anchor, :, :, None], repeated)
    return repeated
