"""The devices of PJRT, the interface of all XLA devices, by jax's public interfaces.

This module and `jax_program` are the only ones that import jax, an optional package.
Other modules import them when they need them.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.experimental import multihost_utils, topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from retinanet_tpu import errors

# Without it, jax would convert int64 arguments to int32.
jax.config.update("jax_enable_x64", True)

_AXIS = "replica"
REPLICATED = PartitionSpec()
SHARDED = PartitionSpec(_AXIS)
# The status codes of an error after a device or another process was lost.
_LOST = ("ABORTED", "CANCELLED", "DEADLINE_EXCEEDED", "UNAVAILABLE")
# Words of errors with other codes after another process was lost.
_CONNECTION = ("gloo", "connection", "socket", "nccl", "coordination")
# Errors of CUDA's libraries when they cannot allocate memory.
_DEVICE_IN_USE = (
    "CUDA_ERROR_OUT_OF_MEMORY",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "DNN library initialization failed",
)
_NEVER_SECS = 86400


class DeviceLostError(ConnectionError):
    """A device or another process of the run was lost."""


class Devices:
    """The devices that run a program together, one replica on each.

    Attributes:
      platform: The kind of devices: "cpu", "gpu" or "tpu".
      count: The number of devices of all processes.
      num_local: The number of devices of this process.
      kind: The model of the devices, as PJRT names it.
      mesh: The devices as a jax.sharding.Mesh with one axis.
      replicated: The sharding of values that are equal on all devices.
      sharded: The sharding of values whose first axis is divided over the devices.
    """

    def __init__(
        self,
        devices: Sequence[jax.Device],
        platform: str,
        local: Sequence[jax.Device] = (),
    ):
        """Initializes the group.

        Args:
          devices: The devices in the order of the replicas; those of a process follow
            each other.
          platform: The kind of devices.
          local: The devices of this process; none to compile only.
        """
        self.platform = platform
        self.count = len(devices)
        self.kind = devices[0].device_kind
        self.mesh = Mesh(np.array(devices), (_AXIS,))
        self.replicated = NamedSharding(self.mesh, REPLICATED)
        self.sharded = NamedSharding(self.mesh, SHARDED)
        self.num_local = len(local)
        self._local = list(local)

    def replicate(self, values: Sequence[np.ndarray]) -> list[jax.Array]:
        """Returns arrays with the same value on each device.

        Args:
          values: The values, the same in all processes.
        """
        shares = [self._put(values, device) for device in self._local]
        return [
            jax.make_array_from_single_device_arrays(
                copies[0].shape, self.replicated, list(copies)
            )
            for copies in zip(*shares, strict=True)
        ]

    def shard(self, shares: Sequence[Sequence[np.ndarray]]) -> list[jax.Array]:
        """Returns arrays whose parts along the first axis lie on one device each.

        Args:
          shares: The parts of each local device: as many lists as local devices, all
            with one part of each array. Scalars must be equal.
        """
        on_devices = [
            self._put(share, device)
            for share, device in zip(shares, self._local, strict=True)
        ]
        return [self._join(list(parts)) for parts in zip(*on_devices, strict=True)]

    def fetch(self, arrays: Sequence[jax.Array]) -> list[np.ndarray]:
        """Returns copies of the first local part of each array, once all are computed.

        Raises:
          DeviceLostError: A device or another process was lost.
        """
        with translated_errors():
            for array in arrays:
                array.copy_to_host_async()
            # Copies, because an array of a CPU shares its memory with NumPy.
            return [np.array(array.addressable_data(0)) for array in arrays]

    def fetch_joined(self, arrays: Sequence[jax.Array]) -> list[np.ndarray]:
        """Returns copies of whole arrays, whose devices all belong to this process."""
        with translated_errors():
            return [np.array(array) for array in arrays]

    def _put(self, values, device):
        with translated_errors():
            return jax.device_put(list(values), device)

    def _join(self, parts):
        shape = parts[0].shape
        if not shape:
            return jax.make_array_from_single_device_arrays(
                shape, self.replicated, parts
            )
        return jax.make_array_from_single_device_arrays(
            (shape[0] * self.count, *shape[1:]), self.sharded, parts
        )


def connect(
    platform: str,
    num_devices: int | None = None,
    *,
    cache_dir: str | None = None,
) -> Devices:
    """Returns the devices of a platform; starts the platform in this process.

    Args:
      platform: The kind of devices: "cpu", "gpu" or "tpu".
      num_devices: The number of devices of this process; None for all, or for one CPU.
      cache_dir: The directory of compiled programs; None for no cache.
    Raises:
      UserError: There are fewer devices, or the platform is not available.
    """
    if cache_dir:
        _use_cache(cache_dir)
    with contextlib.suppress(RuntimeError):  # Already started, as in tests.
        jax.config.update("jax_platforms", "cuda" if platform == "gpu" else platform)
        if platform == "cpu" and (num_devices or 1) > jax.config.jax_num_cpu_devices:
            jax.config.update("jax_num_cpu_devices", num_devices or 1)
    try:
        local = jax.local_devices(backend=platform)
    except (RuntimeError, AssertionError) as error:  # jax asserts a plugin for GPUs.
        reason = f": {error}" if str(error) else ""
        raise errors.UserError(
            f"PJRT cannot start {platform.upper()} devices{reason}. Install the extra "
            f"with their plugin: pip install -e '.[xla-{platform}]'; or set "
            "make_strategy.device. If it is installed, this process sees no such "
            "device: check the driver (nvidia-smi) and the options of the container."
        ) from error
    count = num_devices or (1 if platform == "cpu" else len(local))
    if count > len(local):
        raise errors.UserError(
            f"make_strategy requests {count} {platform.upper()}, but PJRT has "
            f"{len(local)} in this process; set make_strategy.num_devices."
        )
    by_process: dict[int, list[jax.Device]] = {}
    for device in jax.devices(platform):
        by_process.setdefault(device.process_index, []).append(device)
    chosen = [d for _, own in sorted(by_process.items()) for d in own[:count]]
    return Devices(chosen, platform, local[:count])


def _use_cache(cache_dir: str) -> None:
    """Keeps compiled programs in a directory; logs a warning if it cannot be written.

    Args:
      cache_dir: A local directory, or one of a bucket.
    """
    if "://" in cache_dir:
        # XLA itself writes to disks only; jax writes to buckets too.
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    else:
        try:  # XLA fails on a GPU if it cannot write its cache.
            os.makedirs(cache_dir, exist_ok=True)
            tempfile.TemporaryFile(dir=cache_dir).close()
        except OSError as error:
            logging.warning(
                "Compiled programs are not kept: %s; set "
                "make_strategy.compilation_cache",
                error,
            )
            return
    jax.config.update("jax_compilation_cache_dir", cache_dir)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def connect_processes(
    coordinator: str | None, num_processes: int | None, index: int | None
) -> None:
    """Connects the processes of a run; call it before `connect`.

    Args:
      coordinator: The address of the first process, "host:port"; None if the platform
        knows all three, such as a TPU slice.
      num_processes: The number of processes.
      index: The index of this process.
    Raises:
      DeviceLostError: The processes did not all connect.
    """
    # Its log lines are misleading: the package handles preemption itself.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        # jax aborts a process after these times. The caller's monitor is faster.
        jax.distributed.initialize(
            coordinator,
            num_processes,
            index,
            initialization_timeout=_NEVER_SECS,
            heartbeat_timeout_seconds=_NEVER_SECS,
            shutdown_timeout_seconds=_NEVER_SECS,
        )
    except (RuntimeError, ValueError) as error:
        raise DeviceLostError(f"The processes did not all connect: {error}") from error


def disconnect_processes() -> None:
    """Waits until all processes call this, and disconnects them."""
    jax.distributed.shutdown()


def process_index() -> int:
    """Returns the index of this process among those of the run."""
    return jax.process_index()


def process_count() -> int:
    """Returns the number of processes of the run."""
    return jax.process_count()


def gather(number: float) -> np.ndarray:
    """Returns the numbers of all processes, float64 [count], once all called this.

    Raises:
      DeviceLostError: A process is lost.
    """
    with translated_errors():
        return np.atleast_1d(multihost_utils.process_allgather(np.float64(number)))


def topology(name: str, num_devices: int) -> Devices:
    """Returns devices of a TPU slice that this machine does not have, to compile for.

    Args:
      name: The name of the topology in libtpu, such as "v3:2x2x1".
      num_devices: The number of devices that run the program together.
    """
    # libtpu assumes hosts of four chips; only these topologies have fewer.
    bounds: Mapping[str, Any] = {}
    if name.endswith(":1x1"):
        bounds = {"chips_per_host_bounds": (1, 1, 1)}
    slice_of_devices = topologies.get_topology_desc(
        platform="tpu", topology_name=name, **bounds
    )
    return Devices(slice_of_devices.devices[:num_devices], "tpu")


@contextlib.contextmanager
def translated_errors() -> Iterator[None]:
    """Converts errors of the runtime into errors of this package.

    Raises:
      UserError: The devices have too little memory, or other processes use it.
      DeviceLostError: A device or another process was lost.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        message = str(error)
        if message.startswith("RESOURCE_EXHAUSTED"):
            raise errors.UserError(
                "The step needs more memory than a device has; lower BATCH_SIZE or "
                "TrainingPlan.eval_batch_per_replica, or end other processes that use "
                f"the device. The runtime's error: {message}"
            ) from error
        if any(word in message for word in _DEVICE_IN_USE):
            raise errors.UserError(
                "The GPU has too little memory to start; another process may use it "
                "(nvidia-smi). Give each process a GPU with CUDA_VISIBLE_DEVICES, or "
                "set XLA_PYTHON_CLIENT_PREALLOCATE=false for processes that share one. "
                f"The runtime's error: {message}"
            ) from error
        words = message.lower()
        is_alone = jax.process_count() == 1
        if is_alone and "nccl" in words:
            raise errors.UserError(
                "The GPUs of this machine cannot communicate; NCCL_DEBUG=INFO shows "
                "why. A container needs a large /dev/shm (docker run --shm-size=8g). "
                f"The runtime's error: {message}"
            ) from error
        is_connection = not is_alone and any(word in words for word in _CONNECTION)
        if message.startswith(_LOST) or is_connection:
            raise DeviceLostError(message) from error
        raise
