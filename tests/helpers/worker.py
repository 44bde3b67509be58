"""Runs a module of the package as a worker with several logical CPUs as replicas.

  python worker.py NUM_DEVICES retinanet_tpu.train --flags…

TensorFlow uses one CPU of each worker. This script makes it use NUM_DEVICES logical
CPUs, as it does with GPUs. The argument may also be a file instead of a module.
"""

import os
import runpy
import sys

import tensorflow as tf
from tensorflow.python.distribute import collective_all_reduce_strategy


def use_logical_cpus(num_devices: int) -> None:
    """Makes logical CPUs, all of which the strategy of several workers uses."""

    def local_devices(self, resolver, worker):
        return tuple(f"{worker}/device:CPU:{i}" for i in range(num_devices)), "CPU"

    extended = collective_all_reduce_strategy.CollectiveAllReduceExtended
    extended._initialize_local_devices = local_devices
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * num_devices,
    )


if __name__ == "__main__":
    use_logical_cpus(int(sys.argv[1]))
    target, sys.argv = sys.argv[2], sys.argv[2:]
    if os.path.exists(target):
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
