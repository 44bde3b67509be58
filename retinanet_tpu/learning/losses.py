"""Computes the loss of a batch: classes, boxes, and L2 of the kernels."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import replicas, structures
from retinanet_tpu.boxes.anchors import Anchors
from retinanet_tpu.boxes.box_coder import SideDistributions
from retinanet_tpu.learning import box_losses, class_losses
from retinanet_tpu.learning.targets import Targets

# Returns float32 [B, H, W, A * K] from logits, classes and IoU of predicted boxes.
ClassLossFn = Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]
# Returns float32 [] from outputs, target values, classes, anchor sizes and box coder.
BoxLossFn = Callable[..., tf.Tensor]


class Losses(NamedTuple):
    """The parts of the detection loss.

    Attributes:
      class_loss: float32 [], loss of the classes / normalizer.
      box_loss: float32 [], loss of the boxes / normalizer.
      weighted_loss: float32 [], the weighted sum, which is trained on together with the
        L2 of the kernels.
      distribution_loss: float32 [], loss of the distributions of the sides of boxes /
        normalizer. None if boxes have another representation.
    """

    class_loss: tf.Tensor
    box_loss: tf.Tensor
    weighted_loss: tf.Tensor
    distribution_loss: tf.Tensor | None = None


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
    anchors: Anchors,
    *,
    normalizer: tf.Tensor,
    class_loss_fn: ClassLossFn = class_losses.focal_loss,
    box_loss_fn: BoxLossFn = box_losses.huber_loss,
    class_weight: float = 1.0,
    box_weight: float = 50.0,
    distribution_weight: float = 0.25,
) -> Losses:
    """Returns the losses, summed over all levels and images of this replica.

    Only positive anchors have a box loss.

    Args:
      predictions: The predictions of the network.
      targets: The targets of the same images.
      anchors: The anchors that the predictions are relative to.
      normalizer: float32 [], the divisor, see `loss_normalizer`.
      class_loss_fn: A loss of `class_losses`.
      box_loss_fn: A loss of `box_losses`.
      class_weight: The weight of the class loss in the weighted loss.
      box_weight: The weight of the box loss in the weighted loss. It is large for
        `huber_loss`, because offsets are small, and about 2 for losses of the IoU.
      distribution_weight: The weight of `box_losses.distribution_focal_loss`, which
        boxes that are `SideDistributions` have too.
    Raises:
      UserError: box_loss_fn is of another representation of boxes.
    """
    box_coder = anchors.box_coder
    class_loss = box_loss = distribution_loss = 0.0
    for level, logits, outputs, classes, values in zip(
        anchors.levels, *predictions, targets.classes, targets.box_values, strict=True
    ):
        boxes = outputs, values, classes, anchors.sizes_hw(level), box_coder
        ious = box_losses.predicted_ious(*boxes)
        class_loss += tf.reduce_sum(class_loss_fn(logits, classes, ious))
        box_loss += box_loss_fn(*boxes)
        if isinstance(box_coder, SideDistributions):
            distribution_loss += box_losses.distribution_focal_loss(
                outputs, values, classes, box_coder
            )
    class_loss /= normalizer
    box_loss /= normalizer
    weighted_loss = class_weight * class_loss + box_weight * box_loss
    if not isinstance(box_coder, SideDistributions):
        return Losses(class_loss, box_loss, weighted_loss)
    distribution_loss /= normalizer
    weighted_loss += distribution_weight * distribution_loss
    return Losses(class_loss, box_loss, weighted_loss, distribution_loss)


def l2_loss(kernels: Sequence[tf.Tensor], coefficient: float) -> tf.Tensor:
    """Returns coefficient * sum(w^2) / 2 over all kernels, float32 [].

    Args:
      kernels: The kernels, of any float dtype and shape.
      coefficient: The factor.
    """
    halves = [tf.nn.l2_loss(tf.cast(kernel, tf.float32)) for kernel in kernels]
    return coefficient * tf.add_n(halves) if halves else tf.zeros([])
