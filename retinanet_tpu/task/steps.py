"""The very functions that replicas run, with the shapes of their arguments."""

from collections.abc import Callable

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.data import categories as categories_lib
from retinanet_tpu.estimator import spec, training
from retinanet_tpu.task import experiment, model_fn


def of(run: experiment.Experiment) -> dict[str, tuple[Callable, tuple]]:
    """Returns the training and the prediction step of one replica, by name.

    Args:
      run: made without data; its strategy says how many replicas there are.
    Returns:
      From "train" and "predict" to a function and the specs of its arguments.
    """
    num_replicas = run.estimator.num_replicas
    params = run.params | {"categories": _any_categories(run.params["num_classes"])}
    with run.estimator.strategy.scope():
        network = run.network_fn(params)
        state = training.TrainState(network, run.update_fn(network))
    train_step = training.make_step_fn(state, model_fn.model_fn, lambda: params)

    def predict_step(features):
        found = training.call_model_fn(
            model_fn.model_fn, features, spec.ModeKeys.PREDICT, params, network
        )
        return found.predictions

    step_spec = tf.TensorSpec([], tf.int64)
    features, labels = batch_spec(run, run.plan.batch_size // num_replicas)
    shown, _ = batch_spec(run, run.plan.eval_batch_per_replica)
    return {
        "train": (train_step, ((features, labels), step_spec)),
        "predict": (predict_step, (shown,)),
    }


def batch_spec(
    run: experiment.Experiment, batch_size: int
) -> tuple[structures.Features, structures.Labels]:
    """Returns the specs of a batch as the input pipeline makes it."""
    height, width = run.params["image_size"]
    num_boxes = run.data.max_boxes

    def rows(dtype, *shape):
        return tf.TensorSpec([batch_size, *shape], dtype)

    return structures.Features(
        images=rows(tf.uint8, height, width, 3),
        image_ids=rows(tf.int64),
        image_sizes=rows(tf.int32, 2),
        scales=rows(tf.float32, 2),
    ), structures.Labels(
        boxes_yxyx=rows(tf.float32, num_boxes, 4),
        classes=rows(tf.int32, num_boxes),
        is_crowd=rows(tf.bool, num_boxes),
        num_boxes=rows(tf.int32),
    )


def _any_categories(num_classes):
    """Returns classes for shapes' sake: what they are called does not matter here."""
    entries = [categories_lib.Category(i, i, f"class {i}") for i in range(num_classes)]
    return categories_lib.Categories(num_classes, tuple(entries))
