"""Makes calls that wait in C++, so that the main thread hears signals meanwhile.

Python handles a signal in the main thread, between two bytecodes. TensorFlow waits for
the next batch in C++, for ever if none comes. Here a thread of its own waits, and the
caller may give the call up. Nothing ends such a thread but the process.
"""

import atexit
import logging as python_logging
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import TypeVar

import tensorflow as tf

T = TypeVar("T")

_POLL_SECS = 0.2
# A batch that takes longer is not waited for by a process that is asked to stop.
STALL_SECS = 1.0
_RELEASE_SECS = (
    10.0  # Deleting an iterator takes milliseconds, unless it waits for data.
)


class _Waiter:
    """A thread that runs calls, one after another, for one caller.

    It serves many calls because TensorFlow keeps objects of every thread for good.
    """

    def __init__(self):
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._run, name="waiter", daemon=True).start()

    def start(self, fn):
        """Returns the future of a call."""
        future = futures.Future()
        self._calls.put((fn, future))
        return future

    def _run(self):
        while True:
            fn, future = self._calls.get()
            # Sets nothing. But a thread keeps the options of its first function call,
            # whatever tf.config is set to later in another thread, until it sets some.
            tf.config.optimizer.set_experimental_options({})
            try:
                future.set_result(fn())
            except BaseException as error:
                future.set_exception(error)
            del fn, future


_callers = threading.local()
# Each returns True as long as a thread may be waiting in C++.
_unfinished: list[Callable[[], bool]] = []
_releasing: list[threading.Thread] = []


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
    waiter = getattr(_callers, "waiter", None) or _Waiter()
    _callers.waiter = None  # It is busy, for good if the call is given up.
    future = waiter.start(fn)
    try:
        while not futures.wait([future], _POLL_SECS).done:
            if reason := give_up_reason():
                raise GivenUpError(reason)
    finally:
        if future.done():
            _callers.waiter = waiter
        else:
            _unfinished.append(lambda: not future.done())
    return future.result()


def iterate(items: Iterable[T], stall: Stall) -> Iterator[T]:
    """Yields items, each of which may take for ever to come.

    Raises:
      GivenUpError: There was a reason while the next one did not come.
    """
    end = object()
    held = [call(lambda: iter(items), stall.reason)]
    try:
        while (item := call(lambda: next(held[0], end), stall.reason)) is not end:
            yield item
            stall.restart()
    finally:
        release(held)


def release(held: list) -> None:
    """Empties a list of iterators.

    TensorFlow may wait for the next batch before it deletes an iterator. A thread of
    its own does so here; nothing else must refer to them.
    """
    thread = threading.Thread(target=held.clear, name="release", daemon=True)
    thread.start()
    _forget_finished()
    _unfinished.append(thread.is_alive)
    _releasing[:] = [*filter(threading.Thread.is_alive, _releasing), thread]


@atexit.register
def _wait_for_releases():
    """Waits a little for iterators that are being deleted.

    A process that ends meanwhile may abort: Python ends its threads within C++.
    """
    for thread in _releasing:
        thread.join(_RELEASE_SECS)


def _forget_finished():
    _unfinished[:] = [is_unfinished for is_unfinished in _unfinished if is_unfinished()]


def leave(code: int) -> None:
    """Ends the process with an exit code, whatever was given up or closed.

    Raises:
      SystemExit: The usual way, if it keeps the exit code and can do no harm.
    """
    _forget_finished()
    is_flushed = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    # The usual way would take down TensorFlow while such a thread still uses it, and
    # would end with 120 if the terminal is gone.
    if not _unfinished and all(is_flushed):
        sys.exit(code)
    python_logging.shutdown()
    os._exit(code)


def _flush(stream):
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True
