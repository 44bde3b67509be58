"""Writes the log of a training run in the format of MLPerf Training.

A line is `:::MLLOG ` and a JSON object. It has a key, such as `run_start`, a value, the
time in ms since 1970, and metadata.

Source: mlperf_logging of github.com/mlcommons/logging, whose compliance checker names
  the keys that a RetinaNet must have (ruleset 5.1.0; rulesets before 5 name it ssd).
"""

import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.data import record_files, record_index
from retinanet_tpu.estimator import spec
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.task import run as run_module

FILE = "mlperf.log"
_EVENT, _START, _END = "POINT_IN_TIME", "INTERVAL_START", "INTERVAL_END"
# The command imports this module when it starts.
_STARTED_AT = time.time()


class Writer:
    """A writer of lines to a file, which it appends to."""

    def __init__(self, path: str, *, clock: Callable[[], float] = time.time):
        """Initializes the writer.

        Args:
          path: The file.
          clock: Returns the seconds since 1970.
        """
        self._path = path
        self._clock = clock

    def write(
        self,
        key: str,
        value: Any = None,
        *,
        kind: str = _EVENT,
        at_secs: float | None = None,
        **metadata: Any,
    ) -> None:
        """Appends one line.

        Args:
          key: The name of the event.
          value: Its value, of a JSON type.
          kind: Whether an interval starts or ends, or neither.
          at_secs: The time of the event, s since 1970; None for now.
          **metadata: Further values of the event.
        """
        record = {
            "namespace": "",
            "time_ms": int(1e3 * (self._clock() if at_secs is None else at_secs)),
            "event_type": kind,
            "key": key,
            "value": value,
            "metadata": metadata,
        }
        with tf.io.gfile.GFile(self._path, "a") as file:
            file.write(f":::MLLOG {json.dumps(record)}\n")


