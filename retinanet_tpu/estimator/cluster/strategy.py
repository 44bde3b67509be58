"""Makes tf.distribute strategies for TPUs, pods, GPUs, several machines and CPUs."""

import contextlib
from typing import Literal

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.cluster import (
    pjrt_strategy,
    preemption,
    tpu_nodes,
    worker_group,
)


def make_strategy(
    device: Literal["cpu", "gpu", "tpu"] = "cpu",
    *,
    engine: Literal["tf.distribute", "pjrt"] = "tf.distribute",
    tpu: str = "local",
    tpu_zone: str | None = None,
    tpu_project: str | None = None,
    tpu_wait_secs: float = 1200,
    may_change_tpu_version: bool = False,
    num_devices: int | None = None,
    compilation_cache: str = "~/.cache/retinanet_tpu",
    single_process: bool = False,
) -> tf.distribute.Strategy:
    """Returns the tf.distribute strategy for a kind of device.

    Args:
      device: The kind: "tpu", "gpu" or "cpu".
      engine: What runs the steps: "tf.distribute", or "pjrt" for one XLA program of all
        replicas, which needs an extra [xla-…] and any TensorFlow, such as that for
        CPUs.
      tpu: The TPU: "local" on a TPU VM of one host, else a name or a grpc:// address.
        For a pod, one coordinator runs the program. Only names are looked up in
        Google Cloud.
      tpu_zone: The zone of a TPU given by name; None for the zone of this VM.
      tpu_project: The project of a TPU given by name; None for that of this VM.
      tpu_wait_secs: The longest time until a TPU given by name is ready, in seconds.
      may_change_tpu_version: Whether a TPU Node that runs another version of TensorFlow
        may be restarted with ours, which ends all programs on it.
      num_devices: The number of GPUs or logical CPUs; None for every GPU or one CPU. If
        TF_CONFIG names several machines, it is the number per machine.
      compilation_cache: The directory in which the engine "pjrt" keeps compiled
        programs; "" for none.
      single_process: Whether to ignore TF_CONFIG; for evaluators of a run that several
        workers train.
    Raises:
      UserError: The kind does not exist, there are fewer devices than requested,
        TF_CONFIG is invalid, or the TPU does not exist or is not accessible.
      TimeoutError: The TPU was not ready in time.
      LostError: The workers in TF_CONFIG did not all connect.
    """
    if device not in ("tpu", "gpu", "cpu"):
        raise errors.UserError(
            f"make_strategy.device is '{device}'; use 'tpu', 'gpu' or 'cpu'."
        )
    if engine == "pjrt":
        _hide_gpus()  # TensorFlow must leave their memory to PJRT.
        return pjrt_strategy.make(
            device, num_devices, compilation_cache, single_process=single_process
        )
    if engine != "tf.distribute":
        raise errors.UserError(
            f"make_strategy.engine is '{engine}'; use 'tf.distribute' or 'pjrt'."
        )
    if device == "tpu":
        return _tpu_strategy(
            tpu,
            zone=tpu_zone,
            project=tpu_project,
            wait_secs=tpu_wait_secs,
            may_change_version=may_change_tpu_version,
        )
    if device == "cpu":
        _hide_gpus()
    if not single_process and worker_group.count_in_environment() > 1:
        return _strategy_of_workers(device, num_devices)
    num_available = len(tf.config.list_logical_devices(device.upper()))
    _check_available(device, num_devices, num_available)
    count = num_devices or (num_available if device == "gpu" else 1)
    names = [f"{device}:{i}" for i in range(count)]
    if count == 1:
        return tf.distribute.OneDeviceStrategy(names[0])
    # Tests make strategies of several sizes from logical CPUs in one process. The
    # default collectives would confuse their groups.
    cross_device_ops = tf.distribute.ReductionToOneDevice() if device == "cpu" else None
    return tf.distribute.MirroredStrategy(names, cross_device_ops=cross_device_ops)


