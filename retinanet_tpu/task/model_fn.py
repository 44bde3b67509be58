"""The model_fn of RetinaNet for the estimator."""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.estimator import spec
from retinanet_tpu.model import retinanet, stochastic_depth


def model_fn(
    features: structures.Features,
    labels: structures.Labels | None,
    mode: str,
    params: Mapping[str, Any],
    network: retinanet.RetinaNet,
    step: tf.Tensor | None = None,
) -> spec.TPUEstimatorSpec:
    """Returns the losses, the detections, or both, of one replica's batch.

    Args:
      features: The images, and how they were resized.
      labels: The boxes of the images; None to predict.
      mode: One of spec.ModeKeys.
      params: "recipe", a `recipe.Recipe`, and "metric_fn" to evaluate.
      network: The network.
      step: int64, the number of steps before this one; None unless training.
    """
    recipe = params["recipe"]
    is_training = mode == spec.ModeKeys.TRAIN
    seeds = None
    if step is not None:
        seeds = stochastic_depth.image_seeds(features.image_ids, step)
    predictions = network(features.images, is_training=is_training, seeds=seeds)
    if mode == spec.ModeKeys.PREDICT:
        detections = recipe.detect(predictions, features.scales, features.image_sizes)
        found = {**detections._asdict(), "image_ids": features.image_ids}
        return spec.TPUEstimatorSpec(mode, predictions=found)
    scalars = recipe.loss_scalars(predictions, features, labels, network.kernels())
    if is_training:
        return spec.TPUEstimatorSpec(mode, loss=scalars["total-loss"], scalars=scalars)
    detections = recipe.detect(predictions, features.scales, features.image_sizes)
    return spec.TPUEstimatorSpec(
        mode,
        loss=scalars["total-loss"],
        eval_metrics=(params["metric_fn"], (detections, features.image_ids)),
    )
