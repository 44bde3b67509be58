"""The strategy of the PJRT engine: its replicas, and their batches on the host."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, optional_packages
from retinanet_tpu.estimator.cluster import pjrt_workers, worker_group
from retinanet_tpu.startup import checks
from retinanet_tpu.xla import lower

if TYPE_CHECKING:
    from retinanet_tpu.xla import pjrt


class PjrtStrategy(lower.AheadOfTimeStrategy):
    """The replicas of an XLA program, one on each device of PJRT.

    Its variables are on the host. `strategy.run` does not exist: the engine lowers the
    function of a replica to a program, and PJRT runs the program.

    Attributes:
      devices: The devices of all workers.
      workers: The processes that train together.
    """

    def __init__(
        self,
        devices: pjrt.Devices,
        workers: worker_group.Workers = worker_group.SINGLE_WORKER,
    ):
        """Initializes the strategy.

        Args:
          devices: The devices of all workers.
          workers: The processes that train together.
        """
        super().__init__(devices.count)
        self.devices = devices
        self.workers = workers

    def distribute_datasets_from_function(
        self,
        dataset_fn: Callable[[tf.distribute.InputContext], tf.data.Dataset],
        options: Any = None,
    ) -> HostBatches:
        """Returns the batches of this worker's replicas.

        Args:
          dataset_fn: Returns the dataset of this worker, whose elements are the batches
            of its replicas in turn.
          options: Not used; for compatibility with tf.distribute.
        Raises:
          UserError: A batch has no static shape.
        """
        del options
        context = tf.distribute.InputContext(
            num_input_pipelines=self.workers.count,
            input_pipeline_id=self.workers.index,
            num_replicas_in_sync=self.num_replicas_in_sync,
        )
        return HostBatches(dataset_fn(context), self.devices.num_local)


class HostBatch(NamedTuple):
    """The batches of a step, on the host.

    Attributes:
      shares: The NumPy arrays of the batch of each local replica, flat.
      element_spec: The specs of the batch of one replica.
    """

    shares: list[list[np.ndarray]]
    element_spec: Any


class HostBatches:
    """The batches of several replicas, on the host."""

    def __init__(self, dataset: tf.data.Dataset, num_replicas: int):
        """Initializes the batches.

        Args:
          dataset: The dataset whose elements are the batches of the replicas in turn.
          num_replicas: The number of replicas.
        Raises:
          UserError: A batch has no static shape, which an XLA program requires.
        """
        self._element_spec = dataset.element_spec
        self._dataset = dataset
        self._num_replicas = num_replicas
        for spec in tf.nest.flatten(self._element_spec):
            if not spec.shape.is_fully_defined():
                raise errors.UserError(
                    f"input_fn returns batches of the shape {spec.shape}; an XLA "
                    "program requires static shapes: use "
                    "dataset.batch(…, drop_remainder=True)."
                )

    def __iter__(self) -> HostIterator:
        """Returns an iterator over the steps."""
        return HostIterator(iter(self._dataset), self._num_replicas, self._element_spec)


class HostIterator:
    """An iterator over the batches of each step."""

    def __init__(self, iterator: Iterator[Any], num_replicas: int, element_spec: Any):
        """Initializes the iterator.

        Args:
          iterator: Yields the batches of the replicas in turn.
          num_replicas: The number of replicas.
          element_spec: The specs of the batch of one replica.
        """
        self._iterator = iterator
        self._num_replicas = num_replicas
        self._element_spec = element_spec

    def __iter__(self) -> HostIterator:
        """Returns the iterator itself."""
        return self

    def __next__(self) -> HostBatch:
        """Returns the batches of the next step."""
        batches = [next(self._iterator) for _ in range(self._num_replicas)]
        shares = [[t.numpy() for t in tf.nest.flatten(batch)] for batch in batches]
        return HostBatch(shares, self._element_spec)


def make(
    device: Literal["cpu", "gpu", "tpu"],
    num_devices: int | None,
    compilation_cache: str,
    *,
    single_process: bool,
) -> PjrtStrategy:
    """Starts PJRT's devices of this process, and connects all workers.

    The workers are those in TF_CONFIG, or the hosts of a TPU slice.

    Args:
      device: The kind of devices.
      num_devices: The number of devices of this process; None for all, or for one CPU.
      compilation_cache: The directory of compiled programs; "" for none.
      single_process: Whether to ignore other workers.
    Raises:
      UserError: There are fewer devices, or a package is missing or in the way.
      LostError: The workers did not all connect.
    """
    checks.check_no_tpu_build()
    pjrt = optional_packages.optional_import(
        "retinanet_tpu.xla.pjrt",
        f"xla-{device}",
        needed_by="make_strategy.engine = 'pjrt'",
        package="jax",
    )
    chief = None if single_process else pjrt_workers.connect(pjrt, device)
    cache = os.path.expanduser(compilation_cache) or None
    devices = pjrt.connect(device, num_devices, cache_dir=cache)
    if chief is None or pjrt.process_count() == 1:
        return PjrtStrategy(devices)
    return PjrtStrategy(devices, pjrt_workers.PjrtWorkers(pjrt, chief))
