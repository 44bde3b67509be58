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
    """A call was given up, for the reason it contains; its thread still runs."""


class Stall:
    """Decides when a call is given up: nothing moves, and there is a reason to stop."""

    def __init__(
        self,
        stop_reason: Callable[[], str | None],
        progress_fn: Callable[[], object] = lambda: None,
    ):
        """Takes what is observed.

        Args:
          stop_reason: Why to stop, None if there is no reason; asked while nothing
            moves.
          progress_fn: Returns a value that differs as long as the call makes progress.
        """
        self._stop_reason, self._progress_fn = stop_reason, progress_fn
        self._seen, self._since = None, time.monotonic()

    def restart(self) -> None:
        """Begins anew, for the next call."""
        self._since = time.monotonic()

    def reason(self) -> str | None:
        """Returns the reason to stop if nothing has moved for STALL_SECS, else None."""
        now, seen = time.monotonic(), self._progress_fn()
        if seen != self._seen:
            self._seen, self._since = seen, now
        return self._stop_reason() if now - self._since >= STALL_SECS else None


def call(fn: Callable[[], T], give_up_reason: Callable[[], str | None]) -> T:
    """Returns what a function returns, or raises what it raises.

    Args:
      fn: Runs in a thread of its own.
      give_up_reason: Asked several times a second, in the caller's thread; returns None
        while the call is to go on.
    Raises:
      GivenUpError: There was a reason while the function still ran.
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
            if reason := give_up_reason():
                raise GivenUpError(reason)
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
      GivenUpError: There was a reason while the next one did not come.
    """
    end = object()
    iterator = call(lambda: iter(items), stall.reason)
    while (item := call(lambda: next(iterator, end), stall.reason)) is not end:
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
