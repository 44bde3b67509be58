"""The forward pass of evaluation and prediction, on every replica alike."""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import spec, train_step


class ForwardPass:
    """A traced model_fn that takes batches and gives NumPy arrays of the global batch.

    Attributes:
      metric_fn: the host half of eval_metrics; known once the first batch was traced.
      replica_fn: batch -> (loss, tensors), what every replica runs.
    """

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        model_fn: Callable,
        mode: str,
        params_fn: Callable,
        *,
        network: tf.Module,
        jit_compile: bool,
    ):
        self.metric_fn = None
        self._strategy = strategy
        self._is_eval = mode == spec.ModeKeys.EVAL

        def replica_forward(batch):
            result = train_step.call_model_fn(
                model_fn, batch, mode, params_fn(), network
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
        """Returns the loss, and eval tensors or predictions of all replicas, joined."""
        loss, tensors = self._forward(batch)
        joined = tf.nest.map_structure(
            lambda t: np.concatenate(self._local(t)), tensors
        )
        return float(self._local(loss)[0]), joined

    def _local(self, value):
        return [v.numpy() for v in self._strategy.experimental_local_results(value)]
