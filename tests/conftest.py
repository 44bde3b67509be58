"""Gives every test eight logical CPUs, so that replicas need no accelerator."""

import os
import signal

# LLVM's share of compiling a train step is two thirds, and changes nothing tested here.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# The same number of devices for PJRT, of which tests use the first ones. TensorFlow
# imports jax, which reads these variables.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

import tensorflow as tf

# Under nohup, SIGHUP would be ignored here and in all that the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0],
    [tf.config.LogicalDeviceConfiguration()] * 8,
)
