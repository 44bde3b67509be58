"""The sidecar: evaluates the checkpoints of a run in a separate process.

It shares only the model_dir with the trainer. It reads there
  model.ckpt-N      the checkpoints; a lease keeps one from deletion while it is read
  eval/eval.jsonl   the results of all evaluators; the sidecar's only persistent state
  run_state.json    the heartbeat of the trainer, and how the run ended
and ends when no checkpoint is left to evaluate and the trainer has ended.
"""

import random
import time
from collections.abc import Callable, Collection, Sequence

from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import checkpoint_evaluator, spec, tpu_estimator
from retinanet_tpu.estimator.model_dir import checkpoints, leases, run_state

# Errors after which an evaluation is retried: storage, and another writer's lock.
_RETRIED_ERRORS = (*checkpoints.TRANSIENT_ERRORS, TimeoutError)
POLICIES = ("latest", "all", "every_k")


class TrainerGoneError(Exception):
    """The trainer gave no sign of life for too long."""


class RunFailedError(Exception):
    """The trainer failed; its checkpoints are evaluated."""


class StorageError(OSError):
    """Files could not be written for too long."""


def select_steps(
    steps: Sequence[int],
    done: Collection[int],
    *,
    policy: str,
    every_k_steps: int | None = None,
    final: int | None = None,
) -> list[int]:
    """Returns the steps that a policy evaluates next, in order.

    Args:
      steps: The steps of the existing checkpoints, rising.
      done: The steps that are evaluated, or that another sidecar is evaluating.
      policy: "latest" selects the newest and never returns to a skipped one; "all"
        selects each; "every_k" selects the multiples of every_k_steps and `final`.
      every_k_steps: The interval of "every_k".
      final: The last step of the run, if it is known.
    Raises:
      ValueError: "every_k" has no interval.
    """
    left = [step for step in steps if step not in done]
    if policy == "latest":
        return [step for step in left[-1:] if step > max(done, default=-1)]
    if policy == "every_k":
        if every_k_steps is None:
            raise ValueError("The policy 'every_k' requires every_k_steps.")
        return [step for step in left if step % every_k_steps == 0 or step == final]
    return left


