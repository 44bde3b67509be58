"""Detects requests to stop a trainer: signals and the notices of a cloud VM.

A request does not interrupt the trainer. The caller polls `reason()` between two loops,
saves a checkpoint and raises Preempted. (TensorFlow's PreemptionCheckpointHandler does
nothing on a TPU VM.)
"""

import contextlib
import os
import pathlib
import signal
import threading
import types
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from absl import logging

from retinanet_tpu.estimator import spec, waits

T = TypeVar("T")
# Returns why to stop, or None if there is no reason.

# The product name of the machine in Linux. It shows without network access whether this
# is a VM of Google Cloud.
_PRODUCT = "/sys/class/dmi/id/product_name"
_METADATA_HOST = "metadata.google.internal"
# The values that announce the end of this VM, under instance/ of the metadata server. A
# live migration (MIGRATE_ON_HOST_MAINTENANCE) requires no stop.
_NOTICES = {
    "preempted": "TRUE",
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


class Preempted(Exception):
    """A run was stopped from outside; the next start resumes from the saved step.

    Attributes:
      step: The step of the newest checkpoint, 0 if there is none.
    """

    def __init__(self, reason: str, step: int, *, num_lost: int = 0):
        """Initializes the error and its message.

        Args:
          reason: Why the run was stopped.
          step: The step of the newest checkpoint, 0 if there is none.
          num_lost: The number of steps trained since then.
        """
        saved = f"the newest checkpoint is of step {step}"
        if not step:
            saved = "nothing is saved"
        elif not num_lost:
            saved = "which is saved"
        separator = ", " if step and not num_lost else "; "
        stopped = f"Stopped at step {step + num_lost}"
        super().__init__(f"{stopped}{separator}{saved}: {reason}.")
        self.step = step


class PreemptionListener:
    """A context manager that listens for requests to stop the process.

    Python delivers SIGTERM, SIGINT and SIGHUP to the main thread only. A second SIGINT
    (Ctrl-C) raises KeyboardInterrupt. Under nohup, SIGHUP remains ignored.
    """

    def __init__(self, metadata_host: str | None = None, poll_secs: float = 5):
        """Initializes the listener.

        Args:
          metadata_host: The metadata server to poll, or None for signals only.
          poll_secs: The time between two polls, in seconds.
        """
        self._host = metadata_host
        self._poll_secs = poll_secs
        self._reason: str | None = None
        self._handlers = contextlib.ExitStack()
        self._is_over = threading.Event()

    def __enter__(self) -> "PreemptionListener":
        """Installs the signal handlers and starts to poll the metadata server."""
        self._handlers.enter_context(handle_signals(self._on_signal))
        if self._host:
            logging.info("Polling %s for notices of preemption", self._host)
            args = (self._host,)
            threading.Thread(
                target=self._poll, args=args, name="notices", daemon=True
            ).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Restores the previous signal handlers and stops polling."""
        self._is_over.set()
        self._handlers.close()

    def reason(self) -> str | None:
        """Returns why to stop, or None if there is no reason."""
        return self._reason

    def _on_signal(self, number: int, frame: types.FrameType | None) -> None:
        if number == signal.SIGINT and self._reason:
            signal.default_int_handler(number, frame)
        self._reason = f"signal {signal.Signals(number).name}"

    def _poll(self, host: str) -> None:
        while not self._is_over.wait(self._poll_secs):
            for name, bad in _NOTICES.items():
                value = read_metadata(host, f"instance/{name}")
                if value == bad:
                    self._reason = f"the machine's {name} is {value}"
                    return


@contextlib.contextmanager
def handle_signals(handler: Any) -> Iterator[None]:
    """Handles SIGINT and the stop signals in a block; restores the handlers after it.

    In another thread than the main one it does nothing.

    Args:
      handler: A handler as of `signal.signal`.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGINT, *stop_signals())
        handlers = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in handlers.items():
            signal.signal(number, previous or signal.SIG_DFL)


def preserve_signal_handlers() -> contextlib.AbstractContextManager[None]:
    """Restores the signal handlers after code that sets its own.

    Inside the block a signal ends the process, unless that code handles it. A Python
    handler would not run there, because the code waits in C++.
    """
    return handle_signals(signal.SIG_DFL)


def stop_signals() -> list[int]:
    """Returns the signals with which other processes stop this one.

    SIGHUP is one of them: the terminal or the ssh session is closed. It is omitted if
    the process ignores it, as under nohup.
    """
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if is_ignored else [signal.SIGTERM, signal.SIGHUP]


def find_metadata_host() -> str | None:
    """Returns the metadata server of this Google Cloud VM, or None on other machines.

    GCE_METADATA_HOST overrides it, as in Google's own libraries. If it is empty, the
    result is None.
    """
    host = os.environ.get("GCE_METADATA_HOST")
    if host is not None:
        return host or None
    try:
        product = pathlib.Path(_PRODUCT).read_text()
    except OSError:
        return None
    return _METADATA_HOST if product.startswith("Google") else None


def read_metadata(host: str, path: str, timeout_secs: float = 2) -> str | None:
    """Returns a value of the metadata server, or None if there is no answer."""
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/{path}",
        headers={"Metadata-Flavor": "Google"},
    )
    # The server is on the machine's own link, which a proxy cannot reach.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_secs) as answer:
            return answer.read().decode().strip()
    except (OSError, ValueError):
        return None


def no_stop() -> None:
    """Returns None: a `spec.StopReason` that never has a reason."""


def stop_when(
    stop_reason: spec.StopReason, items: Iterable[T], step: int
) -> Iterator[T]:
    """Yields the items until there is a reason to stop.

    Args:
      stop_reason: Called after each item of the input.
      items: The input.
      step: The step that is saved, for the error.
    Raises:
      Preempted: There is a reason to stop.
    """
    try:
        for item in items:
            if reason := stop_reason():
                raise Preempted(reason, step)
            yield item
    except waits.GivenUpError as stop:
        raise Preempted(str(stop), step) from None
