"""Ends a run that reached its target or no longer improves; keeps the best weights."""

import contextlib
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.estimator import summaries
from retinanet_tpu.estimator.model_dir import checkpoints, leases


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
    """The rule that ends a run.

    Attributes:
      patience: The number of evaluations in a row, after the best one, that end the
        run.
      metric: The name of a number in the results of an evaluation. Of two evaluations
        with the same number the earlier is the better. A number that is not finite is
        the worst.
      is_lower_better: Whether a lower number is better, such as for a loss.
      target: The number that ends the run once an evaluation reaches it; None for no
        target.
    """

    patience: int = 5
    metric: str = "AP"
    is_lower_better: bool = False
    target: float | None = None

    def __post_init__(self):
        """Checks the patience."""
        if self.patience < 1:
            raise errors.UserError(
                f"EarlyStopping.patience is {self.patience}; it must be at least 1."
            )

    def best(self, records: Sequence[Mapping[str, Any]]) -> int:
        """Returns the index of the best record.

        Args:
          records: The results of at least one evaluation, in the order of the steps.
        Raises:
          UserError: A record does not have the metric.
        """
        values = [self._value(record) for record in records]
        return values.index(max(values))

    def reached(self, records: Sequence[Mapping[str, Any]]) -> int | None:
        """Returns the index of the first record that reaches the target, or None.

        Args:
          records: The results of evaluations, in the order of the steps.
        Raises:
          UserError: A record does not have the metric.
        """
        if self.target is None:
            return None
        sign = -1 if self.is_lower_better else 1
        hits = (self._value(record) >= sign * self.target for record in records)
        return next((index for index, is_hit in enumerate(hits) if is_hit), None)

    def _value(self, record: Mapping[str, Any]) -> float:
        """Returns a number that is higher for a better record."""
        numbers = {k: v for k, v in record.items() if isinstance(v, int | float | None)}
        if self.metric not in numbers:
            choices = sorted(numbers.keys() - {"global_step", "secs"})
            raise errors.UserError(
                f"EarlyStopping.metric is {self.metric!r}, which is no number in the "
                f"results of an evaluation; use one of {', '.join(choices)}."
            )
        value = numbers[self.metric]
        if value is None or not math.isfinite(value):
            return -math.inf
        return -value if self.is_lower_better else value


class Watch:
    """The evaluations of a run, which another process may write.

    Attributes:
      reason: Why the run must end, None while it improves.
    """

    def __init__(
        self,
        settings: EarlyStopping | None,
        model_dir: str,
        eval_dir: str,
        *,
        keeps_best: bool = True,
    ):
        """Initializes the watch; use it as a context.

        Args:
          settings: The rule; None never ends the run.
          model_dir: The directory of the checkpoints.
          eval_dir: The directory of the evaluations.
          keeps_best: Whether to keep the best checkpoint, as one worker must.
        """
        self.reason: str | None = None
        self._settings = settings
        self._model_dir = model_dir
        self._eval_dir = eval_dir
        self._keeps_best = keeps_best
        self._best_step: int | None = None
        self._lease = contextlib.ExitStack()

    def __enter__(self) -> "Watch":
        """Returns the watch."""
        return self

    def __exit__(self, *error: object) -> None:
        """Releases the lease on the best checkpoint."""
        self._lease.close()

    def check(self) -> None:
        """Reads the evaluations; sets the reason, and keeps the best checkpoint."""
        if self._settings is None:
            return
        newest = max(checkpoints.steps(self._model_dir), default=0)
        records = sorted(
            # A run that lost its newest checkpoints evaluates those steps again.
            (
                record
                for record in summaries.read_evaluations(self._eval_dir)
                if record["global_step"] <= newest
            ),
            key=lambda record: record["global_step"],
        )
        if not records:
            return
        best = self._settings.best(records)
        step = records[best]["global_step"]
        if self._keeps_best and step != self._best_step:
            self._best_step = step
            self._keep(step)
        self.reason = self._end_reason(records, best)

    def _end_reason(
        self, records: Sequence[Mapping[str, Any]], best: int
    ) -> str | None:
        """Returns why the run must end, None to go on."""
        assert self._settings is not None
        metric = self._settings.metric
        reached = self._settings.reached(records)
        if reached is not None:
            record = records[reached]
            return (
                f"{metric} is {record[metric]} at step {record['global_step']}, "
                f"EarlyStopping.target is {self._settings.target}"
            )
        num_worse = len(records) - 1 - best
        if num_worse < self._settings.patience:
            return None
        return (
            f"{metric} was best at step {records[best]['global_step']} "
            f"({records[best][metric]}); {num_worse} evaluations since then, "
            f"EarlyStopping.patience is {self._settings.patience}"
        )

    def _keep(self, step: int) -> None:
        """Holds a lease on the checkpoint of a step, and on no other."""
        path = checkpoints.path_of(self._model_dir, step)
        with contextlib.ExitStack() as stack:
            stack.enter_context(leases.lease_checkpoint(self._model_dir, path, "best"))
            self._lease.close()
            self._lease = stack.pop_all()
        if step in checkpoints.steps(self._model_dir):
            logging.info("Keeping %s, the best so far", path)
        else:
            logging.warning(
                "%s is the best so far, but it is already deleted; set "
                "RunConfig.keep_checkpoint_max to more than the sidecar is behind",
                path,
            )
