"""Where the step runs: one TPU, a pod, GPUs of one or several machines, or CPUs."""

import contextlib
from typing import Literal

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.cluster import preemption, tpu_nodes, worker_group


def make_strategy(
    device: Literal["cpu", "gpu", "tpu"] = "cpu",
    *,
    tpu: str = "local",
    tpu_zone: str | None = None,
    tpu_project: str | None = None,
    tpu_wait_secs: float = 1200,
    may_change_tpu_version: bool = False,
    num_devices: int | None = None,
    single_process: bool = False,
):
    """Returns the tf.distribute strategy for a kind of device.

    Args:
      device: "tpu", "gpu" or "cpu".
      tpu: "local" on a TPU VM of one host; else a TPU's name or grpc:// address, also
        of a pod, whose one coordinator runs the program. Only a name is looked up.
      tpu_zone: of a TPU by name; None for that of this VM.
      tpu_project: of a TPU by name; None for that of this VM.
      tpu_wait_secs: how long a TPU by name may take to be ready.
      may_change_tpu_version: a TPU Node that runs another TensorFlow is restarted with
        ours, which ends whatever runs on it.
      num_devices: GPUs or logical CPUs to use, None for every GPU or one CPU; of each
        machine where TF_CONFIG names several.
      single_process: pass TF_CONFIG over; of who only looks at what workers train.
    Raises:
      UserError: no such kind, fewer devices than asked for, or a TF_CONFIG that makes
        no sense; no TPU of that name, or not one for us.
      TimeoutError: the TPU was not ready in time.
      LostError: the workers that TF_CONFIG names did not come together.
    """
    if device == "tpu":
        return _tpu_strategy(
            tpu,
            zone=tpu_zone,
            project=tpu_project,
            wait_secs=tpu_wait_secs,
            may_change_version=may_change_tpu_version,
        )
    if device not in ("gpu", "cpu"):
        raise errors.UserError(
            f"make_strategy.device is '{device}'; use 'tpu', 'gpu' or 'cpu'."
        )
    if device == "cpu":
        _hide_gpus()
    if not single_process and worker_group.count_in_environment() > 1:
        return _strategy_of_workers(device, num_devices)
    found = tf.config.list_logical_devices(device.upper())
    wanted = num_devices or (len(found) if device == "gpu" else 1)
    if not found or wanted > len(found):
        raise errors.UserError(
            f"make_strategy asks for {wanted or 'a'} {device.upper()}, but TensorFlow "
            f"sees {len(found)}; set make_strategy.num_devices or make_strategy.device."
        )
    names = [f"{device}:{i}" for i in range(wanted)]
    if wanted == 1:
        return tf.distribute.OneDeviceStrategy(names[0])
    # CPU stand-ins of several sizes in one process would mix up collective groups.
    exchange = tf.distribute.ReductionToOneDevice() if device == "cpu" else None
    return tf.distribute.MirroredStrategy(names, cross_device_ops=exchange)


def _strategy_of_workers(device, num_devices):
    """Joins the workers that TF_CONFIG names, waiting until all are there."""
    if device == "gpu":
        _show_gpus(num_devices)
    kinds = tf.distribute.experimental.CommunicationImplementation
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=kinds.NCCL if device == "gpu" else kinds.RING
    )
    logging.info("Waiting for all %d workers", worker_group.count_in_environment())
    try:
        with preemption.handlers_kept():  # TensorFlow takes SIGTERM for itself.
            made = tf.distribute.MultiWorkerMirroredStrategy(
                communication_options=options
            )
    except worker_group.WORKER_LOST_ERRORS as error:
        raise worker_group.LostError(
            "The workers that TF_CONFIG names did not all come, or one left again; "
            f"start the same command on all of them. TensorFlow says: {error}"
        ) from error
    except RuntimeError as error:  # TensorFlow joins them before it computes anything.
        raise errors.UserError(
            f"make_strategy must come first in a process: {error}"
        ) from error
    tf.get_logger().setLevel("WARNING")  # Else each exchange of a step is a line.
    found = len(made.extended.worker_devices)
    if num_devices not in (None, found):
        raise errors.UserError(
            f"make_strategy.num_devices is {num_devices}, but TensorFlow takes {found} "
            f"{device.upper()} of each worker; leave num_devices out."
        )
    return made


def make_deterministic() -> None:
    """Makes a step on CPUs give the same bits again, in this whole process.

    TensorFlow's arithmetic optimizer joins additions to one of many terms, and of more
    than two terms the threads add first what is ready first. Nothing else was found to
    differ between runs; enable_op_determinism does not reach this.
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def _show_gpus(num_devices):
    """Leaves the first GPUs in sight, for workers take all that they see."""
    found = tf.config.list_physical_devices("GPU")
    if len(found) < (num_devices or 1):
        raise errors.UserError(
            f"make_strategy asks for {num_devices or 'a'} GPU of each worker, but "
            f"TensorFlow sees {len(found)} here; set make_strategy.num_devices or "
            "make_strategy.device."
        )
    tf.config.set_visible_devices(found[:num_devices], "GPU")


def _hide_gpus():
    """Leaves a GPU's memory to the trainer beside which this may be an evaluator."""
    with contextlib.suppress(RuntimeError):  # TensorFlow has started: too late.
        tf.config.set_visible_devices([], "GPU")


def _tpu_strategy(tpu, **look_up):
    """Connects to a TPU; on a TPU VM ('local') there is nothing to connect to."""
    is_local = tpu == "local"
    is_name = not is_local and not tpu.startswith("grpc://")
    address = tpu_nodes.wait_until_ready(tpu, **look_up) if is_name else tpu
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(address)
    if not is_local:
        tf.config.experimental_connect_to_cluster(resolver)
    topology = tf.tpu.experimental.initialize_tpu_system(resolver)
    logging.info("TPU %s: mesh %s", tpu, topology.mesh_shape)
    return tf.distribute.TPUStrategy(resolver)
