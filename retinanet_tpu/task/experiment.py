"""A run as a whole: what RetinaNet is, on which data, for how long."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, replicas, structures
from retinanet_tpu.boxes import anchors as anchors_lib
from retinanet_tpu.data import category_map, pipeline
from retinanet_tpu.detections import decode, nms
from retinanet_tpu.estimator import spec, tpu_estimator, warm_start
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.estimator.run_config import RunConfig
from retinanet_tpu.learning import losses, targets
from retinanet_tpu.model import layers, retinanet
from retinanet_tpu.serving import request_limits
from retinanet_tpu.task import (
    initialization,
    input_fn as input_fn_lib,
    metric_fn,
    model_fn as model_fn_lib,
    serving_fn,
)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, ready to start.

    Attributes:
      estimator: trains, evaluates and exports.
      train_spec: what to train.
      eval_spec: what to score.
      params: what all functions of the task share.
      network_fn: params -> network.
      update_fn: network -> WeightUpdate.
      data: where the data are.
      plan: how long it runs.
    """

    estimator: tpu_estimator.TPUEstimator
    train_spec: spec.TrainSpec
    eval_spec: spec.EvalSpec
    params: dict[str, Any]
    network_fn: Callable
    update_fn: Callable
    data: input_fn_lib.Data
    plan: "Plan"


def retinanet_params(
    *,
    num_classes: int,
    image_size: tuple[int, int],
    anchors: anchors_lib.Anchors,
    assign_fn: Callable = targets.assign_targets,
    loss_fn: Callable = losses.detection_losses,
    l2_coefficient: float = 1e-4,
    decode_fn: Callable = decode.decode,
    nms_fn: nms.NMS | None = None,
    max_request_images: int = 64,
    max_image_pixels: int = 50_000_000,
) -> dict[str, Any]:
    """Returns what model_fn, input_fn and serving_fn share.

    Args:
      num_classes: classes of categories.json.
      image_size: height and width of the network's input, px.
      anchors: of the whole run.
      assign_fn: labels -> targets.
      loss_fn: predictions and targets -> losses.
      l2_coefficient: of half the squared kernels.
      decode_fn: predictions -> candidates.
      nms_fn: candidates -> detections; None for NMS as it comes.
      max_request_images: Images that an export accepts in one request.
      max_image_pixels: Pixels that an export accepts in one image.
    Raises:
      UserError: image_size does not fit the pyramid, or a limit is below 1.
    """
    if not isinstance(image_size, Sequence) or len(image_size) != 2:
        raise errors.UserError(
            f"IMAGE_SIZE is {image_size}; it must be (height, width), (640, 640) say."
        )
    anchors.grid_sizes(tuple(image_size))  # Checks it before anything is built.
    return dict(
        num_classes=num_classes,
        image_size=tuple(image_size),
        anchors=anchors,
        assign_fn=assign_fn,
        loss_fn=loss_fn,
        l2_coefficient=l2_coefficient,
        decode_fn=decode_fn,
        nms_fn=nms_fn or nms.NMS(),
        limits=request_limits.Limits(max_request_images, max_image_pixels),
    )


def build_network(
    params: Mapping[str, Any], network_fn: Callable = retinanet.RetinaNet
) -> retinanet.RetinaNet:
    """Returns the network that params describe.

    Raises:
      UserError: it has other levels than the anchors.
    """
    anchors = params["anchors"]
    network = network_fn(
        num_classes=params["num_classes"], num_anchors=anchors.num_per_cell
    )
    if tuple(network.fpn.levels) != tuple(anchors.levels):
        raise errors.UserError(
            f"The pyramid has levels {network.fpn.levels}, but the anchors have "
            f"{anchors.levels}; set min_level and max_level of both FPN and Anchors."
        )
    return network


def check_assignment(params: Mapping[str, Any]) -> None:
    """Assigns targets once, so that wrong thresholds fail before the first step.

    Raises:
      UserError: The thresholds of the matcher do not fit each other.
    """
    labels = structures.Labels(
        boxes_yxyx=tf.zeros([1, 1, 4]),
        classes=tf.zeros([1, 1], tf.int32),
        is_crowd=tf.zeros([1, 1], tf.bool),
        num_boxes=tf.zeros([1], tf.int32),
    )
    params["assign_fn"](labels, params["anchors"], params["image_size"])


def summarize_network(
    network: retinanet.RetinaNet, params: Mapping[str, Any]
) -> list[str]:
    """Returns the start-up counts of a network, a line each."""
    trainable = network.trainable_variables
    l2 = losses.l2_loss(network.kernels(), params["l2_coefficient"])
    return [
        f"Trainable weights: {len(network.weights)}",
        f"Trainable weights after freezing: {len(trainable)}",
        f"Initial l2_regularization: {float(l2):.5f}",
        f"Trainable parameters: {layers.num_parameters(trainable):,}",
        *_frozen_lines(network),
    ]


