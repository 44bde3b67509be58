"""Evaluates and exports the checkpoints of a trainer, while it trains on."""

import gc
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from absl import logging

from retinanet_tpu.estimator import exporters, spec, tpu_estimator
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints


class Evaluations:
    """The evaluations of a trainer, used as a context.

    The devices run only the forward passes. A thread computes the metrics and writes
    them, while the devices train on. Exporters run before the next save, which may
    delete the checkpoint. An error of the metrics or exporters does not lose steps: it
    is a reason to stop, and is raised after the save.

    Attributes:
      results: The results of the last evaluation, {} before it.
      failure: Why the run must stop; None without an error.
    """

    def __init__(
        self,
        estimator: tpu_estimator.TPUEstimator,
        eval_spec: spec.EvalSpec,
        *,
        stop_reason: spec.StopReason,
        in_background: bool,
    ):
        """Initializes the evaluations.

        Args:
          estimator: Evaluates and exports.
          eval_spec: The data, and the exporters.
          stop_reason: Returns why to stop a forward pass, or None.
          in_background: Whether training goes on while metrics are computed.
        """
        self.results: dict[str, Any] = {}
        self._estimator = estimator
        self._spec = eval_spec
        self._stop_reason = stop_reason
        self._in_background = in_background
        self._pending: _Pending | None = None
        self._error: Exception | None = None
        self._stops_run = False
        self._start_secs = time.monotonic()
        self._waited_secs = 0.0

    def __enter__(self) -> "Evaluations":
        """Returns the evaluations."""
        return self

    def __exit__(
        self, kind: object, error: BaseException | None, trace: object
    ) -> None:
        """Finishes the pending evaluation; raises its error if that ends the run."""
        # After an error there may be little time; the next start exports.
        if error is None or isinstance(error, Exception):
            self.finish(exports=error is None)
        is_stopped = self._stops_run and isinstance(error, preemption.Preempted)
        if error is None or is_stopped:
            self.check()
        if self._error is not None:
            logging.error("The evaluation failed, too", exc_info=self._error)

    @property
    def failure(self) -> str | None:
        """Returns why the run must stop; None without an error."""
        if self._pending and self._pending.has_failed:
            self.finish()
        if self._error is None:
            return None
        self._stops_run = True
        return f"an evaluation failed: {self._error!r}"

    def evaluate(self, path: str, *, is_final: bool) -> None:
        """Evaluates and exports a checkpoint; of an evaluated one it only exports.

        Args:
          path: The path of the checkpoint.
          is_final: Whether it is the last one of the run, which is finished at once.
        Raises:
          Preempted: There was a reason to stop.
          Exception: This or the previous evaluation or export failed.
        """
        self.finish()
        self.check()
        start = time.monotonic()
        recorded = self._estimator.evaluation_results(path, self._spec.name)
        compute_fn: Callable[[], Mapping[str, Any]]
        if recorded is not None:
            compute_fn = recorded.copy
        else:
            logging.info("Evaluating %s", path)
            compute_fn = self._estimator.start_evaluation(
                self._spec.input_fn,
                steps=self._spec.steps,
                checkpoint_path=path,
                name=self._spec.name,
                stop_reason=self._stop_reason,
            )
        self._pending = _Pending(compute_fn, path, is_final, recorded is None)
        self._waited_secs += time.monotonic() - start
        if is_final or not self._in_background:
            self.finish()
            self.check()

    def prepare_save(self) -> None:
        """Exports the pending checkpoint, because the save may delete it."""
        if self._spec.exporters:
            self.finish()

    def finish(self, *, exports: bool = True) -> None:
        """Waits for the pending results and exports; keeps an error for `check`.

        Args:
          exports: Whether to export the checkpoint.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        start = time.monotonic()
        try:
            results = pending.results()
            if pending.is_new:
                self.results = dict(results)
            exporters.export_all(
                self._spec.exporters if exports else (),
                self._estimator,
                pending.path,
                results,
                is_final=pending.is_final,
            )
        except Exception as error:
            self._error = error
        # Each evaluation leaves datasets of 5 MB in reference cycles. Training creates
        # too few objects to start Python's collector.
        gc.collect()
        self._waited_secs += time.monotonic() - start
        self._log_share(pending.path)

    def check(self) -> None:
        """Raises the error of an evaluation or export, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _log_share(self, path: str) -> None:
        share = self._waited_secs / max(time.monotonic() - self._start_secs, 1e-9)
        logging.info(
            "Evaluated step %d; so far training has waited %.1f s for evaluations and "
            "exports, %.1f %% of the time",
            checkpoints.step_of(path),
            self._waited_secs,
            100 * share,
        )


class _Pending:
    """An evaluation whose results are computed in a thread.

    Attributes:
      path: The path of the checkpoint.
      is_final: Whether it is the last one of the run.
      is_new: Whether the results are computed now, not read.
    """

    def __init__(
        self,
        compute_fn: Callable[[], Mapping[str, Any]],
        path: str,
        is_final: bool,
        is_new: bool,
    ):
        """Starts the thread."""
        self.path = path
        self.is_final = is_final
        self.is_new = is_new
        self._compute_fn = compute_fn
        self._results: Mapping[str, Any] = {}
        self._error: Exception | None = None
        # The end of an interrupted process does not wait for a daemon.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def has_failed(self) -> bool:
        """Returns whether the computation has already failed."""
        return self._error is not None

    def results(self) -> Mapping[str, Any]:
        """Waits for the results; raises the error of their computation."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._results

    def _run(self) -> None:
        try:
            self._results = self._compute_fn()
        except Exception as error:
            self._error = error
