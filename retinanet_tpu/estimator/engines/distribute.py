"""The engine of tf.distribute: TensorFlow runs the replicas of a strategy."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.cluster import worker_group
from retinanet_tpu.estimator.engines import engine


class DistributeEngine:
    """The engine of a tf.distribute strategy.

    Attributes:
      workers: The processes that train together.
    """

    def __init__(self, strategy: tf.distribute.Strategy, *, jit_compile: bool):
        """Initializes the engine.

        Args:
          strategy: The strategy.
          jit_compile: Whether to compile steps with XLA, if the strategy allows it. A
            TPU compiles without a request. With several replicas, collectives must stay
            outside the compiled function.
        """
        self.workers = worker_group.make_workers(strategy)
        self._strategy = strategy
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        is_single = strategy.num_replicas_in_sync == 1
        self._jit_compile = jit_compile and is_single and not is_tpu

    def make_loop(
        self, state: train_step.TrainState, step_fn: train_step.StepFn
    ) -> "DistributeLoop":
        """Returns a loop of steps in one TensorFlow call."""
        del state  # TensorFlow changes its variables in place.
        return DistributeLoop(self._strategy, step_fn, self._jit_compile)

    def make_forward(self, forward_fn: engine.ForwardFn) -> "DistributeForward":
        """Returns a forward pass."""
        return DistributeForward(self._strategy, forward_fn, self._jit_compile)


class DistributeLoop:
    """A loop of training steps in one TensorFlow call."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        step_fn: train_step.StepFn,
        jit_compile: bool = False,
    ):
        """Initializes the loop; it is traced at the first call.

        Args:
          strategy: The strategy whose replicas run the steps.
          step_fn: (batch, global step) -> scalars by name; runs on every replica.
          jit_compile: Whether to compile the step with XLA.
        """
        self._replica_step = train_step.ReplicaStep(step_fn)
        devices = _devices_of(strategy)
        run_fn = self._replica_step.run
        is_single = strategy.num_replicas_in_sync == 1  # Other workers have replicas.
        if is_single and not jit_compile and _device_type(devices[0]) == "CPU":
            run_fn = replicas.trace_for_cpu(run_fn)
        run_step = tf.function(run_fn, autograph=False, jit_compile=jit_compile or None)
        with tf.device(_host_of(devices[0])):
            counters = [tf.Variable(0, dtype=tf.int64) for _ in [*devices, "steps"]]
        self._num_fetched = counters[:-1]
        self._num_done = counters[-1]
        self._loop = _make_loop(
            strategy,
            run_step,
            num_fetched=self._num_fetched,
            num_done=self._num_done,
        )

    def reset(self, step: int) -> None:
        """Sets the global step at which the next call begins."""
        self._num_done.assign(step)
        for counter in self._num_fetched:
            counter.assign(engine.NOT_STARTED)

    def progress(self) -> engine.Progress:
        """Returns the progress of a call in another thread."""
        num_fetched = tuple(int(counter) for counter in self._num_fetched)
        return engine.Progress(num_fetched, int(self._num_done))

    def __call__(
        self, iterator: Iterator[Any], first_step: int, num_steps: int
    ) -> engine.LoopResult:
        """Runs steps; see `engine.TrainLoop`."""
        start = time.monotonic()
        count = tf.constant(num_steps, tf.int32)
        try:
            history, times = self._loop(
                iterator, tf.constant(first_step, tf.int64), count
            )
        except tf.errors.OutOfRangeError as error:
            raise errors.UserError(engine.data_ended(first_step + num_steps)) from error
        history = history.numpy()
        secs = time.monotonic() - start
        names = self._replica_step.scalar_names
        means, input_wait = engine.summarize(history, times.numpy(), names, first_step)
        num_traces = self._loop.experimental_get_tracing_count()
        return engine.LoopResult(means, secs, input_wait, num_traces)


class DistributeForward:
    """A forward pass on the replicas of a strategy."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        forward_fn: engine.ForwardFn,
        jit_compile: bool,
    ):
        """Initializes the forward pass; it is traced at the first call.

        Args:
          strategy: The strategy whose replicas run it.
          forward_fn: batch -> (loss, tensors); runs on every replica.
          jit_compile: Whether to compile it with XLA.
        """
        self._strategy = strategy
        compiled = tf.function(
            forward_fn, autograph=False, jit_compile=jit_compile or None
        )
        self._forward = tf.function(
            lambda batch: strategy.run(compiled, args=(batch,)), autograph=False
        )

    def reload(self) -> None:
        """Does nothing: the replicas read the variables themselves."""

    def __call__(self, batch: Any) -> tuple[float, Any]:
        """Returns the loss, and the tensors of all replicas as NumPy arrays."""
        loss, tensors = self._forward(batch)
        joined = tf.nest.map_structure(
            lambda t: np.concatenate(self._local(t)), tensors
        )
        return float(self._local(loss)[0]), joined

    def _local(self, value):
        return [v.numpy() for v in self._strategy.experimental_local_results(value)]


def _devices_of(strategy):
    """Returns the devices of this process's replicas, by name."""
    try:
        return strategy.extended.worker_devices
    except RuntimeError:  # TensorFlow's default strategy, of one replica, has none.
        gpus = tf.config.list_logical_devices("GPU")
        return (gpus[0].name if gpus else "/device:CPU:0",)


def _device_type(device):
    """Returns the type of a device by its name: CPU, GPU or TPU."""
    return tf.DeviceSpec.from_string(device).device_type


def _host_of(device):
    """Returns the CPU of a device's machine."""
    device_spec = tf.DeviceSpec.from_string(device)
    return device_spec.replace(device_type="CPU", device_index=0).to_string()


def _make_loop(strategy, run_step, *, num_fetched, num_done):
    """Returns (iterator, first_step, num_steps) -> scalars and times of each step.

    The loop counts fetched batches, by replica, and finished steps in variables, which
    other threads may read.
    """

    def count(counter, step, tensors):
        with tf.control_dependencies(tensors):
            counter.assign(step)

    @tf.function
    def loop(iterator, first_step, num_steps):
        start = tf.timestamp()
        for counter in num_fetched:
            counter.assign(first_step)
        history = tf.TensorArray(tf.float32, num_steps, element_shape=[None])
        times = tf.TensorArray(tf.float64, num_steps, element_shape=[2])
        for i in tf.range(num_steps):
            step = first_step + tf.cast(i, tf.int64)
            batch = next(iterator)
            fed_at = _time_of(batch)
            shares = strategy.experimental_local_results(batch)
            for counter, share in zip(num_fetched, shares, strict=True):
                count(counter, step + 1, [_first_tensor(share)])
            means = strategy.run(run_step, args=(batch, step))
            replica_means = strategy.experimental_local_results(means)
            # A GPU reports a queued operation as done. A copy to the CPU is not.
            with tf.device("CPU"):
                means = tf.identity(replica_means[0])
            count(num_done, step + 1, [*replica_means, means])
            history = history.write(i, means)
            times = times.write(i, [fed_at, _time_of(means)])
        return history.stack(), times.stack() - start

    return loop


def _time_of(values):
    """Returns the time at which the values were computed, by the host's clock."""
    with tf.device("CPU"), tf.control_dependencies([_first_tensor(values)]):
        return tf.timestamp()


def _first_tensor(values):
    return tf.nest.flatten(values, expand_composites=True)[0]
