"""A run: its recipe, its data, its estimator and how long it trains."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, structures
from retinanet_tpu.data import category_map, pipeline, record_images
from retinanet_tpu.estimator import spec, tpu_estimator, warm_start
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.early_stopping import EarlyStopping
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.estimator.run_config import RunConfig
from retinanet_tpu.evaluation import open_images_metric
from retinanet_tpu.learning import update
from retinanet_tpu.model import retinanet
from retinanet_tpu.task import initialization, metric_fn
from retinanet_tpu.task.input_fn import Data, input_fn
from retinanet_tpu.task.model_fn import model_fn
from retinanet_tpu.task.recipe import NetworkFn, Recipe
from retinanet_tpu.task.serving_fn import serving_fn

UpdateFn = Callable[[tf.Module], update.WeightUpdate]
StrategyFn = Callable[[], tf.distribute.Strategy]
ExporterFn = Callable[[spec.ServingFn], spec.CheckpointExporter]


@dataclasses.dataclass(frozen=True)
class TrainingPlan:
    """The plan of a run: its length, batches and evaluations.

    Attributes:
      max_steps: The number of steps of the whole run.
      batch_size: The number of images of a training step over all replicas.
      eval_every_steps: The number of steps between evaluations; None evaluates at the
        end only.
      eval_batch_per_replica: The number of images in a replica's evaluation step.
      num_visualized_images: The number of images that detections are drawn on at each
        evaluation.
      write_analysis: Whether each evaluation also writes the page of
        `retinanet_tpu.analyze`.
      evaluate_during_training: Whether the trainer evaluates; pods leave it to the
        sidecar.
      early_stopping: When to end before max_steps; None never does.

    Raises:
      UserError: A count is below 1.
    """

    max_steps: int
    batch_size: int
    eval_every_steps: int | None = None
    eval_batch_per_replica: int = 8
    num_visualized_images: int = 8
    write_analysis: bool = False
    evaluate_during_training: bool = True
    early_stopping: EarlyStopping | None = None

    def __post_init__(self):
        """Checks the counts."""
        for name in ("max_steps", "batch_size", "eval_batch_per_replica"):
            if getattr(self, name) < 1:
                raise errors.UserError(
                    f"TrainingPlan.{name} is {getattr(self, name)}; it must be at "
                    "least 1."
                )


@dataclasses.dataclass(frozen=True)
class MLPerfLog:
    """The settings of the log in MLPerf's format, MODEL_DIR/mlperf.log.

    A run with the log needs `EarlyStopping.target`, the AP of a successful run.

    Attributes:
      hyperparameters: The settings of the optimizer by MLPerf's keys, such as
        opt_base_learning_rate.
      organization: The name of who ran it.
      platform: The name of the machines.
      division: "closed" or "open".
    """

    hyperparameters: Mapping[str, float | str]
    organization: str = "unnamed"
    platform: str = "unnamed"
    division: str = "open"


@dataclasses.dataclass(frozen=True)
class Run:
    """A run, ready to start.

    Attributes:
      estimator: The estimator, which trains, evaluates and exports.
      train_spec: The input and the number of steps of the training.
      eval_spec: The input, the interval and the exporters of the evaluation.
      recipe: The recipe, with the categories if the run has a model_dir.
      params: The params that the estimator passes to model_fn, input_fn, serving_fn.
      network_fn: The constructor of a network from the arguments of
        `Recipe.make_network`.
      update_fn: The constructor of the WeightUpdate of a network.
      data: The dataset.
      plan: The plan of training and evaluation.
      extra_metrics: The metrics beside COCO's.
      mlperf_log: The settings of the log in MLPerf's format; None writes none.
    """

    estimator: tpu_estimator.TPUEstimator
    train_spec: spec.TrainSpec
    eval_spec: spec.EvalSpec
    recipe: Recipe
    params: dict[str, Any]
    network_fn: NetworkFn
    update_fn: UpdateFn
    data: Data
    plan: TrainingPlan
    extra_metrics: Sequence[open_images_metric.OpenImagesMetric] = ()
    mlperf_log: MLPerfLog | None = None

    def make_network(self) -> retinanet.RetinaNet:
        """Returns a new network of the run."""
        return self.recipe.make_network(self.network_fn)


def make_run(
    model_dir: str | None,
    *,
    recipe: Recipe,
    network_fn: NetworkFn,
    update_fn: UpdateFn,
    data: Data,
    plan: TrainingPlan,
    run_config: RunConfig | None = None,
    strategy_fn: StrategyFn = strategy.make_strategy,
    warm_start_from: warm_start.WarmStartSettings | None = None,
    backbone_checkpoint: str | None = None,
    exporter_fns: Sequence[ExporterFn] = (),
    extra_metrics: Sequence[open_images_metric.OpenImagesMetric] = (),
    mlperf_log: MLPerfLog | None = None,
) -> Run:
    """Joins all parts into a run.

    Args:
      model_dir: The directory of the run; None makes a run without data, to inspect
        its network.
      recipe: The recipe: classes, anchors, losses and detections.
      network_fn: The constructor of the network from the arguments of
        `Recipe.make_network`.
      update_fn: The constructor of the WeightUpdate of the network.
      data: The dataset to train and evaluate on.
      plan: The plan of training and evaluation.
      run_config: The settings of checkpoints and steps; None means the defaults.
      strategy_fn: The constructor of the strategy; it runs before anything else uses a
        device.
      warm_start_from: A checkpoint whose weights a new run starts from, where path and
        shape agree.
      backbone_checkpoint: The origin of the backbone's weights instead; see
        loading.load.
      exporter_fns: Constructors of exporters of evaluated checkpoints; each gets
        serving_fn.
      extra_metrics: The metrics beside COCO's, such as an OpenImagesMetric.
      mlperf_log: The settings of the log in MLPerf's format; None writes none.
    Raises:
      UserError: The parts do not fit each other.
    """
    config = run_config or RunConfig()
    compute_strategy = strategy_fn()
    forward_size = plan.eval_batch_per_replica * compute_strategy.num_replicas_in_sync
    params: dict[str, Any] = {}
    if model_dir is not None:
        categories = read_categories(model_dir, data, recipe.num_classes)
        recipe = dataclasses.replace(recipe, categories=categories)
        params = _evaluation_params(recipe, data, plan, extra_metrics)
    params["recipe"] = recipe
    inputs = functools.partial(input_fn, data=data, seed=config.tf_random_seed)
    start_from = initialization.resolve_init(warm_start_from, backbone_checkpoint)
    estimator = tpu_estimator.TPUEstimator(
        model_fn,
        model_dir or "",
        network_fn=lambda params: params["recipe"].make_network(network_fn),
        update_fn=functools.partial(_start_update, recipe, update_fn, start_from),
        params=params,
        config=config,
        strategy=compute_strategy,
        strategy_fn=strategy_fn,
        train_batch_size=plan.batch_size,
        eval_batch_size=forward_size,
        predict_batch_size=forward_size,
        warm_start_from=start_from,
    )
    return Run(
        estimator=estimator,
        train_spec=spec.TrainSpec(
            functools.partial(inputs, is_training=True),
            plan.max_steps,
            early_stopping=plan.early_stopping,
        ),
        eval_spec=spec.EvalSpec(
            functools.partial(inputs, is_training=False),
            every_steps=plan.eval_every_steps,
            exporters=tuple(make(serving_fn) for make in exporter_fns),
        ),
        recipe=recipe,
        params=params,
        network_fn=network_fn,
        update_fn=update_fn,
        data=data,
        plan=plan,
        extra_metrics=extra_metrics,
        mlperf_log=mlperf_log,
    )


def _start_update(
    recipe: Recipe,
    update_fn: UpdateFn,
    start_from: initialization.Initialization,
    network: retinanet.RetinaNet,
) -> update.WeightUpdate:
    """Returns the update of a network that starts training; logs its counts."""
    for line in recipe.summarize_network(network):
        logging.info(line)
    initialization.check_frozen_are_initialized(network, start_from)
    weight_update = update_fn(network)
    # A wrong schedule raises here, outside the traced step.
    weight_update.learning_rate(0)
    if network.compute_dtype == "float16" and not weight_update.has_loss_scale:
        raise errors.UserError(
            "COMPUTE_DTYPE 'float16' loses small gradients without a loss scale; add "
            "device/gpu_float16.gin, or WeightUpdate.loss_scale = @DynamicLossScale()."
        )
    return weight_update


def read_categories(
    model_dir: str, data: Data, num_classes: int
) -> category_map.Categories:
    """Returns the categories of the model_dir's checkpoints, else those of the data.

    Args:
      model_dir: The directory of the run.
      data: The dataset of the run.
      num_classes: The number of classes of the network.
    Raises:
      MissingFileError: Neither has categories.
      UserError: They are corrupt, or the network has another number of classes.
    """
    path = f"{model_dir}/{category_map.FILE_NAME}"
    is_started = checkpoints.latest(model_dir) is not None
    has_categories = is_started and tf.io.gfile.exists(path)
    if is_started and not has_categories:
        logging.warning("No %s; using the categories of %s", path, data.dir)
    categories = category_map.read(path) if has_categories else data.read_categories()
    categories.check_num_classes(num_classes)
    return categories


def _evaluation_params(
    recipe: Recipe,
    data: Data,
    plan: TrainingPlan,
    extra_metrics: Sequence[open_images_metric.OpenImagesMetric],
) -> dict[str, Any]:
    """Returns the params of evaluation and export."""
    examples_fn = functools.partial(
        _first_images, recipe, data, plan.num_visualized_images
    )
    return {
        "images_fn": data.read_images,
        "metric_fn": metric_fn.make_metric_fn(
            data.annotation_file,
            categories=recipe.categories,
            examples_fn=examples_fn if plan.num_visualized_images else None,
            extra_metrics=extra_metrics,
            analysis_image_fn=record_images.RecordImages(data.dir, data.eval_split)
            if plan.write_analysis
            else None,
        ),
    }


def _first_images(recipe: Recipe, data: Data, num_images: int) -> structures.Features:
    """Returns the first evaluation images, as NumPy arrays."""
    dataset_spec = pipeline.DatasetSpec(
        data.dir,
        data.eval_split,
        recipe.categories,
        recipe.image_size,
        keep_aspect_ratio=recipe.keep_aspect_ratio,
    )
    dataset = pipeline.make_eval_dataset(dataset_spec, batch_size=num_images)
    features, _ = next(dataset.take(1).as_numpy_iterator())
    return features
