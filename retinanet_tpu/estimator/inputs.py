"""The params of input_fn and model_fn, and the distributed datasets."""

import copy
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.estimator import run_config, spec


class Inputs:
    """The params and the distributed dataset of each mode."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        params: Mapping[str, Any],
        batch_sizes: Mapping[str, int | None],
    ):
        """Initializes the inputs.

        Args:
          strategy: The strategy whose replicas share a batch.
          params: The params of the user.
          batch_sizes: The global batch size of each mode, or None.
        Raises:
          UserError: A batch size is not a multiple of the replicas, or a param is
            reserved.
        """
        self._strategy = strategy
        self._params = dict(params)
        self._batch_sizes = dict(batch_sizes)
        if reserved := {"batch_size", "context"} & set(params):
            raise errors.UserError(
                f"params contains {sorted(reserved)}, which the estimator sets; "
                "rename them."
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
        """Returns the number of examples of a step over all replicas.

        Raises:
          UserError: The mode has no batch size.
        """
        size = self._batch_sizes[mode]
        if size is None:
            raise errors.UserError(
                f"Mode '{mode}' has no batch size; pass the estimator the one of the "
                "mode, such as train_batch_size."
            )
        return size

    def plain_params(self) -> dict[str, Any]:
        """Returns a copy of the user's params, for functions outside the step."""
        return copy.deepcopy(self._params)

    def params(self, mode: str, **more: Any) -> dict[str, Any]:
        """Returns a copy of the params, with batch_size per replica."""
        share = self.batch_size(mode) // self._strategy.num_replicas_in_sync
        return self.plain_params() | {"batch_size": share} | more

    def dataset(
        self, input_fn: spec.InputFn, mode: str, first_step: int = 0
    ) -> tf.distribute.DistributedDataset:
        """Returns the distributed dataset whose elements have a batch per replica.

        Args:
          input_fn: Returns the dataset of one input pipeline.
          mode: One of spec.ModeKeys.
          first_step: The number of steps whose batches are used or skipped.
        """

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
                # Otherwise the hosts synchronize at each step, to detect the end.
                endless = tf.data.experimental.assert_cardinality(
                    tf.data.INFINITE_CARDINALITY
                )
                dataset = dataset.apply(endless)
            return dataset

        return self._strategy.distribute_datasets_from_function(dataset_fn)
