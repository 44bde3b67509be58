"""MODEL_DIR/run_state.json: a trainer says that it lives, or how it ended.

While it runs, a thread of the trainer rewrites the file with a higher `beat`. The
clocks of two machines are never compared: a reader judges by its own clock how long ago
it saw the content change. The thread beats as long as the process lives, even if a
device hangs: compiling may take half an hour, and looks just like that from outside.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from retinanet_tpu.estimator import files

FILE_NAME = "run_state.json"
RUNNING = "running"
FINISHED = "finished"  # max_steps are trained and saved
FAILED = "failed"  # an error ended it; started again, it would meet the same
PREEMPTED = "preempted"  # stopped from outside, saved, to be started again
STATES = (RUNNING, FINISHED, FAILED, PREEMPTED)


class RunState(NamedTuple):
    """What a trainer last said of itself."""

    state: str  # of STATES
    step: int  # of the newest checkpoint that it knows
    beat: int  # goes up with every write, over restarts too


def write(model_dir: str, state: RunState) -> None:
    """Writes the file; a reader sees the old or the new content."""
    text = json.dumps(state._asdict()) + "\n"
    files.write_whole(f"{model_dir}/{FILE_NAME}", text)


def read(model_dir: str) -> RunState | None:
    """Returns what the file says, None if there is none or it makes no sense."""
    text = files.read_if_there(f"{model_dir}/{FILE_NAME}")
    try:
        found = json.loads(text or "")
        state = RunState(str(found["state"]), int(found["step"]), int(found["beat"]))
    except (ValueError, TypeError, KeyError):
        return None
    return state if state.state in STATES else None


class Heartbeat:
    """Keeps the file fresh while a `with` block runs, then says how it ended.

    Attributes:
      state: what to say next; set it to the end that the block comes to. A block that
        an error leaves while it is RUNNING ends as FAILED.
      step: of the newest checkpoint; set it after each save.
    """

    def __init__(self, model_dir: str, every_secs: float, *, is_silent: bool = False):
        """Takes where to write and how often; silent, of a worker that is no chief."""
        self.state, self.step = RUNNING, 0
        self._model_dir, self._every_secs = model_dir, every_secs
        self._is_silent = is_silent
        self._beat = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def __enter__(self) -> "Heartbeat":
        """Says that the trainer runs, now and from now on."""
        if self._is_silent:
            return self
        tf.io.gfile.makedirs(self._model_dir)
        before = read(self._model_dir)
        self._beat = before.beat if before else 0
        self._write()
        self._thread.start()
        return self

    def __exit__(self, error_type, error, traceback):
        """Says how it ended."""
        if self._is_silent:
            return
        self._is_over.set()
        self._thread.join()
        if self.state == RUNNING:
            self.state = FAILED if error_type else FINISHED
        self._write()

    def _run(self):
        while not self._is_over.wait(self._every_secs):
            try:
                self._write()
            except tf.errors.OpError as error:  # Storage hiccups; the next may do.
                logging.warning("No heartbeat could be written: %s", error)

    def _write(self):
        self._beat += 1
        write(self._model_dir, RunState(self.state, self.step, self._beat))


class Watch:
    """Tells how long a trainer has said nothing new, by the reader's own clock."""

    def __init__(self, model_dir: str, clock: Callable[[], float] = time.monotonic):
        self._model_dir, self._clock = model_dir, clock
        self._seen, self._changed_at = None, clock()

    def look(self) -> RunState | None:
        """Returns the newest state that could be read, None if there never was one."""
        state = read(self._model_dir)
        if state is not None and state != self._seen:
            self._seen, self._changed_at = state, self._clock()
        return self._seen

    def secs_since_change(self) -> float:
        """Looks, and returns how long ago the state changed, or this watch began."""
        self.look()
        return self._clock() - self._changed_at
