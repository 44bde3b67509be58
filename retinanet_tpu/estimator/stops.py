"""Stops a training run for a reason, and saves the trained steps."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator import checkpoint_saver, spec, train_step, waits
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.engines import engine

T = TypeVar("T")


class Stopper:
    """The stop of a run, between two loops or within a loop that waits for data."""

    def __init__(
        self,
        state: train_step.TrainState,
        saver: checkpoint_saver.Saver,
        stop_reason: spec.StopReason,
        workers: worker_group.Workers = worker_group.SINGLE_WORKER,
    ):
        """Initializes the stopper.

        Args:
          state: The state that is trained.
          saver: Writes the last checkpoint.
          stop_reason: Returns why this worker must stop, or None.
          workers: All workers of the run.
        """
        self._state = state
        self._saver = saver
        self._stop_reason = stop_reason
        self._agreed_reason = workers.synchronized_stop_reason(stop_reason)
        self._workers = workers

    def check(self) -> None:
        """Saves and raises Preempted if any worker has a reason to stop."""
        if reason := self._agreed_reason():
            raise self._saved(reason)

    def call(self, fn: Callable[[], T]) -> T:
        """Returns fn(), which changes no variable and may wait for data.

        Raises:
          Preempted: A reason to stop appeared before fn returned.
          LostError: Another worker was lost.
        """
        stall = waits.Stall(self._stop_reason)

        def give_up_reason():
            self._workers.check_connected()
            return stall.reason()

        try:
            return waits.call(fn, give_up_reason)
        except waits.GivenUpError as stop:
            raise self._saved(str(stop)) from None

    def call_loop(
        self, fn: Callable[[], T], progress_fn: Callable[[], engine.Progress]
    ) -> T:
        """Returns fn(), which trains, unless it stalls and there is a reason to stop.

        The trained steps are then saved, with two exceptions. Several workers only save
        together. And a replica that has its batch has begun to change variables.

        Args:
          fn: Runs a loop of steps.
          progress_fn: Returns its progress.
        Raises:
          Preempted: There was a reason, and no batch arrived for waits.STALL_SECS.
          LostError: Another worker was lost.
        """
        first_step = self._state.step
        tensors: dict[str, np.ndarray] | None = None

        def movement():
            progress = progress_fn()
            # A step that computes always counts as progress.
            return progress if progress.is_waiting else object()

        def give_up_reason():
            nonlocal tensors
            self._workers.check_connected()
            reason = stall.reason()
            progress = progress_fn()
            before, tensors = tensors, None
            if not reason or not progress.is_waiting:
                return None
            self._state.step = progress.num_done
            if self._workers.count == 1 and progress.is_between_steps:
                tensors = self._finite_tensors()
            # The batch may have arrived meanwhile, and its step may have begun to
            # change variables. On a busy machine the counters may be late, so two
            # readings must agree.
            is_still = progress_fn() == progress
            if is_still and (tensors is None or _are_equal(before, tensors)):
                return reason
            self._state.step = first_step
            tensors = tensors if is_still else None
            return None

        stall = waits.Stall(self._stop_reason, movement)
        try:
            return waits.call(fn, give_up_reason)
        except waits.GivenUpError as stop:
            reason = str(stop)
        logging.warning("No batch arrived; the run stops without it")
        if tensors:
            raise self._saved(reason, tensors)
        raise self._unsaved(reason)

    def _finite_tensors(self):
        """Returns the values of a checkpoint, None if one is not finite."""
        try:
            return self._state.tensors()
        except train_step.DivergedError as error:
            logging.error("Not saved: %s", error)
            return None

    def _saved(
        self, reason: str, tensors: Mapping[str, np.ndarray] | None = None
    ) -> preemption.Preempted:
        """Saves, and returns Preempted, even if saving fails."""
        try:
            self._saver.save_rest(self._state, tensors)
        except (tf.errors.OpError, OSError) as error:
            logging.error("Step %d could not be saved: %s", self._state.step, error)
        return self._unsaved(reason)

    def _unsaved(self, reason: str) -> preemption.Preempted:
        saved_step = self._saver.saved_step
        num_lost = max(0, self._state.step - saved_step)
        return preemption.Preempted(reason, saved_step, num_lost=num_lost)


def _are_equal(before, now):
    return before is not None and all(
        np.array_equal(before[name], value) for name, value in now.items()
    )
