"""MODEL_DIR/run_state.json: a trainer says that it lives, or how it ended.

While it runs, a thread of the trainer rewrites the file with a higher `beat`. The
clocks of two machines are never compared: a reader judges by its own clock how long ago
it saw the content change. The thread beats as long as the process lives, even if a
device hangs: compiling may take half an hour, and looks just like that from outside.

The file is also the claim of a trainer to its model_dir. A second trainer that sees the
beat change is refused. A trainer that was silent for too long loses the claim to the
next one, and stops when it notices.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, json_files
from retinanet_tpu.estimator.cluster import preemption, process_ids
from retinanet_tpu.estimator.model_dir import files, leases

FILE_NAME = "run_state.json"
RUNNING = "running"
FINISHED = "finished"  # max_steps are trained and saved
FAILED = "failed"  # an error ended it; started again, it would meet the same
PREEMPTED = "preempted"  # stopped from outside, saved, to be started again
STATES = (RUNNING, FINISHED, FAILED, PREEMPTED)
# A trainer whose beat does not change for so many intervals has ended.
_MISSED_BEATS = 3
# Pauses before the attempts to write how a run ended. A machine that is preempted has
# 30 s for everything.
_LAST_PAUSES_SECS = (0, 0.5, 2)


class RunState(NamedTuple):
    """What a trainer last said of itself."""

    state: str  # of STATES
    step: int  # of the newest checkpoint that it knows
    beat: int  # goes up with every write, over restarts too
    trainer: process_ids.ProcessId | None = None  # None in files of older versions
    claim: str = ""  # differs for each start of a trainer
    every_secs: float = 0  # between two beats


class ClaimLostError(errors.UserError):
    """Another trainer has taken over the model_dir; nothing more may be saved."""


def write(model_dir: str, state: RunState) -> None:
    """Writes the file; a reader sees the old or the new content."""
    trainer = state.trainer and state.trainer._asdict()
    text = json.dumps(state._asdict() | {"trainer": trainer}) + "\n"
    files.write_whole(f"{model_dir}/{FILE_NAME}", text)


def read(model_dir: str) -> RunState | None:
    """Returns what the file says, None if there is none or it makes no sense."""
    path = f"{model_dir}/{FILE_NAME}"
    content = files.read_if_there(path)
    if content is None:
        return None
    try:
        found = json_files.parse(content, path, nan_to_none=True)
        trainer = found.get("trainer")
        state = RunState(
            str(found["state"]),
            int(found["step"]),
            int(found["beat"]),
            None if trainer is None else process_ids.from_json(trainer),
            str(found.get("claim", "")),
            float(found.get("every_secs", 0)),
        )
        if state.state in STATES:
            return state
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        pass
    logging.log_every_n_seconds(
        logging.WARNING, "%s is damaged; it is written anew by the trainer", 60, path
    )
    return None


class Heartbeat:
    """Claims a model_dir while a `with` block runs, then says how it ended.

    Attributes:
      state: what to say next; set it to the end that the block comes to. A block that
        an error leaves while it is RUNNING ends as FAILED.
      step: of the newest checkpoint; set it after each save.
    """

    def __init__(
        self,
        model_dir: str,
        every_secs: float,
        *,
        is_silent: bool = False,
        stop_reason: Callable[[], str | None] = preemption.no_stop,
    ):
        """Takes where to write and how often.

        Args:
          model_dir: The directory that a single trainer may write to.
          every_secs: The time between two writes.
          is_silent: Write and claim nothing: for a worker that is not the chief.
          stop_reason: Asked while an earlier trainer may still live.
        """
        self.state, self.step = RUNNING, 0
        self._model_dir, self._every_secs = model_dir, every_secs
        self._is_silent, self._stop_reason = is_silent, stop_reason
        self._beat, self._claim = 0, uuid.uuid4().hex[:12]
        self._trainer = process_ids.current()
        self._usurper = None
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Says that the trainer runs, now and from now on.

        Raises:
          UserError: Another trainer runs in this model_dir.
          Interrupted: There was a reason to stop before the claim.
        """
        if self._is_silent:
            return self
        tf.io.gfile.makedirs(self._model_dir)
        before = await_end(
            self._model_dir, self._every_secs, stop_reason=self._stop_reason
        )
        # Of two that start at the same time one sees here that the other was quicker.
        with leases.directory_lock(self._model_dir):
            now = read(self._model_dir)
            if now != before and is_live(now):
                raise _refusal(self._model_dir, now)
            self._beat = before.beat if before else 0
            self.step = before.step if before else 0
            self._write()
        self._thread.start()
        return self

    def __exit__(self, error_type, error, traceback):
        """Says how it ended; never raises, for the end itself matters more."""
        if self._is_silent:
            return
        self._is_over.set()
        self._thread.join()
        if self.state == RUNNING:
            self.state = FAILED if error_type else FINISHED
        for pause in _LAST_PAUSES_SECS:
            time.sleep(pause)
            try:
                self._write_if_held()
                return
            except (tf.errors.OpError, OSError) as problem:
                failure = problem
        logging.error(
            "%s/%s could not be written and does not say that the run is %s: %s",
            self._model_dir,
            FILE_NAME,
            self.state,
            failure,
        )

    def check_claim(self) -> None:
        """Checks that no other trainer has claimed the model_dir; reads the file.

        Raises:
          ClaimLostError: One has.
        """
        if not self._is_silent:
            try:
                self._look()
            except tf.errors.OpError as error:
                logging.warning("Could not read who trains here: %s", error)
        self.check_seen()

    def check_seen(self) -> None:
        """Does what `check_claim` does as of the last beat, and reads nothing."""
        if self._usurper:
            raise ClaimLostError(
                f"{_spelled(self._usurper)} has taken over {self._model_dir}, after "
                "this trainer was silent for too long. What was trained here since "
                f"step {self.step} is not saved."
            )

    def _run(self):
        while not self._is_over.wait(self._every_secs):
            try:
                self._write_if_held()
            except tf.errors.OpError as error:  # Storage hiccups; the next may do.
                logging.warning("No heartbeat could be written: %s", error)

    def _write_if_held(self):
        self._look()
        if not self._usurper:
            self._write()

    def _look(self):
        found = read(self._model_dir)
        if found and found.claim and found.claim != self._claim:
            self._usurper = found

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
    """Returns True unless a state proves that its trainer has ended."""
    if state is None or state.state != RUNNING:
        return False
    return state.trainer is None or not process_ids.has_ended(state.trainer)