class RunEvents:
    """The events of a run: its start, its epochs and its evaluations.

    An epoch is the interval between two evaluations. The run starts when the first
    training data are read, so its time includes the compilation of the step.
    """

    def __init__(
        self,
        settings: run_module.MLPerfLog,
        writer: Writer,
        *,
        target: float,
        epoch_steps: int,
        max_steps: int,
        facts: Mapping[str, Any],
    ):
        """Initializes the events; writes nothing yet.

        Args:
          settings: The settings of the log.
          writer: Writes the lines.
          target: The AP from which the run counts as successful.
          epoch_steps: The number of steps between evaluations.
          max_steps: The number of steps of the run.
          facts: The values of the run by key, such as its batch size.
        """
        self._settings = settings
        self._writer = writer
        self._target = target
        self._epoch_steps = epoch_steps
        self._max_steps = max_steps
        self._facts = facts
        self._is_started = False

    def start(self, step: int) -> None:
        """Writes the lines of the start, once.

        Args:
          step: The number of steps that are trained already.
        """
        if self._is_started:
            return
        self._is_started = True
        write, settings = self._writer.write, self._settings
        write("init_start", kind=_START, at_secs=_STARTED_AT)
        write("cache_clear", False)  # The program clears no cache of the system.
        write("submission_benchmark", "retinanet")
        write("submission_org", settings.organization)
        write("submission_platform", settings.platform)
        write("submission_division", settings.division)
        for key, value in {**self._facts, **settings.hyperparameters}.items():
            write(key, value)
        write("init_stop", kind=_END)
        write("run_start", kind=_START)
        self._start_epoch(step)

    def save(self, path: str, step: int) -> None:
        """Ends an epoch, if the checkpoint is due for evaluation.

        Args:
          path: The path of the checkpoint.
          step: Its step.
        """
        del path
        if step % self._epoch_steps and step != self._max_steps:
            return
        epoch = self._epoch_of(step)
        self._writer.write("epoch_stop", kind=_END, epoch_num=epoch)
        self._writer.write("block_stop", kind=_END, first_epoch_num=epoch)
        self._writer.write("eval_start", kind=_START, epoch_num=epoch)

    def evaluate(self, path: str, results: Mapping[str, Any]) -> None:
        """Writes the AP of an evaluation, and the end of the run or the next epoch.

        Args:
          path: The path of the checkpoint.
          results: The results of its evaluation.
        """
        step, ap = checkpoints.step_of(path), float(results["AP"])
        epoch = self._epoch_of(step)
        self._writer.write("eval_accuracy", ap, epoch_num=epoch)
        self._writer.write("eval_stop", kind=_END, epoch_num=epoch)
        is_reached = ap >= self._target
        if is_reached or step >= self._max_steps:
            status = "success" if is_reached else "aborted"
            self._writer.write("run_stop", kind=_END, status=status)
        else:
            self._start_epoch(step)

    def _start_epoch(self, step: int) -> None:
        epoch = step // self._epoch_steps + 1
        self._writer.write(
            "block_start", kind=_START, first_epoch_num=epoch, epoch_count=1
        )
        self._writer.write("epoch_start", kind=_START, epoch_num=epoch)

    def _epoch_of(self, step: int) -> int:
        """Returns the number, from 1, of the epoch that ends at a step."""
        return -(-step // self._epoch_steps)


def check_settings(run: run_module.Run, eval_spec: spec.EvalSpec | None) -> None:
    """Checks that a run with the log writes complete epochs and an end.

    Args:
      run: The run.
      eval_spec: The evaluation of the trainer; None if another process evaluates.
    Raises:
      UserError: The trainer does not evaluate each epoch, or no AP ends the run.
    """
    if run.mlperf_log is None:
        return
    if eval_spec is None or eval_spec.every_steps is None:
        raise errors.UserError(
            "MLPerfLog needs an evaluation of the trainer after each epoch; set "
            "EVAL_EVERY and TrainingPlan.evaluate_during_training = True."
        )
    # Without early stopping, training continues while an AP is computed.
    stopping = run.plan.early_stopping
    if stopping is None or stopping.target is None or stopping.metric != "AP":
        raise errors.UserError(
            "MLPerfLog needs an AP that ends the run; set TrainingPlan.early_stopping "
            "= @EarlyStopping() and EarlyStopping.target, and leave out "
            "EarlyStopping.metric."
        )


def add_log(
    run: run_module.Run, eval_spec: spec.EvalSpec | None
) -> tuple[spec.TrainSpec, spec.EvalSpec | None]:
    """Returns the specs of a run, with the log if the run has its settings.

    Args:
      run: The run.
      eval_spec: The evaluation of the trainer; None if another process evaluates.
    Raises:
      MissingFileError: A split has no records.
      UserError: See `check_settings`.
    """
    train_spec, settings = run.train_spec, run.mlperf_log
    if settings is None:
        return train_spec, eval_spec
    check_settings(run, eval_spec)
    stopping = run.plan.early_stopping
    assert eval_spec and eval_spec.every_steps and stopping
    assert stopping.target is not None
    data, plan = run.data, run.plan
    splits = {"train_samples": data.train_split, "eval_samples": data.eval_split}
    facts: dict[str, Any] = {
        key: sum(record_index.count_records(record_files.find(data.dir, split)))
        for key, split in splits.items()
    }
    facts |= {
        "global_batch_size": plan.batch_size,
        "gradient_accumulation_steps": 1,
        "seed": run.estimator.config.tf_random_seed,
    }
    events = RunEvents(
        settings,
        Writer(f"{run.estimator.model_dir}/{FILE}"),
        target=stopping.target,
        epoch_steps=eval_spec.every_steps,
        max_steps=plan.max_steps,
        facts=facts,
    )

    @functools.wraps(train_spec.input_fn)
    def input_fn(params: Mapping[str, Any]) -> tf.data.Dataset:
        events.start(params["context"].first_step)
        return train_spec.input_fn(params)

    return (
        train_spec._replace(
            input_fn=input_fn,
            saving_listeners=(*train_spec.saving_listeners, events.save),
        ),
        eval_spec._replace(listeners=(*eval_spec.listeners, events.evaluate)),
    )
