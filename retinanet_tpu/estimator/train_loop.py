"""The loops of a training run: steps on the device; saves, stops and rollbacks between.

Between two loops is the only place where a run is saved, scored or stopped.
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
    stops,
    summaries,
    train_step,
    waits,
    warm_start,
)
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints


class LoopResult(NamedTuple):
    """What a loop of steps tells."""

    scalars: Mapping[str, float]  # means over the steps of the loop and all replicas
    secs: float
    input_wait: float  # share of secs in which the next batch was not there yet
    num_traces: int  # of the loop so far; 1, or something changes shape


def start(
    model_dir: str,
    network_fn: Callable[[], tf.Module],
    update_fn: Callable[[tf.Module], Any],
    warm_start_from: warm_start.WarmStartSettings | Callable[[tf.Module], Any] | None,
    workers: worker_group.Workers = worker_group.SINGLE_WORKER,
) -> train_step.TrainState:
    """Returns the state of the latest checkpoint, the same for all, or a new one."""
    if workers.is_chief:
        checkpoints.delete_incomplete(model_dir)
    logging.info("Looking for checkpoints in %s", model_dir)
    path = checkpoints.latest_valid(model_dir)
    if not path:
        checkpoints.check_nothing_lost(model_dir)
    network = network_fn()
    if not path and callable(warm_start_from):
        warm_start_from(network)
    elif not path and warm_start_from:
        warm_start.warm_start(network, warm_start_from)
    # After the warm start: averages begin as copies of the weights.
    state = train_step.TrainState(network, update_fn(network))
    if path:
        state.restore(path)
        logging.info("Going on from %s", path)
    elif not warm_start_from:
        logging.warning("No checkpoint found; starting from random weights")
    workers.check_same(state.step, "The step of the latest checkpoint")
    return state


def train(
    state: train_step.TrainState,
    run_loop: "TrainLoop",
    make_iterator: Callable[[int], Iterator],
    *,
    max_steps: int,
    config: run_config.RunConfig,
    saver: checkpoint_saver.Saver,
    writer: summaries.LoopWriter,
    stop_reason: Callable[[], str | None] = preemption.no_stop,
    workers: worker_group.Workers = worker_group.SINGLE_WORKER,
) -> None:
    """Trains a state up to a global step, saving on the way and at the end.

    Where it diverges it goes back to the newest checkpoint, config.max_rollbacks times.
    The same data from the same weights would diverge again, so the data since then are
    passed over, as PaLM's runs went around their spikes (arXiv:2204.02311, 5.1).

    Args:
      state: to go on from.
      run_loop: runs the steps.
      make_iterator: gives the batches from a place in their order on.
      max_steps: above state.step.
      config: says where loops end, and how often to go back.
      saver: writes checkpoints.
      writer: is told of each loop.
      stop_reason: asked before each loop, and of this worker alone while a loop waits
        for data; a reason saves and ends the run.
      workers: of the run.
    Raises:
      DivergedError: a loss or a weight is not finite.
      Interrupted: there was a reason to stop.
    """
    stopper = stops.Stopper(state, saver, stop_reason, workers)
    num_rollbacks, batches = 0, []  # One iterator, if any.
    try:
        while state.step < max_steps:
            stopper.check()
            if not batches:
                new = functools.partial(make_iterator, state.next_batch)
                batches.append(stopper.call(new))
            num_steps = config.next_stop(state.step, max_steps) - state.step
            run_loop.reset(state.step)
            run = functools.partial(_run, run_loop, batches, state.step, num_steps)
            try:
                result = stopper.call_loop(run, run_loop.progress)
                state.step += num_steps
                _report(writer, state.step, num_steps, result)
                saver.save_if_due(state, max_steps)
            except train_step.DivergedError as error:
                num_rollbacks += 1
                is_allowed = num_rollbacks <= config.max_rollbacks
                if not is_allowed or not _go_back(state, saver.model_dir, error):
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


def _go_back(state, model_dir, error):
    """Restores the newest checkpoint, if there is one, but goes on with new data."""
    path = checkpoints.latest_valid(model_dir)
    if path is None:
        return False
    next_batch = error.step + state.num_skipped
    state.restore(path)
    state.num_skipped = next_batch - state.step
    logging.error(
        "%s Going back to %s; of the data %d batches are passed over by now.",
        error,
        path,
        state.num_skipped,
    )
    return True


class TrainLoop:
    """Runs steps in one call of TensorFlow, and gives the means of their scalars."""

    def __init__(
        self,
        strategy: tf.distribute.Strategy,
        step_fn: Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]],
        jit_compile: bool = False,
    ):
        """Takes what to run.

        Args:
          strategy: where the replicas run.
          step_fn: (batch, global step) -> scalars by name; runs on every replica.
          jit_compile: compile the step with XLA.
        """
        self._names = []
        replica_step = tf.function(
            train_step.make_replica_fn(step_fn, self._names),
            autograph=False,
            jit_compile=jit_compile or None,
        )
        devices = _devices_of(strategy)
        with tf.device(_host_of(devices[0])):
            counters = [tf.Variable(0, dtype=tf.int64) for _ in [*devices, "steps"]]
        self._num_fetched, self._num_done = counters[:-1], counters[-1]
        self._loop = _make_loop(
            strategy, replica_step, self._num_fetched, self._num_done
        )

    def reset(self, step: int) -> None:
        """Says at which global step the next call begins."""
        self._num_done.assign(step)
        for counter in self._num_fetched:
            counter.assign(stops.NOT_STARTED)

    def progress(self) -> stops.Progress:
        """Returns how far a call in another thread is."""
        num_fetched = tuple(int(counter) for counter in self._num_fetched)
        return stops.Progress(num_fetched, int(self._num_done))

    def __call__(
        self, iterator: Iterator, first_step: int, num_steps: int
    ) -> LoopResult:
        """Runs steps.

        Raises:
          DivergedError: a scalar is not finite.
          UserError: the data end.
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
                "training wants data without end: dataset.repeat()."
            ) from error
        history, secs = history.numpy(), time.monotonic() - start
        names = self._names
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
    """Returns the CPU beside a device, on its machine."""
    spec = tf.DeviceSpec.from_string(device)
    return spec.replace(device_type="CPU", device_index=0).to_string()