def await_end(
    model_dir: str,
    every_secs: float,
    *,
    stop_reason: Callable[[], str | None] = preemption.no_stop,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RunState | None:
    """Waits until the trainer of an earlier start has ended; returns its last state.

    A trainer that was killed on this machine does not delay the next one. One that was
    killed elsewhere does, until three of its beats are missing.

    Args:
      model_dir: The directory of the run.
      every_secs: The time between two beats, if the state does not say.
      stop_reason: A reason ends the wait.
      clock: Monotonic seconds.
      sleep: Waits for seconds.
    Raises:
      UserError: The trainer lives.
      Interrupted: There was a reason to stop.
    """
    first = read(model_dir)
    if not is_live(first):
        return first
    patience_secs = _MISSED_BEATS * max(every_secs, first.every_secs)
    logging.warning(
        "%s says that it trains in %s; waiting up to %.0f s for a sign of it",
        _spelled(first),
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
    logging.warning("%s has ended; going on in its place", _spelled(first))
    return first


def _refusal(model_dir, state):
    return errors.UserError(
        f"{_spelled(state)} is training in {model_dir}. Two trainers would overwrite "
        "each other's checkpoints: stop it first, or use another --model_dir."
    )


def _spelled(state):
    if state.trainer is None:
        return "Another trainer"
    return f"Another trainer (process {state.trainer.pid} on {state.trainer.host})"


class TrainerMonitor:
    """Tells how long a trainer has said nothing new, by the reader's own clock."""

    def __init__(self, model_dir: str, clock: Callable[[], float] = time.monotonic):
        self._model_dir, self._clock = model_dir, clock
        self._seen, self._changed_at = None, clock()

    def poll(self) -> RunState | None:
        """Returns the newest state that could be read, None if there never was one."""
        state = read(self._model_dir)
        if state is not None and state != self._seen:
            self._seen, self._changed_at = state, self._clock()
        return self._seen

    def secs_since_change(self) -> float:
        """Looks, and returns how long ago the state changed, or this watch began."""
        self.poll()
        return self._clock() - self._changed_at
