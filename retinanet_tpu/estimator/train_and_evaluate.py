"""A whole run: trains, evaluates checkpoints on the way and at the end, exports.

A run survives the loss of its devices. It reports its state in run_state.json.
"""

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import (
    early_stopping,
    evaluations,
    exporters,
    spec,
    summaries,
    tpu_estimator,
)
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints, run_state

# The errors of a TPU whose worker was reset.
_DEVICES_LOST = (tf.errors.AbortedError, tf.errors.UnavailableError)


def train_and_evaluate(
    estimator: tpu_estimator.TPUEstimator,
    train_spec: spec.TrainSpec,
    eval_spec: spec.EvalSpec | None,
    *,
    stop_reason: spec.StopReason = preemption.no_stop,
    prepare: Callable[[], None] = preemption.no_stop,
) -> dict[str, Any] | None:
    """Trains to the end; evaluates every `eval_spec.every_steps` steps and at the end.

    With `train_spec.early_stopping` the end may come earlier. The evaluations of a
    sidecar count, too.

    If the devices are lost, it reconnects and resumes from the last checkpoint, at most
    RunConfig.max_restarts times in a row. If an earlier run stopped before its last
    checkpoint was evaluated and exported, that is done first.

    Args:
      estimator: Trains and evaluates.
      train_spec: The input and the length of the training.
      eval_spec: The input of the evaluations, and the exporters; None leaves both to
        another process.
      stop_reason: Returns why to stop, or None. Called between loops and batches. A
        reason saves and ends the run.
      prepare: Called before the first step, once no other trainer uses the model_dir.
    Returns:
      The results of the last evaluation, or None.
    Raises:
      UserError: No checkpoint falls on an evaluation, several workers are to evaluate,
        another trainer uses the model_dir, or checkpoints are lost.
      DivergedError: A loss or a weight is not finite.
      Preempted: There was a reason to stop, and all trained steps are saved; or another
        worker was lost, with the steps since the last checkpoint.
    """
    check_intervals(estimator, train_spec, eval_spec)
    model_dir = estimator.model_dir
    config = estimator.config
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
                return _run(
                    estimator,
                    train_spec,
                    eval_spec,
                    heartbeat=heartbeat,
                    stop_reason=stop_reason,
                )
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
      UserError: The directory had checkpoints, which are lost or incomplete.
    """
    if not checkpoints.latest(model_dir):
        state = run_state.read(model_dir)
        checkpoints.check_nothing_lost(model_dir, state.step if state else 0)


def check_intervals(
    estimator: tpu_estimator.TPUEstimator,
    train_spec: spec.TrainSpec,
    eval_spec: spec.EvalSpec | None,
) -> None:
    """Checks before the first step that the run reaches every interval.

    Args:
      estimator: The estimator, with the interval of saves.
      train_spec: The number of steps, and when to end before.
      eval_spec: The interval of evaluations, and the exporters.
    Raises:
      UserError: A save or an evaluation would never be due, exporters share a name, or
        several workers are to evaluate, or a run with early stopping does not
        evaluate.
    """
    if eval_spec:
        estimator.workers.check_alone()
    estimator.config.check_save_interval(train_spec.max_steps)
    exporters.check_names(eval_spec.exporters if eval_spec else ())
    every = eval_spec.every_steps if eval_spec else None
    if eval_spec and train_spec.early_stopping and not every:
        raise errors.UserError(
            "Early stopping needs evaluations during training; set EVAL_EVERY "
            "(EvalSpec.every_steps), or TrainingPlan.early_stopping = None."
        )
    if not every:
        return
    saves = estimator.config.save_checkpoints_steps
    if every > train_spec.max_steps or not saves or every % saves:
        raise errors.UserError(
            f"EVAL_EVERY (EvalSpec.every_steps) is {every}: evaluation would never be "
            f"due. Make it a multiple of save_checkpoints_steps ({saves}), at most "
            f"max_steps ({train_spec.max_steps}), or None to evaluate only the end."
        )


def _run(estimator, train_spec, eval_spec, *, heartbeat, stop_reason):
    """Trains and evaluates until the end, an error or a reason to stop."""
    watch = _make_watch(estimator, train_spec, eval_spec)
    runner = evaluations.Evaluations(
        estimator,
        eval_spec or spec.EvalSpec(train_spec.input_fn),  # Then it is never used.
        stop_reason=stop_reason,
        # An early end depends on the results of the step.
        in_background=train_spec.early_stopping is None,
    )
    every = (eval_spec.every_steps if eval_spec else None) or train_spec.max_steps
    reasons = []

    def is_stopped():
        heartbeat.check_seen()
        reason = stop_reason() or watch.reason or runner.failure
        reasons.extend([reason] if reason else [])
        return reason

    def before_save():
        heartbeat.check_claim()
        watch.check()  # The save deletes checkpoints, but not the best.

    def after_save(path, step):
        heartbeat.step = step

    def evaluate(path, step):
        is_final = step >= train_spec.max_steps or watch.reason is not None
        if eval_spec and (is_final or step % every == 0):
            runner.evaluate(path, is_final=is_final)
        else:
            runner.finish_if_ready()
        watch.check()

    def evaluate_unless_stopped(path, step):
        if not reasons:  # A machine that is taken away leaves little time.
            evaluate(path, step)

    with watch, runner:
        path = checkpoints.latest_valid(estimator.model_dir)
        watch.check()
        if path:
            after_save(path, checkpoints.step_of(path))
            if eval_spec:
                _evaluate_interrupted(runner, path, every)
            evaluate(path, checkpoints.step_of(path))
        # The others read at another time than the chief, so perhaps other evaluations.
        if not estimator.workers.any_worker(watch.reason is not None):
            _train(
                estimator,
                train_spec,
                [after_save, *train_spec.saving_listeners, evaluate_unless_stopped],
                stop_reason=is_stopped,
                before_save=before_save,
                watch=watch,
            )
        path = checkpoints.latest(estimator.model_dir)
        if path and watch.reason is not None:
            step = checkpoints.step_of(path)
            logging.info("Ended at step %d: %s", step, watch.reason)
            evaluate(path, step)
    return runner.results or None


def _make_watch(estimator, train_spec, eval_spec):
    """Returns the watch of the evaluations that early stopping depends on."""
    name = eval_spec.name if eval_spec else None
    return early_stopping.Watch(
        train_spec.early_stopping,
        estimator.model_dir,
        summaries.eval_dir(estimator.model_dir, name),
        keeps_best=estimator.workers.is_chief,
    )


def _evaluate_interrupted(runner, latest, every):
    """Evaluates and exports the last due checkpoint before the latest.

    The run may have ended while that was going on.
    """
    model_dir, _, _ = latest.rpartition("/")
    newest = checkpoints.step_of(latest)
    due = [s for s in checkpoints.steps(model_dir) if s < newest and s % every == 0]
    if due:
        path = checkpoints.path_of(model_dir, max(due))
        if corruption := checkpoints.find_corruption(path):
            logging.warning("Not evaluating %s: %s", path, corruption)
        else:
            runner.evaluate_interrupted(path)


def _train(estimator, train_spec, listeners, *, stop_reason, before_save, watch):
    """Trains until the end, an error, a reason to stop, or one of the watch."""
    try:
        estimator.train(
            train_spec.input_fn,
            train_spec.max_steps,
            listeners,
            stop_reason=stop_reason,
            before_save=before_save,
        )
    except preemption.Preempted:
        watch.check()  # Workers that do not save learn here why the chief stopped.
        if watch.reason is None:
            raise
    except worker_group.WORKER_LOST_ERRORS as error:
        if estimator.workers.count == 1:
            raise
        logging.error("Lost a worker: %s", error.__cause__ or error)
        # TensorFlow connects workers once in a process, so all of them must restart.
        step = _newest_step(estimator.model_dir)
        reason = "another worker was lost; start all of them again"
        raise preemption.Preempted(reason, step) from error


def _newest_step(model_dir):
    path = checkpoints.latest(model_dir)
    return checkpoints.step_of(path) if path else 0


def _pause(secs, stop_reason):
    """Waits for a reset machine, unless there is a reason to stop."""
    end = time.monotonic() + secs
    while time.monotonic() < end and not stop_reason():
        time.sleep(min(1, secs))
