"""Evaluates and exports the checkpoints of a trainer, while it trains on."""

import contextlib
import gc
import threading
import time
from collections.abc import Callable, Mapping
from concurrent import futures
from typing import Any, NamedTuple, TypeVar

from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import exporters, result_types, spec, tpu_estimator
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints, leases

T = TypeVar("T")

_POLL_SECS = 0.2


class Evaluations:
    """The evaluations of a trainer, used as a context.

    The devices run only the forward passes. A thread computes the metrics and writes
    them, while the devices train on. Exporters run after a later save, or before the
    next evaluation; a lease keeps the checkpoint until then. An error of the metrics or
    exporters does not lose steps: it is a reason to stop, and is raised after the save.

    Attributes:
      results: The results of the last evaluation without reports, {} before it.
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
          stop_reason: Returns why to stop, or None.
          in_background: Whether training goes on while metrics are computed.
        """
        self.results: dict[str, Any] = {}
        self._estimator = estimator
        self._spec = eval_spec
        self._stop_reason = stop_reason
        self._in_background = in_background
        self._pending: _Pending | None = None
        self._lease = contextlib.ExitStack()
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
        with self._lease:
            # After an error there may be little time; the next start exports.
            if self._pending and (error is None or isinstance(error, Exception)):
                self._finish(exports=error is None)
            is_stopped = self._stops_run and isinstance(error, preemption.Preempted)
            if error is None or is_stopped:
                self._check()
            if self._error is not None:
                logging.error("The evaluation failed, too", exc_info=self._error)

    @property
    def failure(self) -> str | None:
        """Returns why the run must stop; None without an error."""
        results = self._pending.results if self._pending else None
        if results and results.done() and results.exception():
            self._finish()
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
        self._wait_and_finish(path)
        self._check()
        self._start(path, is_final=is_final)
        if is_final or not self._in_background:
            self._wait_and_finish(path)
            self._check()

    def evaluate_interrupted(self, path: str) -> None:
        """Evaluates and exports a checkpoint that a stop may have left undone.

        Exporters of an evaluated checkpoint may need numbers that a new setting adds;
        then there is no export of it.

        Args:
          path: The path of the checkpoint.
        Raises:
          Preempted: There was a reason to stop.
          Exception: The evaluation or export failed.
        """
        is_new = self._start(path, is_final=False)
        self._wait_and_finish(path)
        if not is_new and isinstance(self._error, errors.UserError):
            logging.error("Not exporting %s again: %s", path, self._error)
            self._error = None
        self._check()

    def finish_if_ready(self) -> None:
        """Exports the pending checkpoint, if its results are computed."""
        if self._pending and self._pending.results.done():
            self._finish()

    def _start(self, path: str, *, is_final: bool) -> bool:
        """Runs the forward passes; returns False if the checkpoint has results."""
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
        model_dir = self._estimator.model_dir
        lease = leases.lease_checkpoint(model_dir, path, "export")
        self._lease.enter_context(lease)
        is_new = recorded is None
        self._pending = _Pending(path, is_final, is_new, _in_thread(compute_fn))
        self._waited_secs += time.monotonic() - start
        return is_new

    def _wait_and_finish(self, path: str) -> None:
        """Waits for the pending results, unless there is a reason to stop."""
        start = time.monotonic()
        while self._pending and not self._pending.results.done():
            if reason := self._stop_reason():
                raise preemption.Preempted(reason, checkpoints.step_of(path))
            futures.wait([self._pending.results], _POLL_SECS)
        self._waited_secs += time.monotonic() - start
        if self._pending:
            self._finish()

    def _finish(self, *, exports: bool = True) -> None:
        """Exports the pending checkpoint; keeps an error for `_check`."""
        pending, self._pending = self._pending, None
        assert pending is not None
        start = time.monotonic()
        try:
            results = pending.results.result()
            if pending.is_new:
                # A report holds the annotations and detections of the evaluation.
                self.results = {
                    name: value
                    for name, value in results.items()
                    if not isinstance(value, result_types.Report)
                }
                for listener in self._spec.listeners:
                    listener(pending.path, self.results)
            exporters.export_all(
                self._spec.exporters if exports else (),
                self._estimator,
                pending.path,
                results,
                is_final=pending.is_final,
            )
        except Exception as error:
            self._error = error
        self._lease.close()
        # Each evaluation leaves datasets of 5 MB in reference cycles. Training creates
        # too few objects to start Python's collector.
        gc.collect()
        self._waited_secs += time.monotonic() - start
        if pending.is_new and self._error is None:
            self._log_share(pending.path)

    def _check(self) -> None:
        """Raises the error of an evaluation or export, once."""
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _log_share(self, path: str) -> None:
        share = self._waited_secs / max(time.monotonic() - self._start_secs, 1e-9)
        logging.info(
            "Finished the evaluation of step %d; so far training has waited %.1f s for "
            "evaluations and exports, %.1f %% of the time",
            checkpoints.step_of(path),
            self._waited_secs,
            100 * share,
        )


class _Pending(NamedTuple):
    """An evaluation whose results are computed in a thread.

    Attributes:
      path: The path of the checkpoint.
      is_final: Whether it is the last one of the run.
      is_new: Whether the results are computed now, not read.
      results: The future results.
    """

    path: str
    is_final: bool
    is_new: bool
    results: "futures.Future[Mapping[str, Any]]"


def _in_thread(fn: Callable[[], T]) -> "futures.Future[T]":
    """Returns the future of fn(), which the end of the process does not wait for."""
    future: futures.Future[T] = futures.Future()

    def run() -> None:
        try:
            future.set_result(fn())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future
