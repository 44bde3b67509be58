"""MODEL_DIR/run_state.json: the state of a trainer and its claim to model_dir.

While the trainer runs, one of its threads rewrites the file with a higher `beat`. A
reader measures by its own clock how long ago the content changed, so the clocks of two
machines are never compared. The thread runs as long as the process lives, even if a
device hangs. Compiling may take half an hour and cannot be distinguished from a hang.

The file is also the claim of a trainer to its model_dir. A second trainer that sees the
beat change is refused. A trainer that was silent for too long loses the claim to the
next one, and stops when it detects this.
"""

import json
import threading
import time
import types
import uuid
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, json_files
from retinanet_tpu.estimator import spec
from retinanet_tpu.estimator.cluster import preemption, process_ids
from retinanet_tpu.estimator.model_dir import files, leases

FILE_NAME = "run_state.json"
RUNNING = "running"
FINISHED = "finished"  # All max_steps are trained and saved.
FAILED = "failed"  # An error ended the run; the next start would fail again.
PREEMPTED = "preempted"  # The run was stopped from outside and is to be started again.
STATES = (RUNNING, FINISHED, FAILED, PREEMPTED)
# The number of intervals without a beat after which a trainer counts as ended.
_MISSED_BEATS = 3
# Pauses before the attempts to write the final state. A machine that is preempted has
# 30 s for everything.
_FINAL_PAUSES_SECS = (0, 0.5, 2)


class RunState(NamedTuple):
    """The state of a trainer, as it last wrote it.

    Attributes:
      state: One of STATES.
      step: The step of the newest checkpoint that the trainer has saved.
      beat: A number that rises with every write, also over restarts.
      trainer: The process of the trainer; None in files of older versions.
      claim: An id that differs for each start of a trainer.
      every_secs: The time between two beats, in seconds.
    """

    state: str
    step: int
    beat: int
    trainer: process_ids.ProcessId | None = None
    claim: str = ""
    every_secs: float = 0


class ClaimLostError(errors.UserError):
    """Another trainer has taken over the model_dir; nothing more may be saved."""


def write(model_dir: str, state: RunState) -> None:
    """Writes the file atomically."""
    trainer = state.trainer and state.trainer._asdict()
    text = json.dumps(state._asdict() | {"trainer": trainer}) + "\n"
    files.write_whole(f"{model_dir}/{FILE_NAME}", text)


def read(model_dir: str) -> RunState | None:
    """Returns the state in the file, or None if the file is missing or corrupt."""
    path = f"{model_dir}/{FILE_NAME}"
    content = files.read_if_there(path)
    if content is None:
        return None
    try:
        fields = json_files.parse(content, path, nan_to_none=True)
        trainer = fields.get("trainer")
        state = RunState(
            str(fields["state"]),
            int(fields["step"]),
            int(fields["beat"]),
            None if trainer is None else process_ids.from_json(trainer),
            str(fields.get("claim", "")),
            float(fields.get("every_secs", 0)),
        )
        if state.state in STATES:
            return state
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        pass
    logging.log_every_n_seconds(
        logging.WARNING, "%s is corrupt; the trainer will rewrite it", 60, path
    )
    return None


