"""The training loop: steps on the device; saves, stops and rollbacks on the host.

A run is saved, evaluated and stopped between two calls of the device loop. The only
exception is a stop while the device loop waits for data; see stops.py.
"""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from absl import logging

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
from retinanet_tpu.estimator.engines import engine
from retinanet_tpu.estimator.model_dir import checkpoints


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
    run_loop: engine.TrainLoop,
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
