"""Evaluates checkpoints that other processes may write, delete or evaluate.

Three things protect a result. A lease keeps the checkpoint, and keeps others from
evaluating it. The step inside must be that of the name. A corrupt checkpoint yields no
result.
"""

import gc

import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator import exporters, spec, summaries, tpu_estimator
from retinanet_tpu.estimator.model_dir import checkpoints, leases


class CheckpointEvaluator:
    """An evaluator and exporter of each checkpoint of a run, once over all processes.

    Two processes evaluate the same checkpoint only if one of them was suspended for
    leases.TIMEOUT_SECS. Even then eval.jsonl has one line for the step.
    """

    def __init__(
        self,
        estimator: tpu_estimator.TPUEstimator,
        eval_spec: spec.EvalSpec,
        lease_table: leases.LeaseTable,
    ):
        """Initializes the evaluator.

        Args:
          estimator: Evaluates and exports.
          eval_spec: The data to evaluate on, and the exporters.
          lease_table: The leases on the run's checkpoints.
        """
        self._estimator = estimator
        self._spec = eval_spec
        self._leases = lease_table
        self._model_dir = estimator.model_dir
        self._eval_dir = summaries.eval_dir(self._model_dir, eval_spec.name)
        self._kind = self._eval_dir.rpartition("/")[2]
        # The fingerprints of corrupt checkpoints, by step.
        self._corrupt: dict[int, list[tuple[int, int]] | None] = {}
        records = summaries.read_evaluations(self._eval_dir)
        # The writer of the last line may have been killed before it exported the step.
        is_unsure = records and eval_spec.exporters
        self._unexported = records[-1]["global_step"] if is_unsure else None

    def valid_steps(self) -> list[int]:
        """Returns the steps of all checkpoints except known corrupt ones, rising."""
        return [s for s in checkpoints.steps(self._model_dir) if self._may_be_valid(s)]

    def evaluated_steps(self) -> set[int]:
        """Returns the steps that any process has evaluated."""
        records = summaries.read_evaluations(self._eval_dir)
        return {record["global_step"] for record in records}

    def leased_steps(self, own: str = "") -> set[int]:
        """Returns the steps that other processes evaluate or are about to delete.

        Args:
          own: The name of a lease to leave out.
        """
        return self._leases.held_steps([own], (self._kind, "delete"))

    def unexported_step(self) -> int | None:
        """Returns the step that is evaluated, but perhaps not exported yet."""
        step = self._unexported
        return step if step is not None and step in self.valid_steps() else None

    def export_again(self, step: int) -> None:
        """Lets the next evaluation of a step, which has results, export it."""
        if self._spec.exporters:
            self._unexported = step

    def evaluate(self, step: int, *, is_final: bool) -> bool:
        """Evaluates and exports a checkpoint; returns whether this process did.

        It does not if another process holds the checkpoint or has evaluated it, or if
        the checkpoint is missing or corrupt; the log contains the reason.

        Args:
          step: The step of the checkpoint.
          is_final: Whether it is the last checkpoint of the run.
        Raises:
          ValueError: The checkpoint is of another configuration.
        """
        path = checkpoints.path_of(self._model_dir, step)
        with leases.lease_checkpoint(self._model_dir, path, self._kind) as lease:
            # Check for other leases only after writing ours: any later evaluator is
            # guaranteed to see ours.
            done = self.evaluated_steps() - {self._unexported}
            if step in self.leased_steps(lease) | done:
                logging.info("Another process evaluates or has evaluated %s", path)
                return False
            fingerprint = _fingerprint(path)
            corruption = checkpoints.find_corruption(path, "global_step")
            try:
                if not corruption:
                    self._evaluate_and_export(path, step, is_final)
            except (*checkpoints.CORRUPTION_ERRORS, ValueError):
                corruption = checkpoints.find_corruption(path)
                if not corruption:
                    raise  # The cause is the data or the configuration.
        if corruption:
            self._corrupt[step] = fingerprint
            logging.warning("Skipping %s: %s", path, corruption)
        # An evaluation leaves datasets in reference cycles; few of them fit in memory.
        gc.collect()
        return not corruption

    def _evaluate_and_export(self, path, step, is_final):
        results = self._estimator.evaluation_results(path, self._spec.name)
        if results is None:
            logging.info("Evaluating %s", path)
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

    def _may_be_valid(self, step):
        """Returns whether the present files of a checkpoint are not known corrupt."""
        path = checkpoints.path_of(self._model_dir, step)
        is_known = step in self._corrupt
        return not is_known or self._corrupt[step] != _fingerprint(path)


def _fingerprint(path):
    """Returns a value that changes when a checkpoint is rewritten."""
    try:
        stats = [tf.io.gfile.stat(name) for name in checkpoints.files_of(path)]
    except tf.errors.NotFoundError:
        return None
    return [(stat.length, stat.mtime_nsec) for stat in stats]
