"""The strategy of the PJRT engine: its replicas, and their batches on the host."""

from __future__ import annotations

import atexit
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, optional_packages
from retinanet_tpu.estimator import waits
from retinanet_tpu.estimator.cluster import liveness, preemption, worker_group
from retinanet_tpu.exit_codes import ExitCode
from retinanet_tpu.startup import checks
from retinanet_tpu.xla import lower

if TYPE_CHECKING:
    from retinanet_tpu.xla import pjrt

_CONNECT_SECS = 300
# Shorter than the delay of an abort, and enough to record the end in run_state.json.
_EXIT_SECS = 4


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
    chief = None if single_process else _connect(pjrt, device)
    cache = os.path.expanduser(compilation_cache) or None
    devices = pjrt.connect(device, num_devices, cache_dir=cache)
    if chief is None or pjrt.process_count() == 1:
        return PjrtStrategy(devices)
    return PjrtStrategy(devices, PjrtWorkers(pjrt, chief))


def _connect(pjrt: ModuleType, device: str) -> str | None:
    """Connects the workers in TF_CONFIG, or the hosts of a TPU slice.

    Returns:
      The host of the first worker; "" if it is known after the connection, and None for
      a single worker.
    """
    members = worker_group.members_in_environment()
    is_slice = device == "tpu" and preemption.find_metadata_host() is not None
    if not members.addresses and not is_slice:
        return None
    liveness.delay_abort()
    try:
        with liveness.limit_start(_CONNECT_SECS):
            if not members.addresses:  # jax knows the hosts of Google Cloud's slices.
                pjrt.connect_processes(None, None, None)
                return ""
            count = len(members.addresses)
            logging.info("Waiting for all %d workers", count)
            pjrt.connect_processes(members.addresses[0], count, members.position)
            return members.addresses[0].rpartition(":")[0]
    except pjrt.DeviceLostError as error:
        raise worker_group.LostError(
            f"{error} Start the same command on all workers."
        ) from error


class PjrtWorkers(worker_group.Workers):
    """The processes that PJRT connects, and the monitor of their liveness.

    jax's own exit handler waits for all processes. It would wait forever for one that
    ended with an error. So a process ends with `close`, or without exit handlers.
    """

    def __init__(self, pjrt: ModuleType, chief_host: str):
        """Connects the monitors of all processes.

        Args:
          pjrt: The module `xla.pjrt`.
          chief_host: The host of the first process; "" to find it out.
        Raises:
          LostError: A process did not connect.
        """
        super().__init__(pjrt.process_count(), pjrt.process_index(), self._gather)
        self._pjrt = pjrt
        try:
            host = chief_host or _chief_address(pjrt)
            self._monitor = liveness.Liveness(
                self.count, self.index, host, pjrt.gather, _exit_soon
            )
        except ConnectionError as error:
            raise worker_group.LostError(f"{error}; restart all workers.") from error
        waits.exit_hooks.append(self._monitor.fail)
        atexit.register(self._fail)

    def check_connected(self) -> None:
        """Checks that no worker is lost, as far as this one knows.

        Raises:
          LostError: A worker is lost.
        """
        if self._monitor.is_lost:
            raise worker_group.LostError("Another worker was lost.")

    def close(self) -> None:
        """Waits until all workers have finished the run, and disconnects them."""
        self._pjrt.disconnect_processes()
        self._monitor.close()
        waits.exit_hooks.remove(self._monitor.fail)
        atexit.unregister(self._fail)

    def _gather(self, number: float) -> np.ndarray:
        with lost_workers():
            return self._pjrt.gather(number)

    def _fail(self) -> None:
        """Ends a process that leaves the run with an uncaught error."""
        self._monitor.fail()
        os._exit(ExitCode.FAILED)


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """Converts the loss of a device or a process into that of a worker.

    Raises:
      LostError: PJRT reports the loss.
    """
    from retinanet_tpu.xla import pjrt

    try:
        yield
    except pjrt.DeviceLostError as error:
        raise worker_group.LostError(
            f"A device or another worker was lost; start the run again: {error}"
        ) from error


def _exit_soon(index: int) -> None:
    """Ends this process if its main thread has not done so, because it waits in C++."""
    time.sleep(_EXIT_SECS)
    liveness.exit_preempted(index)


def _chief_address(pjrt: ModuleType) -> str:
    """Returns the IPv4 address of the first process, on a VM of Google Cloud."""
    own = "0.0.0.0"
    if host := preemption.find_metadata_host():
        path = "instance/network-interfaces/0/ip"
        own = preemption.read_metadata(host, path) or own
    numbers = [pjrt.gather(float(part)) for part in own.split(".")]
    return ".".join(str(int(number[0])) for number in numbers)