def _make_loop(strategy, replica_step, num_fetched, num_done):
    """Returns (iterator, first_step, num_steps) -> scalars and times of each step.

    Meanwhile it counts batches, by replica, and steps in variables.
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
            means = strategy.run(replica_step, args=(batch, step))
            replica_means = strategy.experimental_local_results(means)
            with tf.device("CPU"):  # A GPU calls done what is queued, but not its copy.
                means = tf.identity(replica_means[0])
            count(num_done, step + 1, [*replica_means, means])
            history = history.write(i, means)
            times = times.write(i, [fed_at, _time_of(means)])
        return history.stack(), times.stack() - start

    return loop


def input_wait(times: np.ndarray) -> float:
    """Returns the share of a loop in which the device had no batch to work on.

    Args:
      times: float64 [steps, 2], seconds since the loop began at which each step's batch
        was there and its result was there. Batches may come while earlier steps run.
    """
    fed_at, done_at = times.T
    idle = fed_at - np.concatenate([[0.0], done_at[:-1]])
    return float(np.maximum(idle, 0).sum() / max(done_at[-1], 1e-9))


def _time_of(values):
    """Returns when the values were there, in seconds, by the host's clock."""
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
            f"{first_step + row + 1}; nothing of this loop was saved. Lower the "
            "learning rate, lengthen the warm-up, or clip gradients, and start again; "
            "or set RunConfig.max_rollbacks, to pass over the data it diverged on.",
            int(first_step + row + 1),
        )
