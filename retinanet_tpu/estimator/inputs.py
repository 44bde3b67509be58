"""What input_fn and model_fn are given: params, shares of batches, this host's part."""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator import run_config, spec


class Inputs:
    """Hands out params and distributed datasets for each mode."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        params: Mapping[str, Any],
        batch_sizes: Mapping[str, int | None],
    ):
        """Takes the user's params and the global batch size of each mode.

        Raises:
          UserError: a batch size that the replicas cannot divide, or a reserved param.
        """
        self._strategy, self._params = strategy, dict(params)
        self._batch_sizes = dict(batch_sizes)
        if reserved := {"batch_size", "context"} & set(params):
            raise errors.UserError(
                f"params has {sorted(reserved)}, which the estimator sets."
            )
        num_replicas = strategy.num_replicas_in_sync
        for mode, size in batch_sizes.items():
            if size is not None:
                run_config.check_count(f"The {mode} batch", size)
            if size is not None and size % num_replicas:
                raise errors.UserError(
                    f"The {mode} batch of {size} does not divide by {num_replicas} "
                    "replicas; choose a multiple."
                )

    def batch_size(self, mode: str) -> int:
        """Returns the examples of a step over all replicas.

        Raises:
          UserError: none was given for this mode.
        """
        size = self._batch_sizes[mode]
        if size is None:
            raise errors.UserError(
                f"Mode '{mode}' needs its batch size: none was given."
            )
        return size

    def plain_params(self) -> dict[str, Any]:
        """Returns a copy of the user's params, for functions outside the step."""
        return copy.deepcopy(self._params)

    def params(self, mode: str, **more: Any) -> dict[str, Any]:
        """Returns a copy of the params, with batch_size per replica."""
        share = self.batch_size(mode) // self._strategy.num_replicas_in_sync
        return self.plain_params() | {"batch_size": share} | more

    def dataset(self, input_fn: Callable, mode: str, first_step: int = 0):
        """Returns the distributed dataset that gives every replica its batches."""

        def dataset_fn(context):
            host = spec.TPUContext(
                context.num_replicas_in_sync,
                context.num_input_pipelines,
                context.input_pipeline_id,
                first_step,
            )
            dataset = spec.call_by_name(
                input_fn, params=self.params(mode, context=host), mode=mode
            )
            if host.num_hosts > 1 and mode == spec.ModeKeys.TRAIN:
                # Else each step begins with the hosts asking each other for its end.
                endless = tf.data.experimental.assert_cardinality(
                    tf.data.INFINITE_CARDINALITY
                )
                dataset = dataset.apply(endless)
            return dataset

        return self._strategy.distribute_datasets_from_function(dataset_fn)
