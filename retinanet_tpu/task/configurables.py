"""The gin page: everything that a .gin file can set, and how the parts are joined."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from retinanet_tpu.boxes import anchors as anchors_lib
from retinanet_tpu.data import categories as categories_lib
from retinanet_tpu.data import examples, pipeline
from retinanet_tpu.detections import decode, nms
from retinanet_tpu.estimator import config, estimator, spec, strategy, warm_start
from retinanet_tpu.learning import (
    loss_scale,
    losses,
    optimizers,
    schedules,
    targets,
    update,
)
from retinanet_tpu.model import fpn, heads, layers, retinanet
from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.task import (
    input_fn as input_fn_lib,
)
from retinanet_tpu.task import (
    metric_fn,
)
from retinanet_tpu.task import (
    model_fn as model_fn_lib,
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run, ready to start.

    Attributes:
      estimator: trains, evaluates and exports.
      train_spec: what to train.
      eval_spec: what to score.
      params: what all functions of the task share.
      network_fn: params -> network.
      data: where the data are.
      plan: how long it runs.
    """

    estimator: estimator.TPUEstimator
    train_spec: spec.TrainSpec
    eval_spec: spec.EvalSpec
    params: dict[str, Any]
    network_fn: Callable
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
    nms_fn: Callable = nms.nms,
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
      nms_fn: candidates -> detections.
    Raises:
      ValueError: image_size does not fit the pyramid.
    """
    anchors.grid_sizes(image_size)  # Checks the size before anything is built.
    return dict(
        num_classes=num_classes,
        image_size=tuple(image_size),
        anchors=anchors,
        assign_fn=assign_fn,
        loss_fn=loss_fn,
        l2_coefficient=l2_coefficient,
        decode_fn=decode_fn,
        nms_fn=nms_fn,
    )


def build_network(
    params: Mapping[str, Any], network_fn: Callable = retinanet.RetinaNet
) -> retinanet.RetinaNet:
    """Returns the network that params describe."""
    return network_fn(
        num_classes=params["num_classes"], num_anchors=params["anchors"].num_per_cell
    )


def network_lines(network: retinanet.RetinaNet, params: Mapping[str, Any]) -> list[str]:
    """Returns the start-up counts of a network, a line each."""
    trainable = network.trainable_variables
    l2 = losses.l2_loss(network.kernels(), params["l2_coefficient"])
    return [
        f"Trainable weights: {len(network.weights)}",
        f"Trainable weights after freezing: {len(trainable)}",
        f"Initial l2_regularization: {float(l2):.5f}",
        f"Trainable parameters: {layers.num_parameters(trainable):,}",
    ]


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long a run trains and when it is scored.

    Attributes:
      max_steps: steps of the whole run.
      batch_size: images of a training step over all replicas.
      eval_every_steps: score after this many steps each, and at the end; None for the
        end only.
      eval_batch_size: images of an evaluation step over all replicas.
      num_pictures: images to draw detections on at each evaluation.
      evaluates: whether the trainer scores at all; pods leave it to evaluate.py.
    """

    max_steps: int
    batch_size: int
    eval_every_steps: int | None = None
    eval_batch_size: int = 8
    num_pictures: int = 8
    evaluates: bool = True


def experiment(
    model_dir: str | None,
    *,
    params: dict[str, Any],
    network_fn: Callable,
    update_fn: Callable,
    data: input_fn_lib.Data,
    plan: Plan,
    run_config: config.RunConfig | None = None,
    strategy_fn: Callable[[], tf.distribute.Strategy] = strategy.make_strategy,
    warm_start_from: str | None = None,
) -> Experiment:
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
      warm_start_from: checkpoint or model_dir whose weights a new run takes, where path
        and shape agree.
    Raises:
      ValueError: parts that do not fit each other.
    """
    run_config = run_config or config.RunConfig()
    where = strategy_fn()
    if model_dir is not None:
        params = params | _data_params(model_dir, data, params, plan)
    inputs = functools.partial(
        input_fn_lib.input_fn, data=data, seed=run_config.tf_random_seed
    )
    make_network = functools.partial(build_network, network_fn=network_fn)
    runner = estimator.TPUEstimator(
        model_fn_lib.model_fn,
        model_dir or "",
        network_fn=make_network,
        update_fn=functools.partial(
            _logged_update, params, update_fn, bool(warm_start_from)
        ),
        params=params,
        config=run_config,
        strategy=where,
        train_batch_size=plan.batch_size,
        eval_batch_size=plan.eval_batch_size,
        warm_start_from=warm_start_from
        and warm_start.WarmStartSettings(warm_start_from),
    )
    eval_spec = spec.EvalSpec(
        functools.partial(inputs, is_training=False), every_steps=plan.eval_every_steps
    )
    train_spec = spec.TrainSpec(
        functools.partial(inputs, is_training=True), plan.max_steps
    )
    return Experiment(runner, train_spec, eval_spec, params, make_network, data, plan)


def _logged_update(params, update_fn, has_weights, network):
    """Returns the update of a network about to be trained, and logs its counts."""
    for line in network_lines(network, params):
        logging.info(line)
    num_frozen = len(network.weights) - len(network.trainable_variables)
    if num_frozen and not has_weights:
        raise ValueError(
            f"FROZEN keeps {num_frozen} weights at their random first values; set "
            "WARM_START to a checkpoint that has trained ones, or FROZEN = ()."
        )
    return update_fn(network)


def _data_params(model_dir, data, params, plan):
    """Returns the params that depend on the data's classes, kept in model_dir."""
    path = f"{model_dir}/{categories_lib.FILE_NAME}"
    if not tf.io.gfile.exists(path):
        tf.io.gfile.makedirs(model_dir)
        categories_lib.write(data.read_categories(), path)
    categories = categories_lib.read(path)
    categories.check_num_classes(params["num_classes"])
    examples_fn = functools.partial(_examples, data, params, categories, plan)
    return {
        "categories": categories,
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


CONFIGURABLES = {
    "Anchors": anchors_lib.Anchors,
    "Augmentation": examples.Augmentation,
    "Data": input_fn_lib.Data,
    "ResNet": resnet.ResNet,
    "FPN": fpn.FPN,
    "Heads": heads.Heads,
    "BatchNorm": layers.BatchNorm,
    "RetinaNet": retinanet.RetinaNet,
    "normalize": retinanet.normalize,
    "assign_targets": targets.assign_targets,
    "detection_losses": losses.detection_losses,
    "retinanet_params": retinanet_params,
    "piecewise": schedules.piecewise,
    "cosine": schedules.cosine,
    "constant": schedules.constant,
    "SGD": optimizers.SGD,
    "AdamW": optimizers.AdamW,
    "DynamicLossScale": loss_scale.DynamicLossScale,
    "WeightUpdate": update.WeightUpdate,
    "decode": decode.decode,
    "nms": nms.nms,
    "hard": nms.hard,
    "linear": nms.linear,
    "gaussian": nms.gaussian,
    "Plan": Plan,
    "RunConfig": config.RunConfig,
    "TPUConfig": config.TPUConfig,
    "make_strategy": strategy.make_strategy,
    "experiment": experiment,
}

_BOUND = config.register(CONFIGURABLES)


def make_experiment(model_dir: str | None, **overrides: Any) -> Experiment:
    """Returns `experiment` as gin configures it; overrides win over gin."""
    return _BOUND["experiment"](model_dir, **overrides)
