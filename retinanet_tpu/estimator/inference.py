"""The forward pass of evaluation and prediction, which runs on every replica."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import spec, train_step


class ForwardPass:
    """A traced model_fn: batches -> NumPy arrays of the global batch.

    Attributes:
      metric_fn: The metric_fn of eval_metrics; None before the first batch is traced.
      replica_fn: batch -> (loss, tensors), the function that every replica runs.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model_fn: spec.ModelFn,
        mode: str,
        params_fn: spec.ParamsFn,
        *,
        network: tf.Module,
        jit_compile: bool,
    ):
        """Initializes the forward pass.

        Args:
          strategy: The strategy whose replicas run it.
          model_fn: The model_fn of the estimator.
          mode: EVAL or PREDICT.
          params_fn: Returns the params of model_fn.
          network: The network of model_fn.
          jit_compile: Whether to compile it with XLA.
        """
        self.metric_fn: spec.MetricFn | None = None
        self._strategy = strategy
        self._is_eval = mode == spec.ModeKeys.EVAL

        def replica_forward(batch):
            result = train_step.call_model_fn(
                model_fn, batch, mode, params=params_fn(), network=network
            )
            if not self._is_eval:
                return tf.zeros([]), result.predictions
            self.metric_fn, tensors = result.eval_metrics or (None, ())
            return replicas.cross_replica_mean(result.loss), tensors

        self.replica_fn = replica_forward
        compiled = tf.function(
            replica_forward, autograph=False, jit_compile=jit_compile or None
        )
        self._forward = tf.function(lambda batch: strategy.run(compiled, args=(batch,)))

    def __call__(self, batch: Any) -> tuple[float, Any]:
        """Returns the loss, and the eval tensors or predictions of all replicas."""
        loss, tensors = self._forward(batch)
        joined = tf.nest.map_structure(
            lambda t: np.concatenate(self._local(t)), tensors
        )
        return float(self._local(loss)[0]), joined

    def _local(self, value):
        return [v.numpy() for v in self._strategy.experimental_local_results(value)]


class EvaluatedBatches:
    """An iterator over the eval tensors of batches, which records their losses.

    metric_fn reads the batches while they are computed, so that they need not fit in
    memory together.

    Attributes:
      losses: The losses of the batches that were read.
    """

    def __init__(self, outputs: Iterator[tuple[float, Any]]):
        """Initializes the iterator.

        Args:
          outputs: The (loss, tensors) of each batch.
        """
        self.losses: list[float] = []
        self._outputs = outputs

    def __iter__(self) -> "EvaluatedBatches":
        """Returns the iterator itself."""
        return self

    def __next__(self) -> Any:
        """Returns the tensors of the next batch."""
        loss, tensors = next(self._outputs)
        self.losses.append(loss)
        return tensors
