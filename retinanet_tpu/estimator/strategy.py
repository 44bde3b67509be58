"""Where the step runs: one TPU, a pod, one or several GPUs, or CPUs."""

import contextlib

import tensorflow as tf
from absl import logging


def make_strategy(
    device: str = "cpu", *, tpu: str = "local", num_devices: int | None = None
):
    """Returns the tf.distribute strategy for a kind of device.

    Args:
      device: "tpu", "gpu" or "cpu".
      tpu: "local" on a TPU VM of one host; else a TPU's name or grpc:// address, also
        of a pod, whose one coordinator runs the program.
      num_devices: GPUs or logical CPUs to use, None for every GPU or one CPU.
    Raises:
      ValueError: no such kind, or fewer devices than asked for.
    """
    if device == "tpu":
        return _tpu_strategy(tpu)
    if device not in ("gpu", "cpu"):
        raise ValueError(
            f"make_strategy.device is '{device}'; use 'tpu', 'gpu' or 'cpu'."
        )
    if device == "cpu":
        _hide_gpus()
    found = tf.config.list_logical_devices(device.upper())
    wanted = num_devices or (len(found) if device == "gpu" else 1)
    if not found or wanted > len(found):
        raise ValueError(
            f"make_strategy asks for {wanted or 'a'} {device.upper()}, but TensorFlow "
            f"sees {len(found)}; set make_strategy.num_devices or make_strategy.device."
        )
    names = [f"{device}:{i}" for i in range(wanted)]
    if wanted == 1:
        return tf.distribute.OneDeviceStrategy(names[0])
    # CPU stand-ins of several sizes in one process would mix up collective groups.
    exchange = tf.distribute.ReductionToOneDevice() if device == "cpu" else None
    return tf.distribute.MirroredStrategy(names, cross_device_ops=exchange)


def make_deterministic() -> None:
    """Makes a step on CPUs give the same bits again, in this whole process.

    TensorFlow's arithmetic optimizer joins additions to one of many terms, and of more
    than two terms the threads add first what is ready first. Nothing else was found to
    differ between runs; enable_op_determinism does not reach this.
    """
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})


def _hide_gpus():
    """Leaves a GPU's memory to the trainer beside which this may be an evaluator."""
    with contextlib.suppress(RuntimeError):  # TensorFlow has started: too late.
        tf.config.set_visible_devices([], "GPU")


def _tpu_strategy(tpu):
    """Connects to a TPU; on a TPU VM ('local') there is nothing to connect to."""
    is_local = tpu == "local"
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu)
    if not is_local:
        tf.config.experimental_connect_to_cluster(resolver)
    topology = tf.tpu.experimental.initialize_tpu_system(resolver)
    logging.info("TPU %s: mesh %s", tpu, topology.mesh_shape)
    return tf.distribute.TPUStrategy(resolver)
