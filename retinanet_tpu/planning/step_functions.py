"""The functions that replicas run, with the specs of their arguments."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map
from retinanet_tpu.estimator import inference, spec, train_step
from retinanet_tpu.serving import server
from retinanet_tpu.task import model_fn
from retinanet_tpu.task.run import Run

# The input of the exported signature: COCO's most common size, px.
IMAGE_SIZE = (480, 640)


class ReplicaFn(NamedTuple):
    """A function that each replica runs, with its arguments.

    Attributes:
      fn: The function.
      specs_fn: A function from the number of images of a replica to the specs of the
        arguments of fn.
      images: The number of images of a replica.
      num_replicas: The number of replicas.
      setting: The gin setting of the number of images; "" if there is none.
    """

    fn: Callable[..., Any]
    specs_fn: Callable[[int], tuple[Any, ...]]
    images: int
    num_replicas: int
    setting: str


def build(run: Run) -> dict[str, ReplicaFn]:
    """Returns the steps of a run: "train", "eval", and the exported "predict".

    They are the functions that `strategy.run` and SavedModels get. "predict" is the
    exported signature on one device, for one image of IMAGE_SIZE, resizing included.

    Args:
      run: The run; it needs no model_dir. Its strategy sets the number of replicas.
    """
    num_replicas = run.estimator.num_replicas
    categories = _categories(run)
    recipe = dataclasses.replace(run.recipe, categories=categories)
    params = {"recipe": recipe, "metric_fn": None}
    with run.estimator.strategy.scope():
        network = run.make_network()
        state = train_step.TrainState(network, run.update_fn(network))
        evaluated = run.make_network()
    train_fn = train_step.make_step_fn(
        state,
        model_fn.model_fn,
        lambda: params,
        deterministic=run.estimator.config.deterministic,
    )
    forward = inference.ReplicaForward(
        model_fn.model_fn, spec.ModeKeys.EVAL, lambda: params, evaluated
    )
    module = server.ServingModule(evaluated, recipe)
    image = tf.TensorSpec([*IMAGE_SIZE, 3], tf.float32)
    scalar = tf.TensorSpec([], tf.int32)
    return {
        "train": ReplicaFn(
            train_step.ReplicaStep(train_fn).run,
            lambda images: (batch_spec(run, images), tf.TensorSpec([], tf.int64)),
            images=run.plan.batch_size // num_replicas,
            num_replicas=num_replicas,
            setting="BATCH_SIZE",
        ),
        "eval": ReplicaFn(
            forward.run,
            lambda images: (batch_spec(run, images),),
            images=run.plan.eval_batch_per_replica,
            num_replicas=num_replicas,
            setting="TrainingPlan.eval_batch_per_replica",
        ),
        "predict": ReplicaFn(
            lambda *inputs: module.detect_one.python_function(*inputs),
            lambda _: (image, scalar),
            images=1,
            num_replicas=1,
            setting="",
        ),
    }


def batch_spec(
    run: Run, batch_size: int
) -> tuple[structures.Features, structures.Labels]:
    """Returns the specs of a batch of the input pipeline.

    Args:
      run: The run.
      batch_size: The number of images.
    """
    height, width = run.recipe.image_size
    num_boxes = run.data.max_boxes

    def rows(dtype: tf.DType, *shape: int) -> tf.TensorSpec:
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


def _categories(run: Run) -> category_map.Categories:
    """Returns the categories of data on this machine, else arbitrary ones.

    The evaluation step contains the ids of the classes as constants.
    """
    num_classes = run.recipe.num_classes
    if run.data.dir and "://" not in run.data.dir:
        with contextlib.suppress(errors.UserError):
            categories = run.data.read_categories()
            categories.check_num_classes(num_classes)
            return categories
    entries = [category_map.Category(i, i, f"class {i}") for i in range(num_classes)]
    return category_map.Categories(num_classes, tuple(entries))