def _strategy_of_workers(
    device: str, num_devices: int | None
) -> tf.distribute.Strategy:
    """Connects to the workers in TF_CONFIG; waits until all are connected."""
    if device == "gpu":
        _limit_gpus(num_devices)
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if device == "gpu" else kinds.RING
    )
    logging.info("Waiting for all %d workers", worker_group.count_in_environment())
    try:
        # TensorFlow installs a handler for SIGTERM.
        with preemption.preserve_signal_handlers():
            strategy = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=options
            )
    except worker_group.WORKER_LOST_ERRORS as error:
        raise worker_group.LostError(
            "The workers in TF_CONFIG did not all connect, or one was lost again; "
            f"start the same command on all of them. TensorFlow's error: {error}"
        ) from error
    except RuntimeError as error:  # TensorFlow is already initialized.
        raise errors.UserError(
            "make_strategy must be called before TensorFlow computes anything in this "
            f"process: {error}"
        ) from error
    # At level INFO TensorFlow logs a line for each collective of a step.
    tf.get_logger().setLevel("WARNING")
    num_used = len(strategy.extended.worker_devices)
    if num_devices not in (None, num_used):
        raise errors.UserError(
            f"make_strategy.num_devices is {num_devices}, but TensorFlow uses "
            f"{num_used} {device.upper()} of each worker; omit num_devices."
        )
    return strategy


def make_deterministic() -> None:
    """Makes steps on CPUs bit-exact between runs, for this whole process.

    TensorFlow's graph optimizer fuses additions into one operation of many terms. With
    more than two terms, its threads add the terms in the order in which they are ready.
    No other difference between runs was found. enable_op_determinism does not change
    this operation. Without the optimizer a step on CPUs takes as long, and the first
    step starts earlier.
    """
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def _check_available(
    device: str, num_devices: int | None, num_available: int, owner: str = ""
) -> None:
    """Raises a UserError if TensorFlow has fewer devices than requested, or none."""
    if num_available >= (num_devices or 1):
        return
    build = (
        " A TensorFlow for CPUs has no GPU: name device/xla_gpu.gin and "
        "pip install -e '.[xla-gpu]', or name device/cpu.gin."
    )
    raise errors.UserError(
        f"make_strategy requests {num_devices or 'a'} {device.upper()}{owner}, but "
        f"TensorFlow has {num_available} here; set make_strategy.num_devices or "
        f"make_strategy.device.{build if device == 'gpu' else ''}"
    )


def _limit_gpus(num_devices: int | None) -> None:
    """Makes only the first GPUs visible, because workers use all visible ones."""
    gpus = tf.config.list_physical_devices("GPU")
    _check_available("gpu", num_devices, len(gpus), " of each worker")
    tf.config.set_visible_devices(gpus[:num_devices], "GPU")


def _hide_gpus() -> None:
    """Hides the GPUs, because the trainer on this machine may need their memory."""
    with contextlib.suppress(RuntimeError):  # TensorFlow is already initialized.
        tf.config.set_visible_devices([], "GPU")


def _tpu_strategy(
    tpu: str,
    *,
    zone: str | None,
    project: str | None,
    wait_secs: float,
    may_change_version: bool,
) -> tf.distribute.Strategy:
    """Connects to a TPU; on a TPU VM ('local') no connection is needed.

    Raises:
      UserError: The machine has no TPU, or its TensorFlow is not the build for TPUs.
    """
    is_local = tpu == "local"
    is_name = not is_local and not tpu.startswith("grpc://")
    address = tpu
    if is_name:
        address = tpu_nodes.wait_until_ready(
            tpu,
            zone=zone,
            project=project,
            wait_secs=wait_secs,
            may_change_version=may_change_version,
        )
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
    if not is_local:
        tf.config.experimental_connect_to_cluster(resolver)
    try:
        topology = tf.tpu.experimental.initialize_tpu_system(resolver)
    except tf.errors.NotFoundError as error:
        raise errors.UserError(
            f"TensorFlow finds no TPU at '{tpu}'. Name the device file of this machine "
            "last: --gin_file=device/cpu.gin, device/xla_gpu.gin, or for a TPU with "
            "the extra [xla-tpu] device/xla_tpu.gin. TensorFlow's error: "
            f"{str(error).splitlines()[0]}"
        ) from error
    logging.info("TPU %s: mesh %s", tpu, topology.mesh_shape)
    return tf.distribute.TPUStrategy(resolver)
