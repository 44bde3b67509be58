"""Detects that another process of the run was lost, and ends this one.

A collective waits for all processes. When one of them is killed, XLA's collectives may
fail, wait forever, or abort the others, depending on the device and the timing. This
monitor is independent of them: each worker holds a TCP connection to process 0, which
the kernel closes when a process ends. A connection that ends without a last message
means that the process was lost; process 0 then informs all others.

Processes start with `Liveness(...)` and end with one of:
  close(): The process has no collectives left.
  fail(): The process ends because of an error. The others may end with the same error,
    and are given some seconds to do so; after that, the process counts as lost.
"""

import contextlib
import ctypes
import math
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from retinanet_tpu.estimator.cluster import peers
from retinanet_tpu.exit_codes import ExitCode

# Receives the index of the lost process.
LostFn = Callable[[int], None]

# The messages. Each is a line; the last two contain the index of a process.
_PING = b"ping"
_BYE = b"bye"
_FAILED = b"failed"
_LOST = b"lost"


def exit_preempted(index: int) -> NoReturn:
    """Prints that a process was lost, and ends this one at once.

    Exit handlers do not run, because jax's would wait for the lost process.

    Args:
      index: The index of the lost process.
    """
    _exit(f"Worker {index} was lost; restart all workers.")


@contextlib.contextmanager
def limit_start(limit_secs: float) -> Iterator[None]:
    """Ends this process if a block that connects all processes takes too long.

    jax's own timeout would abort the process.

    Args:
      limit_secs: The longest time that the block may take, in seconds.
    """
    message = (
        f"The workers did not all connect within {limit_secs} s; restart all workers."
    )
    timer = threading.Timer(limit_secs, _exit, (message,))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def delay_abort() -> None:
    """Delays an abort of this process by 6 s, in which the monitor can end it.

    jax aborts a process about 0.1 s after the loss of process 0. The monitor is faster,
    unless other Python code holds the interpreter's lock for so long.
    """
    # The signal's handler is C's sleep(). Its argument, the number of seconds, is the
    # number of the signal: 6. After it returns, the abort continues in its thread.
    library = ctypes.CDLL(None)
    set_handler = library.signal
    set_handler.argtypes = [ctypes.c_int, ctypes.c_void_p]
    set_handler.restype = ctypes.c_void_p
    set_handler(signal.SIGABRT, ctypes.cast(library.sleep, ctypes.c_void_p))


def _exit(message: str) -> NoReturn:
    with contextlib.suppress(OSError):  # The terminal may be gone.
        # Not sys.stderr, whose lock the main thread may hold.
        os.write(2, f"{message}\n".encode())
    os._exit(ExitCode.PREEMPTED)