class Sidecar:
    """An evaluator of the checkpoints of a run that another process trains."""

    def __init__(
        self,
        estimator: tpu_estimator.TPUEstimator,
        eval_spec: spec.EvalSpec,
        *,
        max_steps: int,
        policy: str = "latest",
        every_k_steps: int | None = None,
        timeout_secs: float = 1800,
        preemption_secs: float = 86400,
        poll_secs: float = 10,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ):
        """Initializes the sidecar.

        Args:
          estimator: The estimator of the run; its strategy may differ from the
            trainer's.
          eval_spec: The data to evaluate on, and the exporters.
          max_steps: The number of steps of the run.
          policy: See select_steps.
          every_k_steps: See select_steps.
          timeout_secs: The time that a running trainer may be silent, and that storage
            may fail.
          preemption_secs: The time that a preempted trainer may be away.
          poll_secs: The time between two polls of the model_dir.
          clock: Returns monotonic seconds.
          sleep: Waits for seconds.
        Raises:
          UserError: The policy is unknown, or "every_k" has no interval.
        """
        if policy not in POLICIES:
            raise errors.UserError(f"The policy is '{policy}'; use one of {POLICIES}.")
        if policy == "every_k" and (every_k_steps or 0) < 1:
            raise errors.UserError(
                f"every_k_steps is {every_k_steps}; the policy 'every_k' requires a "
                "whole number of at least 1."
            )
        self._model_dir = estimator.model_dir
        self._max_steps = max_steps
        self._policy = policy
        self._every_k_steps = every_k_steps
        self._timeout_secs = timeout_secs
        self._preemption_secs = preemption_secs
        self._poll_secs = poll_secs
        self._clock = clock
        self._sleep = sleep
        self._monitor = run_state.TrainerMonitor(self._model_dir, clock)
        self._evaluator = checkpoint_evaluator.CheckpointEvaluator(
            estimator, eval_spec, leases.LeaseTable(self._model_dir, clock=clock)
        )
        self._failing_since: float | None = None

    def run(self, *, once: bool = False) -> list[int]:
        """Evaluates until the run has ended.

        Args:
          once: Whether to evaluate only the existing checkpoints, without a wait for
            the trainer.
        Returns:
          The steps that this process evaluated or exported.
        Raises:
          TrainerGoneError: There was no heartbeat for timeout_secs, or for
            preemption_secs after a preemption.
          RunFailedError: The trainer ended with an error.
          StorageError: Nothing could be written for timeout_secs.
          MissingFileError: A finished run has no valid final checkpoint.
          UserError: A checkpoint is of another configuration.
        """
        evaluated: list[int] = []
        newest_before_end: int | None = None
        while True:
            # Before the listing, so that it contains all checkpoints of a finished run.
            state = self._monitor.poll()
            is_finished = state is not None and state.state == run_state.FINISHED
            final = state.step if state and is_finished else self._max_steps
            if is_finished and newest_before_end == final:
                # It was evaluated before it was known to be the last.
                self._evaluator.export_again(final)
                newest_before_end = None
            step = self._next_step(final)
            if step is None and (once or self._is_over(state)):
                return evaluated
            if step is not None and self._evaluate(step, is_final=step >= final):
                evaluated.append(step)
                newest_before_end = step if step < final else None
            else:
                # A random wait, so that two sidecars do not collide again.
                self._sleep(self._poll_secs * random.uniform(0.5, 1))

    def _next_step(self, final: int) -> int | None:
        """Returns the step to evaluate now, None if there is none."""
        unexported = self._evaluator.unexported_step()
        if unexported is not None:
            return unexported
        # Before the results: a lease is removed after its result is written.
        leased = self._evaluator.leased_steps()
        steps = select_steps(
            self._evaluator.valid_steps(),
            leased | self._evaluator.evaluated_steps(),
            policy=self._policy,
            every_k_steps=self._every_k_steps,
            final=final,
        )
        return steps[0] if steps else None

    def _evaluate(self, step: int, *, is_final: bool) -> bool:
        """Evaluates a checkpoint; returns whether this process did."""
        try:
            is_evaluated = self._evaluator.evaluate(step, is_final=is_final)
        except _RETRIED_ERRORS as error:
            now = self._clock()
            if self._failing_since is None:
                self._failing_since = now
            if now - self._failing_since > self._timeout_secs:
                raise StorageError(
                    f"Step {step} cannot be evaluated. Storage has failed for "
                    f"{self._timeout_secs} s: {error}"
                ) from error
            logging.warning("Postponing step %d: storage error: %s", step, error)
            return False
        self._failing_since = None
        return is_evaluated

    def _is_over(self, state: run_state.RunState | None) -> bool:
        """Returns whether the run has finished; raises if the trainer failed.

        Called if no checkpoint is left to evaluate.
        """
        silent_secs = self._monitor.secs_since_change()
        if state is None or state.state == run_state.RUNNING:
            if silent_secs > self._timeout_secs:
                raise TrainerGoneError(
                    f"No heartbeat from the trainer of {self._model_dir} for "
                    f"{silent_secs:.0f} s; its checkpoints are evaluated. Restart it, "
                    "then this command; or wait longer (--timeout_secs), or not at all "
                    "(--once)."
                )
            return False
        if state.state == run_state.PREEMPTED:
            if silent_secs > self._preemption_secs:
                raise TrainerGoneError(
                    f"The trainer of {self._model_dir} was preempted at step "
                    f"{state.step} and has not resumed for {silent_secs:.0f} s; its "
                    "checkpoints are evaluated. Restart it, then this command; or wait "
                    "longer (--preemption_secs)."
                )
            return False
        if state.state == run_state.FAILED:
            raise RunFailedError(
                f"The trainer of {self._model_dir} failed at step {state.step}; its "
                "checkpoints are evaluated. Its log contains the error."
            )
        return self._is_final_evaluated(state.step)

    def _is_final_evaluated(self, step: int) -> bool:
        """Returns whether the final checkpoint of a finished run is evaluated."""
        if step in self._evaluator.leased_steps():
            return False
        if step in self._evaluator.evaluated_steps():
            return True
        raise errors.MissingFileError(
            f"{self._model_dir} finished at step {step}, but has no valid checkpoint "
            "of that step to evaluate."
        )
