"""The outer loop: trains, scores checkpoints on the way and at the end, exports."""

from typing import Any

from absl import logging

from retinanet_tpu.estimator import checkpoints, estimator as estimator_lib, spec


def train_and_evaluate(
    estimator: estimator_lib.TPUEstimator,
    train_spec: spec.TrainSpec,
    eval_spec: spec.EvalSpec | None,
) -> dict[str, Any] | None:
    """Trains to the end; scores every `eval_spec.every_steps` steps and at the end.

    Args:
      estimator: runs both.
      train_spec: what to train, how long.
      eval_spec: what to score; None leaves scoring to a process of its own.
    Returns:
      The results of the last evaluation, None if there was none to make.
    Raises:
      ValueError: an evaluation interval that no checkpoint falls on.
    """
    check_intervals(estimator, train_spec, eval_spec)
    results = {}

    def evaluate(path, step):
        every = eval_spec.every_steps or train_spec.max_steps
        if step >= train_spec.max_steps or step % every == 0:
            logging.info("Evaluating %s", path)
            results.update(
                estimator.evaluate(
                    eval_spec.input_fn,
                    steps=eval_spec.steps,
                    checkpoint_path=path,
                    name=eval_spec.name,
                )
            )

    listeners = (*train_spec.saving_listeners, *([evaluate] if eval_spec else []))
    path = estimator.train(train_spec.input_fn, train_spec.max_steps, listeners)
    # An earlier run may have trained it all, and stopped before this was scored.
    if eval_spec and not results and not estimator.is_scored(path, eval_spec.name):
        evaluate(path, checkpoints.step_of(path))
    return results or None


def check_intervals(
    estimator: estimator_lib.TPUEstimator,
    train_spec: spec.TrainSpec,
    eval_spec: spec.EvalSpec | None,
) -> None:
    """Checks before the first step that every interval will be reached.

    Raises:
      ValueError: saving or evaluating would never be due.
    """
    estimator.config.check_save_interval(train_spec.max_steps)
    every = eval_spec.every_steps if eval_spec else None
    if not every:
        return
    saves = estimator.config.save_checkpoints_steps
    if every > train_spec.max_steps or not saves or every % saves:
        raise ValueError(
            f"EVAL_EVERY (EvalSpec.every_steps) is {every}: evaluation would never be "
            f"due. Make it a multiple of save_checkpoints_steps ({saves}), at most "
            f"max_steps ({train_spec.max_steps}), or None to score only the end."
        )
