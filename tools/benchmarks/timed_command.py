"""Runs commands within a time limit. The standard library suffices."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

_ROOT = pathlib.Path(__file__).parents[2]


class Command(NamedTuple):
    """The result of a command.

    Attributes:
      output: Its standard output and its errors.
      code: Its exit code; None if it exceeded its time.
      secs: Its duration.
    """

    output: str
    code: int | None
    secs: float

    def failure(self) -> dict[str, Any]:
        """Returns why the command has no result."""
        name = "time_limit" if self.code is None else "error"
        return {name: self.output.strip()[-1500:], "secs": round(self.secs, 1)}


def last_json(output: str) -> dict[str, Any]:
    """Returns the last JSON object of an output; a library may write lines after it.

    Args:
      output: Lines of text, one of which begins with a brace.
    """
    lines = [line for line in output.splitlines() if line.startswith("{")]
    return json.loads(lines[-1])


class Clock:
    """The time that remains of --max_secs."""

    def __init__(self, max_secs: float, now: Callable[[], float] = time.monotonic):
        """Starts the clock.

        Args:
          max_secs: The time from now on.
          now: Returns the present time in seconds.
        """
        self._now = now
        self._end = now() + max_secs

    def remaining(self) -> float:
        """Returns the remaining seconds; 0 at the end."""
        return max(0.0, self._end - self._now())


def run(command: Sequence[str], secs: float, log: pathlib.Path) -> Command:
    """Runs a command until it ends or its time is over.

    Args:
      command: The command.
      secs: Its time. Then it gets SIGTERM, on which the trainer saves, and is killed
        20 s later.
      log: The file for its output.
    """
    if secs <= 0:
        return Command("There was no time left to start it.", None, 0.0)
    root = str(_ROOT)
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    environment = {"TF_CPP_MIN_LOG_LEVEL": "2", **os.environ, "PYTHONPATH": path}
    start = time.monotonic()
    with (
        log.open("w") as file,
        subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        code = None
        try:
            code = process.wait(secs)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        finally:
            process.kill()
    return Command(log.read_text(), code, time.monotonic() - start)
