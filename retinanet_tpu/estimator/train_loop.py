"""The loops of a training run: steps on the device; saves, stops and rollbacks between.

Between two loops is the only place where a run is saved, scored or stopped.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator import (
    checkpoints,
    config as config_lib,
    interruptions,
    leases,
    summaries,
    training,
    warm_start,
)


class LoopResult(NamedTuple):
    """What a loop of steps tells."""

    scalars: Mapping[str, float]  # means over the steps of the loop and all replicas
    secs: float
    input_wait: float  # share of secs in which the next batch was not there yet
    num_traces: int  # of the loop so far; 1, or something changes shape


class Saver:
    """Writes the checkpoints of a run when they are due, and deletes the oldest.

    Attributes:
      model_dir: where they lie.
    """

    def __init__(
        self,
        model_dir: str,
        config: config_lib.RunConfig,
        first_step: int,
        listeners: Sequence[Callable] = (),
    ):
        """Takes where and when to save.

        Args:
          model_dir: gets the checkpoints.
          config: says when, and how many stay.
          first_step: that the run begins with; it needs no saving.
          listeners: each is called with (path, step) after a save.
        """
        self.model_dir, self._config = model_dir, config
        self._listeners = listeners
        self._readers = leases.LeaseBook(model_dir)
        self._saved_step, self._saved_at = first_step, time.monotonic()

    def save_if_due(self, state: training.TrainState, max_steps: int) -> None:
        """Saves where the configuration says so, and at the last step.

        Raises:
          DivergedError: a value is not finite; nothing is written.
        """
        secs = time.monotonic() - self._saved_at
        if self._config.is_save_due(state.step, max_steps, secs):
            self.save(state)

    def save_rest(self, state: training.TrainState) -> None:
        """Saves what was trained since the last checkpoint, if anything was."""
        if state.step != self._saved_step:
            self.save(state)

    def save(self, state: training.TrainState) -> None:
        """Saves, deletes what is old and not being read, and tells the listeners."""
        path = state.save(self.model_dir)
        logging.info("Saved %s", path)
        self._delete_old(state.step)
        self._saved_step = state.step
        for listener in self._listeners:
            listener(path, state.step)
        self._saved_at = time.monotonic()

    def _delete_old(self, newest):
        """Deletes what is too old, later if someone reads it now.

        Who takes a lease looks for others' afterwards, and so do readers: one of the
        two sees the other.
        """
        # Above the newest are only damaged ones, which this run will write anew.
        found = [s for s in checkpoints.steps(self.model_dir) if s <= newest]
        keep = self._config.keep_checkpoint_max
        old = found[:-keep] if keep else []
        with contextlib.ExitStack() as stack:
            own = set()
            for path in [checkpoints.path_of(self.model_dir, step) for step in old]:
                lease = leases.hold(self.model_dir, path, "delete")
                own.add(stack.enter_context(lease))
            held = self._readers.held_steps(own) if old else ()
            checkpoints.delete(self.model_dir, [s for s in old if s not in held])


def start(
    model_dir: str,
    network_fn: Callable[[], tf.Module],
    update_fn: Callable[[tf.Module], Any],
    warm_start_from: warm_start.WarmStartSettings | Callable[[tf.Module], Any] | None,
) -> training.TrainState:
    """Returns the state of the latest checkpoint, or a new one."""
    checkpoints.remove_remains(model_dir)
    logging.info("Looking for checkpoints in %s", model_dir)
    path = checkpoints.latest_sound(model_dir)
    network = network_fn()
    if not path and callable(warm_start_from):
        warm_start_from(network)
    elif not path and warm_start_from:
        warm_start.warm_start(network, warm_start_from)
    # After the warm start: averages begin as copies of the weights.
    state = training.TrainState(network, update_fn(network))
    if path:
        state.restore(path)
        logging.info("Going on from %s", path)
    elif not warm_start_from:
        logging.warning("No checkpoint found; starting from random weights")
    return state


def train(
    state: training.TrainState,
    run_loop: Callable[[Iterator, int, int], LoopResult],
    make_iterator: Callable[[int], Iterator],
    *,
    max_steps: int,
    config: config_lib.RunConfig,
    saver: Saver,
    writer: summaries.LoopWriter,
    stop_reason: Callable[[], str | None] = interruptions.never,
) -> None:
    """Trains a state up to a global step, saving on the way and at the end.

    Where it diverges it goes back to the newest checkpoint, config.max_rollbacks times.
    The same data from the same weights would diverge again, so the data since then are
    passed over, as PaLM's runs went around their spikes (arXiv:2204.02311, 5.1).

    Args:
      state: to go on from.
      run_loop: of make_train_loop.
      make_iterator: gives the batches from a place in their order on.
      max_steps: above state.step.
      config: says where loops end, and how often to go back.
      saver: writes checkpoints.
      writer: is told of each loop.
      stop_reason: asked before each loop; a reason saves and ends the run.
    Raises:
      DivergedError: a loss or a weight is not finite.
      Interrupted: there was a reason to stop.
    """
    num_rollbacks = 0
    iterator = make_iterator(state.next_batch)
    while state.step < max_steps:
        if reason := stop_reason():
            saver.save_rest(state)
            raise interruptions.Interrupted(reason, state.step)
        num_steps = config.next_stop(state.step, max_steps) - state.step
        try:
            result = run_loop(iterator, state.step, num_steps)
            state.step += num_steps
            _report(writer, state.step, num_steps, result)
            saver.save_if_due(state, max_steps)
        except training.DivergedError as error:
            num_rollbacks += 1
            is_allowed = num_rollbacks <= config.max_rollbacks
            if not is_allowed or not _go_back(state, saver.model_dir, error):
                raise
            iterator = make_iterator(state.next_batch)


def _report(writer, step, num_steps, result):
    scalars = {**result.scalars, "input-wait": result.input_wait}
    writer.report_loop(step, num_steps, scalars, secs=result.secs)
    if result.num_traces > 1:
        logging.warning("The loop was traced %d times", result.num_traces)


def _go_back(state, model_dir, error):
    """Restores the newest checkpoint, if there is one, but goes on with new data."""
    path = checkpoints.latest_sound(model_dir)
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


def make_train_loop(
    strategy: tf.distribute.Strategy,
    step_fn: Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]],
    jit_compile: bool = False,
) -> Callable[[Iterator, int, int], LoopResult]:
    """Returns a function that runs steps and gives the means of their scalars.

    Args:
      strategy: where the replicas run.
      step_fn: (batch, global step) -> scalars by name; runs on every replica.
      jit_compile: compile the step with XLA.
    Returns:
      (iterator, first_step, num_steps) -> LoopResult. Raises DivergedError.
    """
    names = []
    replica_step = tf.function(
        training.make_replica_fn(step_fn, names),
        autograph=False,
        jit_compile=jit_compile or None,
    )

    @tf.function
    def loop(iterator, first_step, num_steps):
        start = tf.timestamp()
        history = tf.TensorArray(tf.float32, num_steps, element_shape=[None])
        times = tf.TensorArray(tf.float64, num_steps, element_shape=[2])
        for i in tf.range(num_steps):
            step = first_step + tf.cast(i, tf.int64)
            batch = next(iterator)
            fed_at = _time_of(batch)
            means = strategy.run(replica_step, args=(batch, step))
            with tf.device("CPU"):  # A GPU calls done what is queued, but not its copy.
                means = tf.identity(strategy.experimental_local_results(means)[0])
            history = history.write(i, means)
            times = times.write(i, [fed_at, _time_of(means)])
        return history.stack(), times.stack() - start

    def run(iterator, first_step, num_steps):
        start = time.monotonic()
        count = tf.constant(num_steps, tf.int32)
        history, times = loop(iterator, tf.constant(first_step, tf.int64), count)
        history, secs = history.numpy(), time.monotonic() - start
        _check_finite(history, names, first_step)
        means = dict(zip(names, history.mean(axis=0, dtype=np.float64), strict=True))
        if "learning-rate" in means:  # A setting, not a measurement: its newest value.
            means["learning-rate"] = history[-1, names.index("learning-rate")]
        num_traces = loop.experimental_get_tracing_count()
        return LoopResult(means, secs, input_wait(times.numpy()), num_traces)

    return run


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
    first = tf.nest.flatten(values, expand_composites=True)[0]
    with tf.device("CPU"), tf.control_dependencies([first]):
        return tf.timestamp()


def _check_finite(history, names, first_step):
    bad = np.argwhere(~np.isfinite(history))
    if len(bad):
        row, column = bad[0]
        raise training.DivergedError(
            f"{names[column]} is {history[row, column]} at step "
            f"{first_step + row + 1}; nothing of this loop was saved. Lower the "
            "learning rate, lengthen the warm-up, or clip gradients, and start again; "
            "or set RunConfig.max_rollbacks, to pass over the data it diverged on.",
            int(first_step + row + 1),
        )
