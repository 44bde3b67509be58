"""Scores checkpoints that other processes may be writing, deleting or scoring.

What protects a score: a lease keeps the checkpoint, and keeps others from scoring it;
the step inside must be that of its name; and what cannot be read gives no score.
"""

import gc

import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator import exporters, spec, summaries, tpu_estimator
from retinanet_tpu.estimator.model_dir import checkpoints, leases


class CheckpointEvaluator:
    """Scores and exports each checkpoint of a run once, over all processes.

    Two score the same only if one of them stood still for leases.TIMEOUT_SECS; the step
    has one line of eval.jsonl even then.
    """

    def __init__(
        self,
        estimator: tpu_estimator.TPUEstimator,
        eval_spec: spec.EvalSpec,
        book: leases.LeaseTable,
    ):
        """Takes what to score on, and the leases on the run's checkpoints."""
        self._estimator, self._spec, self._book = estimator, eval_spec, book
        self._model_dir = estimator.model_dir
        self._kind = f"eval_{eval_spec.name}" if eval_spec.name else "eval"
        self._unreadable = {}
        records = summaries.read_evaluations(f"{self._model_dir}/{self._kind}")
        # Who wrote the last line may have been killed before it was exported.
        is_asked = records and eval_spec.exporters
        self._unexported = records[-1]["global_step"] if is_asked else None

    def whole_steps(self) -> list[int]:
        """Returns the steps of all checkpoints but those found broken, rising."""
        return [s for s in checkpoints.steps(self._model_dir) if self._may_be_whole(s)]

    def scored_steps(self) -> set[int]:
        """Returns the steps that are scored, by whomever."""
        records = summaries.read_evaluations(f"{self._model_dir}/{self._kind}")
        return {record["global_step"] for record in records}

    def taken_steps(self, own: str = "") -> set[int]:
        """Returns the steps that other processes score, or are about to delete."""
        return self._book.held_steps([own], (self._kind, "delete"))

    def unexported_step(self) -> int | None:
        """Returns the step that is scored, but perhaps not exported yet."""
        step = self._unexported
        return step if step is not None and step in self.whole_steps() else None

    def score(self, step: int, *, is_final: bool) -> bool:
        """Scores and exports a checkpoint; tells whether this process did.

        It did not if another process was at it, or if the checkpoint is gone or broken;
        the log says so.

        Args:
          step: of the checkpoint.
          is_final: whether it is the run's last.
        Raises:
          ValueError: the checkpoint is of another configuration.
        """
        path = checkpoints.path_of(self._model_dir, step)
        with leases.lease_checkpoint(self._model_dir, path, self._kind) as lease:
            # Who sees nobody after taking a lease is alone: others will see his.
            done = self.scored_steps() - {self._unexported}
            if step in self.taken_steps(lease) | done:
                logging.info("Another process has %s", path)
                return False
            seen = _fingerprint(path)
            damage = checkpoints.find_corruption(path, "global_step")
            try:
                if not damage:
                    self._score_and_export(path, step, is_final)
            except (*checkpoints.CORRUPTION_ERRORS, ValueError):
                damage = checkpoints.find_corruption(path)
                if not damage:
                    raise  # The data are to blame, or the configuration.
        if damage:
            self._unreadable[step] = seen
            logging.warning("Skipping %s: %s", path, damage)
        # An evaluation leaves datasets in cycles; collect them while they are few.
        gc.collect()
        return not damage

    def _score_and_export(self, path, step, is_final):
        results = self._estimator.scores(path, self._spec.name)
        if results is None:
            logging.info("Scoring %s", path)
            results = self._estimator.evaluate(
                self._spec.input_fn,
                steps=self._spec.steps,
                checkpoint_path=path,
                name=self._spec.name,
            )
        self._unexported = step
        exporters.export_all(
            self._spec.exporters, self._estimator, path, results, is_final=is_final
        )
        self._unexported = None

    def _may_be_whole(self, step):
        """Tells whether a checkpoint was not found broken, as it is now."""
        path = checkpoints.path_of(self._model_dir, step)
        was_broken = step in self._unreadable
        return not was_broken or self._unreadable[step] != _fingerprint(path)


def _fingerprint(path):
    """Returns what differs once a checkpoint is written anew."""
    try:
        stats = [tf.io.gfile.stat(name) for name in checkpoints.files_of(path)]
    except tf.errors.NotFoundError:
        return None
    return [(stat.length, stat.mtime_nsec) for stat in stats]
