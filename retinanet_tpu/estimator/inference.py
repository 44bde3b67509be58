"""The forward pass of evaluation and prediction, which runs on every replica."""

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import spec, train_step


class ReplicaForward:
    """The forward pass of a replica, and the metric_fn that it returns.

    Attributes:
      metric_fn: The metric_fn of eval_metrics; None before `run` is traced.
    """

    def __init__(
        self,
        model_fn: spec.ModelFn,
        mode: str,
        params_fn: spec.ParamsFn,
        network: tf.Module,
    ):
        """Initializes the forward pass.

        Args:
          model_fn: The model_fn of the estimator.
          mode: EVAL or PREDICT.
          params_fn: Returns the params of model_fn.
          network: The network of model_fn.
        """
        self.metric_fn: spec.MetricFn | None = None
        self._model_fn = model_fn
        self._mode = mode
        self._params_fn = params_fn
        self._network = network

    def run(self, batch: Any) -> tuple[tf.Tensor, Any]:
        """Runs model_fn on the batch of a replica.

        Returns:
          The mean of the loss over replicas, and the eval tensors of the replica; or 0
          and its predictions.
        """
        result = train_step.call_model_fn(
            self._model_fn,
            batch,
            self._mode,
            params=self._params_fn(),
            network=self._network,
        )
        if self._mode != spec.ModeKeys.EVAL:
            return tf.zeros([]), result.predictions
        self.metric_fn, tensors = result.eval_metrics or (None, ())
        return replicas.cross_replica_mean(result.loss), tensors


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
