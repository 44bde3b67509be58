"""Saves checkpoints when they are due, and deletes old ones."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from retinanet_tpu.estimator import run_config, spec, train_step
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints, leases


class Saver:
    """A writer of the checkpoints of a run, which also deletes the oldest.

    If there are several workers, the chief writes and the others wait for it.

    Attributes:
      model_dir: The directory of the checkpoints.
      saved_step: The step of the newest checkpoint, or the first step of the run.
    """

    def __init__(
        self,
        model_dir: str,
        config: run_config.RunConfig,
        *,
        first_step: int,
        listeners: Sequence[spec.SavingListener] = (),
        workers: worker_group.Workers = worker_group.SINGLE_WORKER,
        before_save: Callable[[], None] = preemption.no_stop,
    ):
        """Initializes the saver.

        Args:
          model_dir: The directory of the checkpoints.
          config: The interval, and the number of checkpoints to keep.
          first_step: The step that the run begins with, which needs no saving.
          listeners: Each is called with (path, step) after a save, on the chief.
          workers: All workers of the run.
          before_save: Called before each save, on the chief.
        """
        self.model_dir = model_dir
        self.saved_step = first_step
        self._config = config
        self._listeners = listeners
        self._workers = workers
        self._before_save = before_save
        self._readers = leases.LeaseTable(model_dir)
        self._saved_at = time.monotonic()

    def save_if_due(self, state: train_step.TrainState, max_steps: int) -> None:
        """Saves if the interval has passed, and at the last step.

        Raises:
          DivergedError: A value is not finite; nothing is written.
        """
        secs = time.monotonic() - self._saved_at
        if self._workers.any_worker(
            self._config.is_save_due(state.step, max_steps, secs)
        ):
            self.save(state)

    def save_rest(
        self,
        state: train_step.TrainState,
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Saves the steps since the last checkpoint, if there are any.

        Args:
          state: The state to save.
          tensors: Its tensors, if they are already read.
        """
        if state.step != self.saved_step:
            self.save(state, tensors)

    def save(
        self,
        state: train_step.TrainState,
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Saves, deletes old checkpoints that nobody reads, and calls the listeners.

        Args:
          state: The state to save.
          tensors: Its tensors, if they are already read.
        Raises:
          DivergedError: A value is not finite; nothing is written.
        """
        # On every worker, so that all of them raise if a value is not finite.
        tensors = tensors or state.tensors()
        if self._workers.is_chief:
            self._write(state.step, tensors)
        self._workers.wait()
        self.saved_step, self._saved_at = state.step, time.monotonic()

    def _write(self, step, tensors):
        self._before_save()
        path = checkpoints.save(self.model_dir, step, tensors)
        self.saved_step = step
        logging.info("Saved %s", path)
        self._delete_old(step)
        for listener in self._listeners:
            listener(path, step)

    def _delete_old(self, newest):
        """Deletes old checkpoints; those that are being read only at a later save.

        Both the saver and a reader first write a lease, then check for other leases.
        Therefore at least one of the two sees the other.
        """
        # Checkpoints above the newest are corrupt; this run will overwrite them.
        steps = [s for s in checkpoints.steps(self.model_dir) if s <= newest]
        keep = self._config.keep_checkpoint_max
        old = steps[:-keep] if keep else []
        with contextlib.ExitStack() as stack:
            own = set()
            for path in [checkpoints.path_of(self.model_dir, step) for step in old]:
                lease = leases.lease_checkpoint(self.model_dir, path, "delete")
                own.add(stack.enter_context(lease))
            held = self._readers.held_steps(own) if old else ()
            checkpoints.delete(self.model_dir, [s for s in old if s not in held])
