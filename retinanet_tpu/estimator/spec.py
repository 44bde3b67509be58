"""The records and functions that a user passes to the estimator."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator.early_stopping import EarlyStopping

T = TypeVar("T")


class ModeKeys:
    """The modes that model_fn is called in; the strings are TPUEstimator's."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


class Update(Protocol):
    """An object that applies gradients to the weights of a network."""

    @property
    def variables(self) -> Mapping[str, tf.Variable]:
        """The variables that a checkpoint holds beside the network, by name."""

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate; float16 requires a larger one."""

    def apply(
        self, gradients: Sequence[tf.Tensor], step: tf.Tensor
    ) -> Mapping[str, tf.Tensor]:
        """Updates the weights and returns scalars to log.

        An object that has an attribute `statistics` also gets the keyword
        `statistics_before`; see `train_step.make_step_fn`.
        """


# Arguments of functions with `...` are matched by name; see `call_by_name`.
# (params, mode) -> dataset of (features, labels)
InputFn = Callable[..., tf.data.Dataset]
# params -> network, whose variables have unique names
NetworkFn = Callable[[dict[str, Any]], tf.Module]
# network -> update
UpdateFn = Callable[[Any], Update]
# () -> params of one call
ParamsFn = Callable[[], Mapping[str, Any]]
# batches of eval tensors -> results
MetricFn = Callable[[Iterator[Any]], Mapping[str, Any]]
# (checkpoint path, step)
SavingListener = Callable[[str, int], None]
# (checkpoint path, results of its evaluation)
EvaluationListener = Callable[[str, Mapping[str, Any]], None]
# () -> reason to stop, or None
StopReason = Callable[[], str | None]
# (directory of the export, checkpoint path, results of its evaluation or None)
FinishFn = Callable[[str, str, Mapping[str, Any] | None], None]


class TPUEstimatorSpec(NamedTuple):
    """The return value of model_fn.

    Attributes:
      mode: The ModeKeys that model_fn was called with.
      predictions: PREDICT: any nest of tensors [B, ...].
      loss: TRAIN and EVAL: float32 scalar. The loss of the global batch is its mean
        over replicas.
      scalars: The numbers to log by name, in the order of the log line. The log
        contains their means over the replicas and over the steps of a loop.
      eval_metrics: EVAL: (metric_fn, tensors). `tensors` is a nest of tensors
        [B, ...]. metric_fn(batches) runs on the host and iterates over that nest as
        NumPy arrays of the global batch. It returns a dict: floats become scalars,
        uint8 [n, H, W, 3] images, the types of result_types.py curves and files; a text
        or a nested dict goes to eval.jsonl only.
    """

    mode: str
    predictions: Any = None
    loss: tf.Tensor | None = None
    scalars: Mapping[str, tf.Tensor] = {}
    eval_metrics: tuple[MetricFn, Any] | None = None


# (features, labels, mode, params, network) -> TPUEstimatorSpec
ModelFn = Callable[..., TPUEstimatorSpec]


class TPUContext(NamedTuple):
    """The share of the input that this host reads: `params["context"]` of an input_fn.

    Attributes:
      num_replicas: The number of replicas of the whole job; each reads one batch per
        step.
      num_hosts: The number of input pipelines that share the data.
      current_host: The index of this pipeline, from 0.
      first_step: The number of steps whose batches are used or skipped; above 0 in a
        resumed run.
    """

    num_replicas: int
    num_hosts: int
    current_host: int
    first_step: int = 0

    @property
    def num_of_replicas_per_host(self) -> int:
        """The number of batches that this host delivers for one step."""
        return self.num_replicas // self.num_hosts


class TrainSpec(NamedTuple):
    """The input and the length of a training run.

    Attributes:
      input_fn: Returns the training data, which must repeat without end.
      max_steps: The global step to train up to; steps of earlier runs count.
      saving_listeners: Each is called with (checkpoint path, step) after a save.
      early_stopping: When to end before max_steps; None never does.
    """

    input_fn: InputFn
    max_steps: int
    saving_listeners: tuple[SavingListener, ...] = ()
    early_stopping: EarlyStopping | None = None


class Serving(NamedTuple):
    """The return value of serving_fn: the content of an export.

    Attributes:
      module: Holds all variables that the signatures use.
      signatures: The signatures by name; servers call `serving_default`. Without any,
        no SavedModel is written.
      assets_extra: Texts by file name, for the directory assets.extra.
      finish_fn: Called before the export is committed. It may add files. If it raises,
        there is no export.
    """

    module: tf.Module
    signatures: Mapping[str, Callable[..., Any]]
    assets_extra: Mapping[str, str] = {}
    finish_fn: FinishFn | None = None


# (network, params) -> Serving
ServingFn = Callable[..., Serving]


class SupportsExport(Protocol):
    """An estimator as exporters use it."""

    model_dir: str

    def export_saved_model(
        self,
        export_dir_base: str,
        serving_fn: ServingFn,
        *,
        checkpoint_path: str | None = None,
        eval_result: Mapping[str, Any] | None = None,
    ) -> str:
        """Exports a checkpoint; see `TPUEstimator.export_saved_model`."""


class CheckpointExporter(Protocol):
    """An object that exports evaluated checkpoints; see exporters.py."""

    @property
    def name(self) -> str:
        """The name of its directory in MODEL_DIR/export."""

    def export(
        self,
        estimator: SupportsExport,
        export_path: str,
        checkpoint_path: str,
        eval_result: Mapping[str, Any],
        is_the_final_export: bool,
        /,
    ) -> str | None:
        """Exports a checkpoint, or does not; returns the new directory, if any."""


class EvalSpec(NamedTuple):
    """The input and the times of evaluations.

    Attributes:
      input_fn: Returns one finite pass over the data.
      steps: The number of batches to evaluate; None for all of them.
      name: The results go to `eval_<name>/`, without a name to `eval/`.
      every_steps: The number of steps between evaluations, a multiple of
        save_checkpoints_steps. The last step is always evaluated; None evaluates no
        other.
      exporters: Each may export the evaluated checkpoint to `export/<name>/`.
      listeners: Each is called after an evaluation of the trainer.
    """

    input_fn: InputFn
    steps: int | None = None
    name: str | None = None
    every_steps: int | None = None
    exporters: tuple[CheckpointExporter, ...] = ()
    listeners: tuple[EvaluationListener, ...] = ()


def call_by_name(fn: Callable[..., T], **available: Any) -> T:
    """Calls fn with those of the available arguments that its signature names.

    Args:
      fn: The function.
      **available: The arguments that it may have.
    Returns:
      The return value of fn.
    Raises:
      UserError: fn requires an argument that is not available.
    """
    parameters = inspect.signature(fn).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return fn(**available)
    required = {p.name for p in parameters if p.default is p.empty}
    if unknown := required - set(available):
        name = getattr(fn, "__name__", repr(fn))
        raise errors.UserError(
            f"{name} requires the arguments {sorted(unknown)}; available are "
            f"{sorted(available)}. Arguments are matched by name: rename them or give "
            "them defaults."
        )
    return fn(**{p.name: available[p.name] for p in parameters if p.name in available})