def _frozen_lines(network):
    weights = {replicas.variable_path(weight): weight for weight in network.weights}
    for pattern in network.frozen:
        chosen = [weights[path] for path in layers.matching(weights, pattern)]
        yield (
            f"Frozen by '{pattern}': {len(chosen)} weights, "
            f"{layers.num_parameters(chosen):,} parameters"
        )


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """How long a run trains and when it is scored.

    Attributes:
      max_steps: steps of the whole run.
      batch_size: images of a training step over all replicas.
      eval_every_steps: score after this many steps each, and at the end; None for the
        end only.
      eval_batch_per_replica: images that each replica scores at once.
      num_pictures: images to draw detections on at each evaluation.
      evaluates: whether the trainer scores at all; pods leave it to evaluate.py.
    """

    max_steps: int
    batch_size: int
    eval_every_steps: int | None = None
    eval_batch_per_replica: int = 8
    num_pictures: int = 8
    evaluates: bool = True

    def __post_init__(self):
        """Raises UserError for counts below 1."""
        for name in ("max_steps", "batch_size", "eval_batch_per_replica"):
            if getattr(self, name) < 1:
                raise errors.UserError(
                    f"Plan.{name} is {getattr(self, name)}; it must be at least 1."
                )


def make_run(
    model_dir: str | None,
    *,
    params: dict[str, Any],
    network_fn: Callable,
    update_fn: Callable,
    data: input_fn_lib.Data,
    plan: TrainingPlan,
    run_config: RunConfig | None = None,
    strategy_fn: Callable[[], tf.distribute.Strategy] = strategy.make_strategy,
    warm_start_from: warm_start.WarmStartSettings | None = None,
    backbone_checkpoint: str | None = None,
    exporter_fns: Sequence[Callable] = (),
) -> Run:
    """Joins all parts into a run.

    Args:
      model_dir: of the run; None to look at the network only, without data.
      params: see retinanet_params.
      network_fn: makes the network from num_classes= and num_anchors=.
      update_fn: makes the WeightUpdate from the network.
      data: to train and score on.
      plan: how long.
      run_config: when to save; how to run.
      strategy_fn: makes the strategy, before anything else touches a device.
      warm_start_from: whose weights a new run takes, where path and shape agree.
      backbone_checkpoint: instead, where its backbone comes from: see pretrained.load.
      exporter_fns: each makes an exporter of what is scored from serving_fn.
    Raises:
      UserError: parts that do not fit each other.
    """
    run_config = run_config or RunConfig()
    where = strategy_fn()
    forward_size = plan.eval_batch_per_replica * where.num_replicas_in_sync
    if model_dir is not None:
        params = params | _data_params(model_dir, data, params, plan)
    inputs = functools.partial(
        input_fn_lib.input_fn, data=data, seed=run_config.tf_random_seed
    )
    make_network = functools.partial(build_network, network_fn=network_fn)
    start_from = initialization.resolve_init(warm_start_from, backbone_checkpoint)
    runner = tpu_estimator.TPUEstimator(
        model_fn_lib.model_fn,
        model_dir or "",
        network_fn=make_network,
        update_fn=functools.partial(_start_update, params, update_fn, start_from),
        params=params,
        config=run_config,
        strategy=where,
        strategy_fn=strategy_fn,
        train_batch_size=plan.batch_size,
        eval_batch_size=forward_size,
        predict_batch_size=forward_size,
        warm_start_from=start_from,
    )
    train_spec = spec.TrainSpec(
        functools.partial(inputs, is_training=True), plan.max_steps
    )
    eval_spec = spec.EvalSpec(
        functools.partial(inputs, is_training=False),
        every_steps=plan.eval_every_steps,
        exporters=tuple(make(serving_fn.serving_fn) for make in exporter_fns),
    )
    return Run(
        runner, train_spec, eval_spec, params, make_network, update_fn, data, plan
    )


def _start_update(params, update_fn, start_from, network):
    """Returns the update of a network about to be trained, and logs its counts."""
    for line in summarize_network(network, params):
        logging.info(line)
    initialization.check_frozen_are_initialized(network, start_from)
    made = update_fn(network)
    made.learning_rate(0)  # Outside the traced step a wrong schedule is said plainly.
    if network.compute_dtype == "float16" and not made.has_loss_scale:
        raise errors.UserError(
            "COMPUTE_DTYPE 'float16' loses small gradients without a loss scale; take "
            "device/gpu_float16.gin, or WeightUpdate.loss_scale = @DynamicLossScale()."
        )
    return made


def _data_params(model_dir, data, params, plan):
    """Returns the params that depend on the data's classes.

    Once there is a checkpoint, the classes are those it was trained on.
    """
    path = f"{model_dir}/{category_map.FILE_NAME}"
    is_started = checkpoints.latest(model_dir) is not None
    has_classes = is_started and tf.io.gfile.exists(path)
    if is_started and not has_classes:
        logging.warning("No %s; taking the classes of %s", path, data.dir)
    categories = category_map.read(path) if has_classes else data.read_categories()
    categories.check_num_classes(params["num_classes"])
    examples_fn = functools.partial(_examples, data, params, categories, plan)
    return {
        "categories": categories,
        "pictures_fn": data.read_pictures,
        "metric_fn": metric_fn.make_metric_fn(
            data.annotation_file,
            categories=categories,
            examples_fn=examples_fn if plan.num_pictures else None,
        ),
    }


def _examples(data, params, categories, plan):
    """Returns the first evaluation images, as Features of NumPy arrays."""
    dataset = pipeline.make_eval_dataset(
        data.dir,
        data.eval_split,
        batch_size=plan.num_pictures,
        image_size=params["image_size"],
        categories=categories,
    )
    features, _ = next(dataset.take(1).as_numpy_iterator())
    return features
