"""Gives every test eight logical CPUs, so that replicas need no accelerator."""

import gc
import os
import signal

# LLVM's share of compiling a train step is two thirds, and changes nothing tested here.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# The same number of devices for PJRT, of which tests use the first ones. TensorFlow
# imports jax, which reads these variables.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")

# Under nohup, SIGHUP would be ignored here and in all that the tests start.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_configure(config):
    """Configures TensorFlow in each process that runs tests."""
    # The controller of pytest-xdist runs none, and its workers wait for it.
    if config.getoption("dist", "no") == "no":
        _configure_tensorflow()


def _configure_tensorflow():
    from retinanet_tpu.startup import tensorflow_import

    tensorflow_import.run()  # Without Keras and jax, which few tests use.
    import tensorflow as tf

    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0],
        [tf.config.LogicalDeviceConfiguration()] * 8,
    )
    # The graph optimizer takes longer than the few steps of a test. The commands that
    # tests run as processes have it.
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})


def pytest_collection_finish():
    """Excludes the imported modules from garbage collection, which tracing causes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)
