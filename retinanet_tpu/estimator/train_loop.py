"""The training loop: steps on the device; saves, stops and rollbacks on the host.

A run is saved, evaluated and stopped between two calls of the device loop. The only
exception is a stop while the device loop waits for data; see stops.py.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import (
    checkpoint_saver,
    run_config,
    spec,
    stops,
    summaries,
    train_step,
    waits,
    warm_start,
)
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints


class LoopResult(NamedTuple):
    """The result of a loop of steps.

    Attributes:
      scalars: The means over the steps of the loop and all replicas, by name.
      secs: The duration of the loop.
      input_wait: The share of `secs` in which the device waited for the next batch.
      num_traces: The number of traces of the loop so far; above 1 if shapes change.
    """

    scalars: Mapping[str, float]
    secs: float
    input_wait: float
    num_traces: int


def start(
    model_dir: str,
    network_fn: Callable[[], tf.Module],
    update_fn: spec.UpdateFn,
    warm_start_fn: warm_start.WarmStartFn | None = None,
    *,
    workers: worker_group.Workers = worker_group.SINGLE_WORKER,
) -> train_step.TrainState:
    """Returns the state of the latest checkpoint, or a new one.

    Args:
      model_dir: The directory of the checkpoints.
      network_fn: Makes the network.
      update_fn: Makes the update of the network.
      warm_start_fn: Initializes the network of a new run; None keeps random weights.
      workers: All workers of the run, which must find the same checkpoint.
    """
    if workers.is_chief:
        checkpoints.delete_incomplete(model_dir)
    logging.info("Searching %s for checkpoints", model_dir)
    path = checkpoints.latest_valid(model_dir)
    if not path:
        checkpoints.check_nothing_lost(model_dir)
    network = network_fn()
    if not path and warm_start_fn:
        warm_start_fn(network)
    # After the warm start, because averages begin as copies of the weights.
    state = train_step.TrainState(network, update_fn(network))
    if path:
        state.restore(path)
        logging.info("Resuming from %s", path)
    elif not warm_start_fn:
        logging.warning("No checkpoint; starting from random weights")
    workers.check_same(state.step, "The step of the latest checkpoint")
    return state


def train(
    state: train_step.TrainState,
    run_loop: "TrainLoop",
    make_iterator: Callable[[int], Iterator[Any]],
    *,
    max_steps: int,
    config: run_config.RunConfig,
    saver: checkpoint_saver.Saver,
    writer: summaries.LoopWriter,
    stop_reason: spec.StopReason = preemption.no_stop,
    workers: worker_group.Workers = worker_group.SINGLE_WORKER,
) -> None:
    """Trains a state up to a global step, and saves on the way and at the end.

    A run that diverges returns to the newest checkpoint, at most config.max_rollbacks
    times. The same data from the same weights would diverge again, so the data since
    then are skipped, as PaLM's training skipped its loss spikes (arXiv:2204.02311,
    section 5.1).

    Args:
      state: The state to train.
      run_loop: Runs the steps.
      make_iterator: Returns the batches from an index in the order of the data on.
      max_steps: The global step to train up to, above state.step.
      config: The ends of loops, and the number of rollbacks.
      saver: Writes checkpoints.
      writer: Reports each loop.
      stop_reason: Returns why to stop, or None. Called before each loop, and on this
        worker alone while a loop waits for data. A reason saves and ends the run.
      workers: All workers of the run.
    Raises:
      DivergedError: A loss or a weight is not finite.
      Preempted: There was a reason to stop.
    """
    stopper = stops.Stopper(state, saver, stop_reason, workers)
    num_rollbacks = 0
    batches: list[Iterator[Any]] = []  # At most one iterator; `release` needs a list.
    try:
        while state.step < max_steps:
            stopper.check()
            if not batches:
                new = functools.partial(make_iterator, state.next_batch)
                batches.append(stopper.call(new))
            num_steps = config.next_stop(state.step, max_steps) - state.step
            run_loop.reset(state.step)
            run = functools.partial(
                _run, run_loop, batches, step=state.step, num_steps=num_steps
            )
            try:
                result = stopper.call_loop(run, run_loop.progress)
                state.step += num_steps
                _report(writer, state.step, num_steps, result)
                saver.save_if_due(state, max_steps)
            except train_step.DivergedError as error:
                num_rollbacks += 1
                is_allowed = num_rollbacks <= config.max_rollbacks
                if not is_allowed or not _roll_back(state, saver.model_dir, error):
                    raise
                batches.clear()
    finally:
        waits.release(batches)


def _run(run_loop, batches, step, num_steps):
    return run_loop(batches[0], step, num_steps)


def _report(writer, step, num_steps, result):
    scalars = {**result.scalars, "input-wait": result.input_wait}
    writer.report_loop(step, num_steps, scalars, secs=result.secs)
    if result.num_traces > 1:
        logging.warning("The loop was traced %d times", result.num_traces)


def _roll_back(state, model_dir, error):
    """Restores the newest checkpoint, but not its place in the data.

    Returns False if there is no checkpoint.
    """
    path = checkpoints.latest_valid(model_dir)
    if path is None:
        return False
    next_batch = error.step + state.num_skipped
    state.restore(path)
    state.num_skipped = next_batch - state.step
    logging.error(
        "%s Rolling back to %s. Skipped batches so far: %d.",
        error,
        path,
        state.num_skipped,
    )
    return True


class TrainLoop:
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
        run_step = tf.function(
            self._replica_step.run, autograph=False, jit_compile=jit_compile or None
        )
        devices = _devices_of(strategy)
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
            counter.assign(stops.NOT_STARTED)

    def progress(self) -> stops.Progress:
        """Returns the progress of a call in another thread."""
        num_fetched = tuple(int(counter) for counter in self._num_fetched)
        return stops.Progress(num_fetched, int(self._num_done))

    def __call__(
        self, iterator: Iterator[Any], first_step: int, num_steps: int
    ) -> LoopResult:
        """Runs steps.

        Args:
          iterator: Yields the distributed batches.
          first_step: The global step before the first step.
          num_steps: The number of steps.
        Raises:
          DivergedError: A scalar is not finite.
          UserError: The data ended.
        """
        start = time.monotonic()
        count = tf.constant(num_steps, tf.int32)
        try:
            history, times = self._loop(
                iterator, tf.constant(first_step, tf.int64), count
            )
        except tf.errors.OutOfRangeError as error:
            raise errors.UserError(
                f"The training data ended before step {first_step + num_steps}; "
                "training requires data without end: call dataset.repeat()."
            ) from error
        history = history.numpy()
        secs = time.monotonic() - start
        names = self._replica_step.scalar_names
        _check_finite(history, names, first_step)
        means = dict(zip(names, history.mean(axis=0, dtype=np.float64), strict=True))
        if "learning-rate" in means:  # A setting, not a measurement: its newest value.
            means["learning-rate"] = history[-1, names.index("learning-rate")]
        num_traces = self._loop.experimental_get_tracing_count()
        return LoopResult(means, secs, input_wait(times.numpy()), num_traces)


def _devices_of(strategy):
    """Returns the devices of this process's replicas, by name."""
    try:
        return strategy.extended.worker_devices
    except RuntimeError:  # TensorFlow's default strategy, of one replica, has none.
        return ("/device:CPU:0",)


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


def input_wait(times: np.ndarray) -> float:
    """Returns the share of a loop in which the device waited for a batch.

    Args:
      times: float64 [steps, 2], the seconds from the start of the loop to the batch and
        to the result of each step. Batches may arrive while earlier steps run.
    """
    fed_at, done_at = times.T
    idle = fed_at - np.concatenate([[0.0], done_at[:-1]])
    return float(np.maximum(idle, 0).sum() / max(done_at[-1], 1e-9))


def _time_of(values):
    """Returns the time at which the values were computed, by the host's clock."""
    with tf.device("CPU"), tf.control_dependencies([_first_tensor(values)]):
        return tf.timestamp()


def _first_tensor(values):
    return tf.nest.flatten(values, expand_composites=True)[0]


def _check_finite(history, names, first_step):
    bad = np.argwhere(~np.isfinite(history))
    if len(bad):
        row, column = bad[0]
        raise train_step.DivergedError(
            f"{names[column]} is {history[row, column]} at step "
            f"{first_step + row + 1}; no step of this loop was saved. Lower the "
            "learning rate, lengthen the warm-up, or clip gradients, and start again; "
            "or set RunConfig.max_rollbacks, to skip the data that it diverged on.",
            int(first_step + row + 1),
        )
