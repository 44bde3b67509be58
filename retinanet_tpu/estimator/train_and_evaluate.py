"""The life of a run: trains, scores checkpoints on the way and at the end, exports.

It survives the loss of its devices, and tells others in run_state.json how it goes.
"""

import gc
import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import exporters, spec, tpu_estimator
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints, run_state

# What a TPU says whose worker was reset.
_DEVICES_LOST = (tf.errors.AbortedError, tf.errors.UnavailableError)


def train_and_evaluate(
    estimator: tpu_estimator.TPUEstimator,
    train_spec: spec.TrainSpec,
    eval_spec: spec.EvalSpec | None,
    *,
    stop_reason: Callable[[], str | None] = preemption.no_stop,
    prepare: Callable[[], None] = preemption.no_stop,
) -> dict[str, Any] | None:
    """Trains to the end; scores every `eval_spec.every_steps` steps and at the end.

    Where the devices are lost, it connects anew and goes on from the last checkpoint,
    RunConfig.max_restarts times in a row. An earlier run may have stopped before its
    last checkpoint was scored and exported: that comes first.

    Args:
      estimator: runs both.
      train_spec: what to train, how long.
      eval_spec: what to score and export; None leaves it to a process of its own.
      stop_reason: asked between loops and batches; a reason saves and ends the run.
      prepare: called before the first step, once no other trainer is in the model_dir.
    Returns:
      The results of the last evaluation, None if there was none to make.
    Raises:
      UserError: an evaluation interval that no checkpoint falls on, or workers that
        are to score; another trainer in the model_dir, or checkpoints that are lost.
      DivergedError: a loss or a weight is not finite.
      Interrupted: there was a reason to stop, and all that was trained is saved; or
        another worker was lost, and what it trained since the last checkpoint.
    """
    check_intervals(estimator, train_spec, eval_spec)
    model_dir, config = estimator.model_dir, estimator.config
    num_losses = 0
    check_nothing_lost(model_dir)
    with run_state.Heartbeat(
        model_dir,
        config.heartbeat_secs,
        is_silent=not estimator.workers.is_chief,
        stop_reason=stop_reason,
    ) as heartbeat:
        prepare()
        heartbeat.step = step = _newest_step(model_dir)
        while True:
            try:
                if num_losses:
                    _pause(config.restart_secs * num_losses, stop_reason)
                    estimator.reconnect()
                return _run(estimator, train_spec, eval_spec, heartbeat, stop_reason)
            except preemption.Preempted as stop:
                heartbeat.state, heartbeat.step = run_state.PREEMPTED, stop.step
                raise
            except _DEVICES_LOST as error:
                num_losses = num_losses + 1 if heartbeat.step == step else 1
                step = heartbeat.step
                if num_losses > config.max_restarts:
                    raise
                logging.error(
                    "Lost the devices; restart %d of %d from step %d: %s",
                    num_losses,
                    config.max_restarts,
                    step,
                    error,
                )


def check_nothing_lost(model_dir: str) -> None:
    """Checks that a run without a checkpoint is a new one.

    Raises:
      UserError: the directory had checkpoints, which are lost or incomplete.
    """
    if not checkpoints.latest(model_dir):
        state = run_state.read(model_dir)
        checkpoints.check_nothing_lost(model_dir, state.step if state else 0)


def check_intervals(
    estimator: tpu_estimator.TPUEstimator,
    train_spec: spec.TrainSpec,
    eval_spec: spec.EvalSpec | None,
) -> None:
    """Checks before the first step that every interval will be reached.

    Raises:
      UserError: saving or evaluating would never be due, exporters share a name, or
        several workers are to score.
    """
    if eval_spec:
        estimator.workers.check_alone()
    estimator.config.check_save_interval(train_spec.max_steps)
    exporters.check_names(eval_spec.exporters if eval_spec else ())
    every = eval_spec.every_steps if eval_spec else None
    if not every:
        return
    saves = estimator.config.save_checkpoints_steps
    if every > train_spec.max_steps or not saves or every % saves:
        raise errors.UserError(
            f"EVAL_EVERY (EvalSpec.every_steps) is {every}: evaluation would never be "
            f"due. Make it a multiple of save_checkpoints_steps ({saves}), at most "
            f"max_steps ({train_spec.max_steps}), or None to score only the end."
        )


def _run(estimator, train_spec, eval_spec, heartbeat, stop_reason):
    """Trains and scores until the end, an error or a reason to stop."""
    results = {}

    def is_stopped():
        heartbeat.check_seen()
        return stop_reason()

    def beat(path, step):
        heartbeat.step = step

    def score(path, step):
        every = eval_spec.every_steps or train_spec.max_steps
        is_final = step >= train_spec.max_steps
        if is_final or step % every == 0:
            results.update(_score(estimator, eval_spec, path, is_final, stop_reason))

    path = checkpoints.latest_valid(estimator.model_dir)
    if path:
        beat(path, checkpoints.step_of(path))
        if eval_spec:
            score(path, checkpoints.step_of(path))
    listeners = (beat, *train_spec.saving_listeners, *([score] if eval_spec else []))
    steps = train_spec.max_steps
    try:
        estimator.train(
            train_spec.input_fn,
            steps,
            listeners,
            stop_reason=is_stopped,
            before_save=heartbeat.check_claim,
        )
    except worker_group.WORKER_LOST_ERRORS as error:
        if estimator.workers.count == 1:
            raise
        logging.error("Lost a worker: %s", error.__cause__ or error)
        # TensorFlow joins workers once in a process, so all begin anew.
        step = _newest_step(estimator.model_dir)
        reason = "another worker was lost; start all of them again"
        raise preemption.Preempted(reason, step) from error
    return results or None


def _score(estimator, eval_spec, path, is_final, stop_reason):
    """Scores and exports a checkpoint; returns the results, none if they were there."""
    results, known = {}, estimator.scores(path, eval_spec.name)
    if known is None:
        logging.info("Evaluating %s", path)
        results = estimator.evaluate(
            eval_spec.input_fn,
            steps=eval_spec.steps,
            checkpoint_path=path,
            name=eval_spec.name,
            stop_reason=stop_reason,
        )
    exporters.export_all(
        eval_spec.exporters, estimator, path, results or known, is_final=is_final
    )
    # Datasets stay in cycles, 5 MB an evaluation, and training makes no new objects
    # that would have Python look for them.
    gc.collect()
    return results


def _newest_step(model_dir):
    path = checkpoints.latest(model_dir)
    return checkpoints.step_of(path) if path else 0


def _pause(secs, stop_reason):
    """Lets a reset machine come back, unless the run is to stop."""
    end = time.monotonic() + secs
    while time.monotonic() < end and not stop_reason():
        time.sleep(min(1, secs))
