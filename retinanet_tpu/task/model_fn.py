"""RetinaNet as the estimator sees it."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.detections import decode
from retinanet_tpu.estimator import spec
from retinanet_tpu.learning import losses
from retinanet_tpu.model import retinanet


def model_fn(
    features: structures.Features,
    labels: structures.Labels | None,
    mode: str,
    params: Mapping[str, Any],
    network: retinanet.RetinaNet,
) -> spec.TPUEstimatorSpec:
    """Returns the losses, the detections, or both, of one replica's batch.

    Args:
      features: images and what was done to them.
      labels: boxes; None to predict.
      mode: of spec.ModeKeys.
      params: see `configurables.retinanet_params`.
      network: makes the predictions.
    """
    is_training = mode == spec.ModeKeys.TRAIN
    predictions = network(features.images, is_training=is_training)
    if mode == spec.ModeKeys.PREDICT:
        found = detect(predictions, features.scales, features.image_sizes, params)
        return spec.TPUEstimatorSpec(mode, predictions=found._asdict())
    scalars = _losses(predictions, features, labels, params, network)
    if is_training:
        return spec.TPUEstimatorSpec(mode, loss=scalars["total-loss"], scalars=scalars)
    found = detect(predictions, features.scales, features.image_sizes, params)
    return spec.TPUEstimatorSpec(
        mode,
        loss=scalars["total-loss"],
        eval_metrics=(params["metric_fn"], (found, features.image_ids)),
    )


def detect(
    predictions: structures.Predictions,
    scales: tf.Tensor,
    image_sizes: tf.Tensor,
    params: Mapping[str, Any],
) -> structures.Detections:
    """Returns detections in pixels of the original images, with the data set's ids.

    Args:
      predictions: of a batch.
      scales: float32 [B, 2], (y, x) size in the network's input / original size.
      image_sizes: int32 [B, 2], height and width of the originals, px.
      params: see `configurables.retinanet_params`.
    """
    candidates = params["decode_fn"](
        predictions,
        params["anchors"],
        params["image_size"],
        num_classes=params["num_classes"],
    )
    category_ids = tf.constant(params["categories"].ids, tf.int32)
    ids = tf.gather(category_ids, candidates.classes)
    # An index that no category has (COCO's ids have gaps) is never an object.
    found = params["nms_fn"](
        candidates._replace(scores=tf.where(ids >= 0, candidates.scores, 0.0))
    )
    is_found = tf.sequence_mask(found.num_detections, found.scores.shape[1])
    return found._replace(
        boxes_yxyx=decode.to_original(found.boxes_yxyx, scales, image_sizes),
        classes=tf.where(is_found, tf.gather(category_ids, found.classes), 0),
    )


def _losses(predictions, features, labels, params, network):
    """Returns the losses by the names they are logged under, in that order."""
    targets = params["assign_fn"](
        labels,
        params["anchors"],
        params["image_size"],
        is_real=features.image_ids != structures.PADDING_IMAGE,
    )
    parts = params["loss_fn"](
        predictions, targets, normalizer=losses.loss_normalizer(targets.num_positives)
    )
    l2 = losses.l2_loss(network.kernels(), params["l2_coefficient"])
    return {
        "box-loss": parts.box_loss,
        "class-loss": parts.class_loss,
        "weighted-loss": parts.weighted_loss,
        "l2-regularization": l2,
        "total-loss": parts.weighted_loss + l2,
    }
