"""The processes that PJRT connects: workers in TF_CONFIG, or hosts of a TPU slice."""

import atexit
import contextlib
import os
import time
from collections.abc import Iterator
from types import ModuleType

import numpy as np
from absl import logging

from retinanet_tpu.estimator import waits
from retinanet_tpu.estimator.cluster import liveness, preemption, worker_group
from retinanet_tpu.exit_codes import ExitCode

_CONNECT_SECS = 300
# Shorter than the delay of an abort, and enough to record the end in run_state.json.
_EXIT_SECS = 4


def connect(pjrt: ModuleType, device: str) -> str | None:
    """Connects the workers in TF_CONFIG, or the hosts of a TPU slice.

    Args:
      pjrt: The module `xla.pjrt`.
      device: The kind of devices.

    Returns:
      The host of the first worker; "" if it is known after the connection, and None for
      a single worker.
    Raises:
      LostError: They did not all connect.
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
