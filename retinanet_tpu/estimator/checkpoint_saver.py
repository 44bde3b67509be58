"""When a run saves, and which checkpoints stay."""

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging

from retinanet_tpu.estimator import run_config, train_step
from retinanet_tpu.estimator.cluster import preemption, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints, leases


class Saver:
    """Writes the checkpoints of a run when they are due, and deletes the oldest.

    Of several workers the chief does so, and the others wait for it.

    Attributes:
      model_dir: where they lie.
      saved_step: of the newest, or the first step of the run.
    """

    def __init__(
        self,
        model_dir: str,
        config: run_config.RunConfig,
        first_step: int,
        listeners: Sequence[Callable] = (),
        workers: worker_group.Workers = worker_group.SINGLE_WORKER,
        before_save: Callable[[], None] = preemption.no_stop,
    ):
        """Takes where and when to save.

        Args:
          model_dir: gets the checkpoints.
          config: says when, and how many stay.
          first_step: that the run begins with; it needs no saving.
          listeners: each is called with (path, step) after a save, on the chief.
          workers: of the run.
          before_save: called before anything is written, on the chief.
        """
        self.model_dir, self._config = model_dir, config
        self._listeners, self._workers = listeners, workers
        self._before_save = before_save
        self._readers = leases.LeaseTable(model_dir)
        self.saved_step, self._saved_at = first_step, time.monotonic()

    def save_if_due(self, state: train_step.TrainState, max_steps: int) -> None:
        """Saves where the configuration says so, and at the last step.

        Raises:
          DivergedError: a value is not finite; nothing is written.
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
        """Saves what was trained since the last checkpoint, if anything was."""
        if state.step != self.saved_step:
            self.save(state, tensors)

    def save(
        self,
        state: train_step.TrainState,
        tensors: Mapping[str, np.ndarray] | None = None,
    ) -> None:
        """Saves, deletes what is old and not being read, and tells the listeners.

        Args:
          state: What to save.
          tensors: Its tensors, if they were read before.
        Raises:
          DivergedError: A value is not finite; nothing is written.
        """
        tensors = tensors or state.tensors()  # All workers find that they diverged.
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
                lease = leases.lease_checkpoint(self.model_dir, path, "delete")
                own.add(stack.enter_context(lease))
            held = self._readers.held_steps(own) if old else ()
            checkpoints.delete(self.model_dir, [s for s in old if s not in held])
