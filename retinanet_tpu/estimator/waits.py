"""Calls that wait in C++, made so that the main thread still handles signals.

Python handles a signal in the main thread, between two bytecodes. TensorFlow waits for
the next batch in C++, without a time limit. Here another thread waits, and the caller
may give the call up. Only the end of the process ends such a thread.
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
from typing import Any, NoReturn, TypeVar

import tensorflow as tf

from retinanet_tpu.estimator import spec

T = TypeVar("T")

_POLL_SECS = 0.2
# A process that must stop does not wait longer than this for a batch.
STALL_SECS = 1.0
# To delete an iterator takes milliseconds, unless it waits for data.
_RELEASE_SECS = 10.0


class _Waiter:
    """A thread that runs calls, one after another, for one caller.

    It runs many calls, because TensorFlow keeps objects of every thread until the
    process ends.
    """

    def __init__(self):
        self._calls: queue.SimpleQueue[tuple[Callable[[], Any], futures.Future]] = (
            queue.SimpleQueue()
        )
        threading.Thread(target=self._run, name="waiter", daemon=True).start()

    def start(self, fn: Callable[[], T]) -> "futures.Future[T]":
        """Returns the future of a call."""
        future: futures.Future[T] = futures.Future()
        self._calls.put((fn, future))
        return future

    def _run(self):
        while True:
            fn, future = self._calls.get()
            # Sets no option, but makes TensorFlow read all of them again. Otherwise a
            # thread keeps the options of its first call, even if another thread has
            # changed them with tf.config.
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
# Called before the process ends with an error, whose exit handlers would wait for other
# processes.
exit_hooks: list[Callable[[], None]] = []


class GivenUpError(Exception):
    """A call was given up for the reason in the message; its thread still runs."""


class Stall:
    """A call without progress, which is given up if there is a reason to stop."""

    def __init__(
        self,
        stop_reason: spec.StopReason,
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


def call(fn: Callable[[], T], give_up_reason: spec.StopReason) -> T:
    """Calls a function in another thread; returns its value or raises its error.

    Args:
      fn: The function.
      give_up_reason: Returns why to give the call up, or None. Called several times a
        second in the caller's thread.
    Raises:
      GivenUpError: There was a reason while the function still ran.
    """
    waiter = getattr(_callers, "waiter", None) or _Waiter()
    # The waiter is busy; it remains so if the call is given up.
    _callers.waiter = None
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
    _releasing[:] = [*filter(threading.Thread.is_alive, _releasing), thread]


@atexit.register
def _wait_for_releases():
    """Waits at most _RELEASE_SECS for the iterators that are being deleted.

    Without the wait the process may abort, because Python ends its threads within C++.
    """
    end = time.monotonic() + _RELEASE_SECS
    for thread in _releasing:
        thread.join(max(0.0, end - time.monotonic()))


def _forget_finished():
    _unfinished[:] = [is_unfinished for is_unfinished in _unfinished if is_unfinished()]


def finish(code: int) -> NoReturn:
    """Ends a process whose work is done, after the iterators are deleted.

    A busy machine may need longer than _RELEASE_SECS for them. Python would then abort
    the process, and its exit code would be that of a failure.

    Raises:
      SystemExit: No thread waits in C++, and the standard streams can be flushed.
    """
    _wait_for_releases()
    _exit(code)


def leave(code: int) -> NoReturn:
    """Ends a process that stops early, even if calls were given up.

    Raises:
      SystemExit: No thread waits in C++, there are no exit hooks, and the standard
        streams can be flushed.
    """
    for hook in exit_hooks:
        hook()
    _exit(code, skip_handlers=bool(exit_hooks))


def _exit(code: int, *, skip_handlers: bool = False) -> NoReturn:
    _forget_finished()
    is_flushed = [_flush(stream) for stream in (sys.stdout, sys.stderr)]
    # sys.exit would destroy TensorFlow's objects while such a thread still uses them,
    # and would change the exit code to 120 if the terminal is gone.
    if not _unfinished and not skip_handlers and all(is_flushed):
        sys.exit(code)
    python_logging.shutdown()
    os._exit(code)


def _flush(stream):
    try:
        stream.flush()
    except (OSError, ValueError):
        return False
    return True