class Liveness:
    """Monitors whether the other processes of a run are alive."""

    def __init__(
        self,
        count: int,
        index: int,
        chief_host: str,
        gather: peers.Gather,
        on_lost: LostFn = exit_preempted,
        *,
        connect_secs: float = 60,
        ping_secs: float = 5,
        silence_secs: float = 300,
        grace_secs: float = 10,
    ):
        """Connects all processes; all of them must call this together.

        Args:
          count: The number of processes.
          index: The index of this process.
          chief_host: The host name or address of process 0.
          gather: Returns the numbers of all processes.
          on_lost: Called once, in the monitor's thread, when a process is lost.
          connect_secs: The time in which all processes must connect, in seconds.
          ping_secs: The time between two messages, in seconds.
          silence_secs: The time without messages after which a process counts as lost,
            in seconds. It must exceed the longest call of C code that keeps the
            interpreter's lock.
          grace_secs: The time that the others have to end after `fail`, in seconds.
        Raises:
          ConnectionError: Not all processes connected in time.
        """
        self._index = index
        self._on_lost = on_lost
        self._ping_secs = ping_secs
        self._silence_secs = silence_secs
        self._grace_secs = grace_secs
        self._lost = threading.Event()
        self._failed: int | None = None  # The first process that called fail().
        self._grace_ends_at = math.inf  # time.monotonic()
        self._peers: list[peers.Peer] = []
        self._thread: threading.Thread | None = None
        if count == 1:
            return
        self._peers = peers.connect(count, index, chief_host, gather, connect_secs)
        self._wake_receiver, self._wake_sender = socket.socketpair()
        self._thread = threading.Thread(
            target=self._watch, name="liveness", daemon=True
        )
        self._thread.start()

    @property
    def is_lost(self) -> bool:
        """True if another process was lost."""
        return self._lost.is_set()

    def wait_lost(self, timeout_secs: float) -> bool:
        """Waits until another process is lost.

        The error of a collective and the monitor's notice arrive in either order. After
        such an error, this returns whether the loss of a process is its cause.

        Args:
          timeout_secs: The longest wait, in seconds.
        Returns:
          Whether another process was lost.
        """
        return self._lost.wait(timeout_secs)

    def close(self) -> None:
        """Ends the monitor of a process that has no collectives left.

        Process 0 waits for the end of the others, at most `grace_secs`. jax would abort
        them if it ended first.
        """
        self._end(_BYE)

    def fail(self) -> None:
        """Ends the monitor of a process that ends because of an error.

        The others count this process as lost after `grace_secs`. Process 0 waits for
        their end, slightly longer. The caller then ends the process by os._exit,
        because jax's exit handler would wait for the others.
        """
        self._end(_FAILED, self._index)

    def _end(self, *last_words: bytes | int) -> None:
        if self._thread is None or threading.current_thread() is self._thread:
            return
        self._wake_sender.close()
        while self._thread.is_alive() and not self.is_lost:
            self._thread.join(0.1)
        if self.is_lost:  # The thread may be in on_lost.
            return
        self._thread = None
        self._wake_receiver.close()
        _broadcast(self._peers, *last_words)
        if self._index == 0:
            # A second more than the others, so that they end first.
            _wait_for_ends(self._peers, self._grace_secs + 1)
        for peer in self._peers:
            peer.connection.close()

    def _watch(self) -> None:
        """Reads messages until a process is lost or this one ends."""
        lost = self._find_lost()
        if lost is None:
            return
        self._lost.set()
        if self._index == 0:
            _broadcast(self._peers, _LOST, lost)
        self._on_lost(lost)

    def _find_lost(self) -> int | None:
        """Returns the index of a lost process; None if this process ends first."""
        ping_at = time.monotonic()
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_receiver, selectors.EVENT_READ)
            for peer in self._peers:
                selector.register(peer.connection, selectors.EVENT_READ, peer)
            while True:
                now = time.monotonic()
                if self._failed is not None and now >= self._grace_ends_at:
                    return self._failed
                if now >= ping_at:
                    _broadcast(self._peers, _PING)
                    ping_at = now + self._ping_secs
                wake_at = min(ping_at, self._grace_ends_at)
                ready = [key.data for key, _ in selector.select(wake_at - now)]
                if None in ready:
                    return None
                for peer in ready:
                    lost = self._lost_according_to(peer)
                    if lost is not None:
                        return lost
                    if peer.has_ended:
                        selector.unregister(peer.connection)
                # After all messages are read, because this process itself may have
                # been suspended.
                oldest = time.monotonic() - self._silence_secs
                for peer in self._peers:
                    if not peer.has_ended and peer.heard_at < oldest:
                        return peer.index

    def _lost_according_to(self, peer: peers.Peer) -> int | None:
        """Reads the messages of a peer; returns the index of a lost process."""
        lines, is_closed = peer.read()
        for word, index in map(_parse, lines):
            if word == _LOST:
                return index
            if word == _FAILED and self._failed is None:
                self._failed = index
                self._grace_ends_at = time.monotonic() + self._grace_secs
                if self._index == 0:
                    _broadcast(self._peers, _FAILED, index)
            if word == _BYE or (word == _FAILED and index == peer.index):
                peer.has_ended = True
        return peer.index if is_closed and not peer.has_ended else None


def _parse(line: bytes) -> tuple[bytes, int]:
    """Returns the word of a message and the index in it, -1 if it has none."""
    word, _, number = line.partition(b" ")
    return word, int(number) if number.isdigit() else -1


def _broadcast(receivers: list[peers.Peer], *words: bytes | int) -> None:
    """Sends a message to all processes that have not ended."""
    for peer in receivers:
        if not peer.has_ended:
            peer.send(*words)


def _wait_for_ends(others: list[peers.Peer], timeout_secs: float) -> None:
    """Waits until all other processes have closed their connections."""
    deadline = time.monotonic() + timeout_secs
    with selectors.DefaultSelector() as selector:
        for peer in others:
            selector.register(peer.connection, selectors.EVENT_READ, peer)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(max(left, 0))
            if not ready:
                return
            for key, _ in ready:
                if key.data.read()[1]:
                    selector.unregister(key.fileobj)
