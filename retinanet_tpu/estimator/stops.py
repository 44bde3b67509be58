"""Stops a training run that is asked to, and saves what was trained."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator import checkpoint_saver, train_step, waits
from retinanet_tpu.estimator.cluster import preemption, worker_group

T = TypeVar("T")
NOT_STARTED = -1


class Progress(NamedTuple):
    """How far a loop of steps is, by global steps."""

    num_fetched: tuple[int, ...]  # batches that came, by replica, or NOT_STARTED
    num_done: int  # steps that all replicas are done with

    @property
    def is_waiting(self) -> bool:
        """True if a replica waits for the batch of the next step."""
        return NOT_STARTED < min(self.num_fetched) <= self.num_done

    @property
    def is_between_steps(self) -> bool:
        """True if no replica has begun the next step."""
        return self.is_waiting and max(self.num_fetched) == self.num_done


class Stopper:
    """Ends a run between two loops, or within a loop that waits for data."""

    def __init__(
        self,
        state: train_step.TrainState,
        saver: checkpoint_saver.Saver,
        stop_reason: Callable[[], str | None],
        workers: worker_group.Workers = worker_group.SINGLE_WORKER,
    ):
        """Takes what to save, and who asks.

        Args:
          state: What is trained.
          saver: Writes the last checkpoint.
          stop_reason: Why this worker is to stop, None if it is not.
          workers: All of the run.
        """
        self._state, self._saver, self._stop_reason = state, saver, stop_reason
        self._agreed_reason = workers.synchronized_stop_reason(stop_reason)
        self._is_alone = workers.count == 1

    def check(self) -> None:
        """Saves and raises Interrupted if any worker has a reason to stop."""
        if reason := self._agreed_reason():
            raise self._saved(reason)

    def call(self, fn: Callable[[], T]) -> T:
        """Returns fn(), which changes no variable and may wait for data.

        Raises:
          Interrupted: There was a reason to stop meanwhile.
        """
        try:
            return waits.call(fn, waits.Stall(self._stop_reason).reason)
        except waits.GivenUpError as stop:
            raise self._saved(str(stop)) from None

    def call_loop(self, fn: Callable[[], T], progress_fn: Callable[[], Progress]) -> T:
        """Returns fn(), which trains, unless a batch does not come and there is reason.

        What was trained is then saved, with two exceptions. Several workers only save
        together. And a replica that has its batch has begun to change variables.

        Args:
          fn: Runs a loop of steps.
          progress_fn: Returns how far it is.
        Raises:
          Interrupted: There was a reason, and no batch came for waits.STALL_SECS.
        """

        def movement():
            seen = progress_fn()
            return seen if seen.is_waiting else object()  # A step that computes moves.

        def give_up_reason():
            nonlocal tensors
            reason, seen = stall.reason(), progress_fn()
            before, tensors = tensors, None
            if not reason or not seen.is_waiting:
                return None
            self._state.step = seen.num_done
            if self._is_alone and seen.is_between_steps:
                tensors = self._finite_tensors()
            # The batch may have come meanwhile, and its step begun to change variables.
            # On a busy machine the counters may be late, so two readings must agree.
            is_still = progress_fn() == seen
            if is_still and (tensors is None or _are_equal(before, tensors)):
                return reason
            self._state.step = first_step
            tensors = tensors if is_still else None
            return None

        first_step, tensors = self._state.step, None
        stall = waits.Stall(self._stop_reason, movement)
        try:
            return waits.call(fn, give_up_reason)
        except waits.GivenUpError as stop:
            reason = str(stop)
        logging.warning("No batch came; not waiting for it any longer")
        raise self._saved(reason, tensors) if tensors else self._unsaved(reason)

    def _finite_tensors(self):
        """Returns what a checkpoint would hold, None if a value is not finite."""
        try:
            return self._state.tensors()
        except train_step.DivergedError as error:
            logging.error("Not saved: %s", error)
            return None

    def _saved(self, reason, tensors=None):
        """Saves, and returns Interrupted; a stop remains one if saving fails."""
        try:
            self._saver.save_rest(self._state, tensors)
        except (tf.errors.OpError, OSError) as error:
            logging.error("Step %d could not be saved: %s", self._state.step, error)
        return self._unsaved(reason)

    def _unsaved(self, reason):
        saved_step = self._saver.saved_step
        num_lost = max(0, self._state.step - saved_step)
        return preemption.Preempted(reason, saved_step, num_lost=num_lost)


def _are_equal(before, now):
    return before is not None and all(
        np.array_equal(before[name], value) for name, value in now.items()
    )
