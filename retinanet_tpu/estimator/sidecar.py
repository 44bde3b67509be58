"""The sidecar: scores the checkpoints of a run in a process of its own.

It shares nothing with the trainer but the model_dir. It looks there for
  model.ckpt-N      what to score; under a lease, so that it stays while it is read
  eval/eval.jsonl   what was scored, by whomever: that file is its whole memory
  run_state.json    whether the trainer lives, and how it ended
and ends when there is nothing left to score and nothing left to wait for.
"""

import random
import time
from collections.abc import Callable, Collection, Sequence

from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import checkpoint_evaluator, spec, tpu_estimator
from retinanet_tpu.estimator.model_dir import checkpoints, leases, run_state

# What may pass: storage that fails, and another writer in the way.
_PASSING = (*checkpoints.TRANSIENT_ERRORS, TimeoutError)
POLICIES = ("latest", "all", "every_k")


class TrainerGoneError(Exception):
    """Nothing came from the trainer for too long."""


class RunFailedError(Exception):
    """The trainer gave up; what it left is scored."""


class StorageError(OSError):
    """Files could not be written for too long."""


def choose(
    found: Sequence[int],
    done: Collection[int],
    *,
    policy: str,
    every_k_steps: int | None = None,
    final: int | None = None,
) -> list[int]:
    """Returns the steps that a policy wants scored, in the order to score them.

    Args:
      found: steps whose checkpoints are there, rising.
      done: steps that are scored, or that another sidecar is at.
      policy: "latest" takes the newest and never goes back to those it skipped; "all"
        takes each; "every_k" takes the multiples of every_k_steps, and the final one.
      every_k_steps: for "every_k".
      final: the last step of the run.
    """
    left = [step for step in found if step not in done]
    if policy == "latest":
        return [step for step in left[-1:] if step > max(done, default=-1)]
    if policy == "every_k":
        return [step for step in left if step % every_k_steps == 0 or step == final]
    return left


class Sidecar:
    """Scores what a policy wants of a run, until the run is over."""

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
        """Takes what to score, and how long to wait for what.

        Args:
          estimator: of the run; it need not have the trainer's strategy.
          eval_spec: what to score on, and who exports.
          max_steps: of the run.
          policy: see choose.
          every_k_steps: see choose.
          timeout_secs: how long a running trainer may be silent, and how long storage
            may fail.
          preemption_secs: how long a preempted trainer may stay away.
          poll_secs: time between two looks.
          clock: monotonic seconds.
          sleep: waits for seconds.
        Raises:
          UserError: no such policy, or "every_k" without a number.
        """
        if policy not in POLICIES:
            raise errors.UserError(f"The policy is '{policy}'; use one of {POLICIES}.")
        if policy == "every_k" and (every_k_steps or 0) < 1:
            raise errors.UserError(
                f"every_k_steps is {every_k_steps}; the policy 'every_k' needs a whole "
                "number of at least 1."
            )
        self._model_dir, self._max_steps = estimator.model_dir, max_steps
        self._policy, self._every_k_steps = policy, every_k_steps
        self._timeout_secs, self._preemption_secs = timeout_secs, preemption_secs
        self._poll_secs, self._clock, self._sleep = poll_secs, clock, sleep
        self._watch = run_state.TrainerMonitor(self._model_dir, clock)
        book = leases.LeaseTable(self._model_dir, clock=clock)
        self._scorer = checkpoint_evaluator.CheckpointEvaluator(
            estimator, eval_spec, book
        )
        self._failing_since = None

    def run(self, *, once: bool = False) -> list[int]:
        """Scores until the run is over; returns the steps that it scored or exported.

        Args:
          once: do not wait for the trainer, only score what is there.
        Raises:
          TrainerGoneError: no heartbeat for timeout_secs, or none since a preemption
            for preemption_secs.
          RunFailedError: the trainer ended with an error.
          StorageError: nothing could be written for timeout_secs.
          MissingFileError: the final checkpoint of a finished run cannot be scored.
          UserError: a checkpoint is of another configuration.
        """
        scored = []
        while True:
            # Before the listing: what a finished run left is then all there.
            state = self._watch.poll()
            final = state.step if _is_finished(state) else self._max_steps
            step = self._next_step(final)
            if step is None and (once or self._is_over(state)):
                return scored
            if step is not None and self._score(step, is_final=step >= final):
                scored.append(step)
            else:  # Two sidecars that got in each other's way come back apart.
                self._sleep(self._poll_secs * random.uniform(0.5, 1))

    def _next_step(self, final):
        """Returns the step to score now, None if there is none."""
        unexported = self._scorer.unexported_step()
        if unexported is not None:
            return unexported
        taken = self._scorer.taken_steps()  # First: leases go after lines are written.
        wanted = choose(
            self._scorer.whole_steps(),
            taken | self._scorer.scored_steps(),
            policy=self._policy,
            every_k_steps=self._every_k_steps,
            final=final,
        )
        return wanted[0] if wanted else None

    def _score(self, step, *, is_final):
        """Scores a checkpoint; tells whether it came to that."""
        try:
            is_scored = self._scorer.score(step, is_final=is_final)
        except _PASSING as error:
            now = self._clock()
            if self._failing_since is None:
                self._failing_since = now
            if now - self._failing_since > self._timeout_secs:
                raise StorageError(
                    f"Step {step} cannot be scored; for {self._timeout_secs} s storage "
                    f"says: {error}"
                ) from error
            logging.warning("Step %d waits, for storage fails: %s", step, error)
            return False
        self._failing_since = None
        return is_scored

    def _is_over(self, state):
        """Tells whether a run of which nothing is left to score is over, or raises."""
        silent = self._watch.secs_since_change()
        if state is None or state.state == run_state.RUNNING:
            if silent > self._timeout_secs:
                raise TrainerGoneError(
                    f"Nothing came from the trainer of {self._model_dir} for "
                    f"{silent:.0f} s; what it left is scored. Start it again, then "
                    "this; or wait longer (--timeout_secs), or not at all (--once)."
                )
        elif state.state == run_state.PREEMPTED:
            if silent > self._preemption_secs:
                raise TrainerGoneError(
                    f"The trainer of {self._model_dir} was preempted at step "
                    f"{state.step} and did not come back for {silent:.0f} s; what it "
                    "left is scored. Start it again, then this; or wait longer "
                    "(--preemption_secs)."
                )
        elif state.state == run_state.FAILED:
            raise RunFailedError(
                f"The trainer of {self._model_dir} failed at step {state.step}; what "
                "it left is scored. Its log says why."
            )
        elif state.step not in self._scorer.taken_steps():
            if state.step in self._scorer.scored_steps():
                return True
            raise errors.MissingFileError(
                f"{self._model_dir} finished at step {state.step}, but there is no "
                "whole checkpoint of that step to score."
            )
        return False


def _is_finished(state):
    return state is not None and state.state == run_state.FINISHED