class Heartbeat:
    """A context manager that claims a model_dir and writes the state of the trainer.

    Attributes:
      state: The state that the next beat writes. The block sets it to the final state.
        If an error leaves the block while it is RUNNING, the final state is FAILED.
      step: The step of the newest checkpoint; the block sets it after each save.
    """

    def __init__(
        self,
        model_dir: str,
        every_secs: float,
        *,
        is_silent: bool = False,
        stop_reason: spec.StopReason = preemption.no_stop,
    ):
        """Initializes the heartbeat.

        Args:
          model_dir: The directory that only one trainer may write to.
          every_secs: The time between two writes, in seconds.
          is_silent: Whether to write and claim nothing; for workers that are not the
            chief.
          stop_reason: Called while an earlier trainer may still run.
        """
        self.state = RUNNING
        self.step = 0
        self._model_dir = model_dir
        self._every_secs = every_secs
        self._is_silent = is_silent
        self._stop_reason = stop_reason
        self._beat = 0
        self._claim = uuid.uuid4().hex[:12]
        self._trainer = process_ids.current()
        self._new_owner: RunState | None = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Claims the model_dir and starts the beats.

        Raises:
          UserError: Another trainer runs in this model_dir.
          Preempted: There was a reason to stop before the claim.
        """
        if self._is_silent:
            return self
        tf.io.gfile.makedirs(self._model_dir)
        before = await_end(
            self._model_dir, self._every_secs, stop_reason=self._stop_reason
        )
        # If two trainers start at the same time, one of them sees the other here.
        with leases.directory_lock(self._model_dir):
            now = read(self._model_dir)
            if now is not None and now != before and is_live(now):
                raise _refusal(self._model_dir, now)
            self._beat = before.beat if before else 0
            self.step = before.step if before else 0
            self._write()
        self._thread.start()
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: types.TracebackType | None,
    ) -> None:
        """Writes the final state; never raises, so that the block's error remains."""
        if self._is_silent:
            return
        self._is_over.set()
        self._thread.join()
        if self.state == RUNNING:
            self.state = FAILED if error_type else FINISHED
        failure: Exception | None = None
        for pause in _FINAL_PAUSES_SECS:
            time.sleep(pause)
            try:
                self._write_if_held()
                return
            except (tf.errors.OpError, OSError) as problem:
                failure = problem
        logging.error(
            "%s/%s could not be written; it lacks the final state '%s': %s",
            self._model_dir,
            FILE_NAME,
            self.state,
            failure,
        )

    def check_claim(self) -> None:
        """Reads the file and checks that no other trainer has claimed the model_dir.

        Raises:
          ClaimLostError: Another trainer has.
        """
        if not self._is_silent:
            try:
                self._read_claim()
            except tf.errors.OpError as error:
                logging.warning("Could not check the claim to the model_dir: %s", error)
        self.check_seen()

    def check_seen(self) -> None:
        """Checks the claim as of the last beat, without reading the file.

        Raises:
          ClaimLostError: Another trainer has claimed the model_dir.
        """
        if self._new_owner:
            raise ClaimLostError(
                f"{_trainer_name(self._new_owner)} has taken over {self._model_dir}, "
                "because this trainer was silent for too long. The training since "
                f"step {self.step} is not saved."
            )

    def _run(self):
        while not self._is_over.wait(self._every_secs):
            try:
                self._write_if_held()
            except tf.errors.OpError as error:  # Often transient: the next may succeed.
                logging.warning("Could not write the heartbeat: %s", error)

    def _write_if_held(self):
        self._read_claim()
        if not self._new_owner:
            self._write()

    def _read_claim(self):
        state = read(self._model_dir)
        if state and state.claim and state.claim != self._claim:
            self._new_owner = state

    def _write(self):
        self._beat += 1
        state = RunState(
            self.state,
            self.step,
            self._beat,
            self._trainer,
            self._claim,
            self._every_secs,
        )
        write(self._model_dir, state)


def is_live(state: RunState | None) -> bool:
    """Returns True unless the state proves that its trainer has ended."""
    if state is None or state.state != RUNNING:
        return False
    return state.trainer is None or not process_ids.has_ended(state.trainer)


def await_end(
    model_dir: str,
    every_secs: float,
    *,
    stop_reason: spec.StopReason = preemption.no_stop,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RunState | None:
    """Waits until the trainer of an earlier start has ended; returns its last state.

    A trainer that was killed on this machine does not delay the next one. If it was
    killed on another machine, the next one waits for three missed beats.

    Args:
      model_dir: The directory of the run.
      every_secs: The time between two beats in seconds, if the state lacks it.
      stop_reason: Called repeatedly; a reason ends the wait.
      clock: Returns monotonic seconds.
      sleep: Waits for the given seconds.
    Raises:
      UserError: The trainer still runs.
      Preempted: There was a reason to stop.
    """
    first = read(model_dir)
    if first is None or not is_live(first):
        return first
    patience_secs = _MISSED_BEATS * max(every_secs, first.every_secs)
    logging.warning(
        "%s may be training in %s; waiting up to %.0f s for its next heartbeat",
        _trainer_name(first),
        model_dir,
        patience_secs,
    )
    end = clock() + patience_secs
    while clock() < end:
        if reason := stop_reason():
            raise preemption.Preempted(reason, first.step)
        sleep(min(0.5, patience_secs / 10))
        state = read(model_dir) or first
        if not is_live(state):
            return state
        if state != first:
            raise _refusal(model_dir, state)
    logging.warning("%s has ended; taking over the run", _trainer_name(first))
    return first


def _refusal(model_dir: str, state: RunState) -> errors.UserError:
    return errors.UserError(
        f"{_trainer_name(state)} is training in {model_dir}. Two trainers would "
        "overwrite each other's checkpoints: stop it first, or use another --model_dir."
    )


def _trainer_name(state: RunState) -> str:
    if state.trainer is None:
        return "Another trainer"
    return f"Another trainer (process {state.trainer.pid} on {state.trainer.host})"


class TrainerMonitor:
    """Measures by the reader's clock how long the state of a trainer is unchanged."""

    def __init__(self, model_dir: str, clock: Callable[[], float] = time.monotonic):
        """Initializes the monitor.

        Args:
          model_dir: The directory of the run.
          clock: Returns monotonic seconds.
        """
        self._model_dir = model_dir
        self._clock = clock
        self._seen: RunState | None = None
        self._changed_at = clock()

    def poll(self) -> RunState | None:
        """Returns the newest state that was readable, or None if there was none."""
        state = read(self._model_dir)
        if state is not None and state != self._seen:
            self._seen = state
            self._changed_at = self._clock()
        return self._seen

    def secs_since_change(self) -> float:
        """Polls; returns the seconds since the last change or since the start."""
        self.poll()
        return self._clock() - self._changed_at
