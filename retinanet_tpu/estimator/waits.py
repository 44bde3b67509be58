"""Makes calls that wait in C++, so that the main thread hears signals meanwhile.

Python handles a signal in the main thread, between two bytecodes. TensorFlow waits for
the next batch in C++, for ever if none comes. Here a thread of its own waits, and the
caller may give the call up. Nothing ends such a thread but the process.
"""

import contextlib
import logging as python_logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_SECS = 0.2
# A batch that takes longer is not waited for by a process that is asked to stop.
STALL_SECS = 1.0
_abandoned: list[threading.Thread] = []


class GivenUpError(Exception):
    """A call was given up; its thread still runs."""


class Stall:
    """Decides when a call is given up: if it was asked to stop and nothing moves."""

    def __init__(
        self,
        stop_reason: Callable[[], str | None],
        progress_fn: Callable[[], object] = lambda: None,
    ):
        """Takes what is observed.

        Args:
          stop_reason: Why to stop, None if there is no reason.
          progress_fn: Returns a value that differs as long as the call makes progress.
        """
        self._stop_reason, self._progress_fn = stop_reason, progress_fn
        self._seen, self._since = None, None

    def restart(self) -> None:
        """Forgets what was seen, for the next call."""
        self._since = None

    def is_over(self) -> bool:
        """Returns True once nothing has moved for STALL_SECS since a reason to stop."""
        if not self._stop_reason():
            return False
        now, seen = time.monotonic(), self._progress_fn()
        if self._since is None or seen != self._seen:
            self._seen, self._since = seen, now
        return now - self._since >= STALL_SECS


def call(fn: Callable[[], T], give_up: Callable[[], bool] = lambda: False) -> T:
    """Returns what a function returns, or raises what it raises.

    Args:
      fn: Runs in a thread of its own.
      give_up: Asked several times a second, in the caller's thread.
    Raises:
      GivenUpError: give_up returned True while the function still ran.
    """
    outcome = []

    def run():
        try:
            outcome.append((fn(), None))
        except BaseException as error:
            outcome.append((None, error))
        finally:
            is_done.set()

    is_done = threading.Event()
    thread = threading.Thread(target=run, name="waits", daemon=True)
    thread.start()
    try:
        while not is_done.wait(_POLL_SECS):
            if give_up():
                raise GivenUpError
    finally:
        if not is_done.is_set():
            _abandoned.append(thread)
    result, error = outcome[0]
    if error is not None:
        raise error
    return result


def iterate(items: Iterable[T], stall: Stall) -> Iterator[T]:
    """Yields items, each of which may take for ever to come.

    Raises:
      GivenUpError: The stall is over.
    """
    end = object()
    iterator = call(lambda: iter(items), stall.is_over)
    while (item := call(lambda: next(iterator, end), stall.is_over)) is not end:
        yield item
        stall.restart()


def leave(code: int) -> None:
    """Ends the process with an exit code, even if a thread was given up.

    Raises:
      SystemExit: The usual way, if it can do no harm.
    """
    if not any(thread.is_alive() for thread in _abandoned):
        sys.exit(code)
    # The usual way would take down TensorFlow while that thread still uses it.
    python_logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # Closed, or read by nobody.
            stream.flush()
    os._exit(code)
