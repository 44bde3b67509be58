"""What model_fn and input_fn receive and return, by TPUEstimator's names."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from retinanet_tpu import errors


class ModeKeys:
    """What a call of model_fn is for."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


class TPUEstimatorSpec(NamedTuple):
    """What model_fn returns.

    Attributes:
      mode: the ModeKeys it was called with.
      predictions: PREDICT: any nest of tensors [B, ...].
      loss: TRAIN and EVAL: float32 scalar. The loss of the global batch is its mean
        over replicas.
      scalars: numbers to log, by name, in the order to log them; logged as the mean
        over replicas and over the steps of a loop.
      eval_metrics: EVAL: (metric_fn, tensors). `tensors` is a nest of tensors [B, ...];
        metric_fn(batches) runs on the host, iterates over that nest as NumPy arrays of
        the global batch, and returns a dict: floats become scalars, uint8 [n, H, W, 3]
        images, a nested dict goes to eval.jsonl only.
    """

    mode: str
    predictions: Any = None
    loss: tf.Tensor | None = None
    scalars: Mapping[str, tf.Tensor] = {}
    eval_metrics: tuple[Callable, Any] | None = None


class TPUContext(NamedTuple):
    """Which part of the input this host feeds: `params["context"]` of an input_fn.

    Attributes:
      num_replicas: of the whole job; each takes one batch a step.
      num_hosts: input pipelines that share the data.
      current_host: which of them this is, from 0.
      first_step: of how many steps the batches are used up or to be passed over; above
        0 in a resumed run.
    """

    num_replicas: int
    num_hosts: int
    current_host: int
    first_step: int = 0

    @property
    def num_of_replicas_per_host(self) -> int:
        """Batches that this host delivers for one step."""
        return self.num_replicas // self.num_hosts


class TrainSpec(NamedTuple):
    """What to train, up to an absolute `max_steps`, earlier runs included."""

    input_fn: Callable
    max_steps: int
    saving_listeners: tuple[Callable, ...] = ()


class EvalSpec(NamedTuple):
    """What to score, and when.

    Attributes:
      input_fn: gives one finite pass over the data.
      steps: batches to score, None for all of them.
      name: the results go to `eval_<name>/`, without a name to `eval/`.
      every_steps: score each time this many steps were trained, besides the end; None
        for the end only. A multiple of save_checkpoints_steps.
      exporters: see exporters.py; each may export what was scored, to export/<name>/.
    """

    input_fn: Callable
    steps: int | None = None
    name: str | None = None
    every_steps: int | None = None
    exporters: tuple[Any, ...] = ()


class Serving(NamedTuple):
    """What serving_fn makes of a network: what an export writes.

    Attributes:
      module: holds all variables that the signatures use.
      signatures: by name; `serving_default` is the one that servers call. Without any,
        no SavedModel is written.
      assets_extra: texts by file name, for the directory assets.extra.
      finish_fn: called with the directory, the path of the checkpoint and its scores
        or None, before the export is committed. It may add files. If it raises, there
        is no export.
    """

    module: tf.Module
    signatures: Mapping[str, Callable]
    assets_extra: Mapping[str, str] = {}
    finish_fn: Callable[[str, str, Mapping[str, Any] | None], None] | None = None


def call_by_name(fn: Callable, **available: Any) -> Any:
    """Calls fn with those of the available arguments that its signature names.

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
            f"{name} asks for {sorted(unknown)}; it can have {sorted(available)}. "
            "Arguments are matched by name: rename them or give them defaults."
        )
    return fn(**{p.name: available[p.name] for p in parameters if p.name in available})
