"""Calls that wait in C++, made so that the main thread still handles signals.

Python handles a signal in the main thread, between two bytecodes. TensorFlow waits for
the next batch in C++, without a time limit. Here another thread waits, and the caller
may give the call up. Only the end of the process ends such a thread.
"""

import logging as python_logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from typing import Any, TypeVar

T = TypeVar("T")

_POLL_SECS = 0.2
# A process that must stop does not wait longer than this for a batch.
STALL_SECS = 1.0

# Each returns True as long as a thread may be waiting in C++.
_unfinished: list[Callable[[], bool]] = []


class GivenUpError(Exception):
    """A call was given up for the reason in the message; its thread still runs."""


class Stall:
    """A call without progress, which is given up if there is a reason to stop."""

    def __init__(
        self,
        stop_reason: Callable[[], str | None],
        progress_fn: Callable[[], object] = lambda: None,
    ):
        """Initializes the stall.

        Args:
          stop_reason: Returns why to stop, or None. Called while there is no progress.
          progress_fn: Returns a value that differs as long as the call makes progress.
        """
        self._stop_reason = stop_reason
        self._progress_fn = progress_fn
        self._progress: object = None
        self._since = time.monotonic()

    def restart(self) -> None:
        """Resets the time without progress, for the next call."""
        self._since = time.monotonic()

    def reason(self) -> str | None:
        """Returns the reason to stop, None if there was progress within STALL_SECS."""
        now = time.monotonic()
        progress = self._progress_fn()
        if progress != self._progress:
            self._progress = progress
            self._since = now
        return self._stop_reason() if now - self._since >= STALL_SECS else None


def call(fn: Callable[[], T], give_up_reason: Callable[[], str | None]) -> T:
    """Calls a function in another thread; returns its value or raises its error.

    Args:
      fn: The function.
      give_up_reason: Returns why to give the call up, or None. Called several times a
        second in the caller's thread.
    Raises:
      GivenUpError: There was a reason while the function still ran.
    """
    future: futures.Future[T] = futures.Future()
    # A new thread each time: TensorFlow uses the options of a thread's first call for
    # its later ones, even if tf.config has changed them.
    threading.Thread(target=_set, args=(future, fn), name="wait", daemon=True).start()
    try:
        while not futures.wait([future], _POLL_SECS).done:
            if reason := give_up_reason():
                raise GivenUpError(reason)
    finally:
        if not future.done():
            _unfinished.append(lambda: not future.done())
    return future.result()


def _set(future, fn):
    try:
        future.set_result(fn())
    except BaseException as error:
        future.set_exception(error)


def iterate(items: Iterable[T], stall: Stall) -> Iterator[T]:
    """Yields items, each of which may never arrive.

    Args:
      items: The items.
      stall: Decides when to give up.
    Raises:
      GivenUpError: There was a reason while the next item did not arrive.
    """
    end: Any = object()
    iterators = [call(lambda: iter(items), stall.reason)]
    try:
        while (item := call(lambda: next(iterators[0], end), stall.reason)) is not end:
            yield item
            stall.restart()
    finally:
        release(iterators)


def release(iterators: list[Iterator[Any]]) -> None:
    """Empties a list of iterators in another thread.

    TensorFlow may wait for the next batch before it deletes an iterator. Nothing else
    may refer to the iterators, or they would be deleted in the caller's thread.
    """
    thread = threading.Thread(target=iterators.clear, name="release", daemon=True)
    thread.start()
    _forget_finished()
    _unfinished.append(thread.is_alive)


def _forget_finished():
    _unfinished[:] = [is_unfinished for is_unfinished in _unfinished if is_unfinished()]


def leave(code: int) -> None:
    """Ends the process with an exit code, even if calls were given up.

    Raises:
      SystemExit: No thread waits in C++, and the standard streams can be flushed.
    """
    _forget_finished()
    is_flushed = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    # sys.exit would destroy TensorFlow's objects while such a thread still uses them,
    # and would change the exit code to 120 if the terminal is gone.
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
