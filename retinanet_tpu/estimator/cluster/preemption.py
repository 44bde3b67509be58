"""What asks a trainer to stop: signals, and the notices of a cloud VM.

Nothing stops at once: whoever runs a loop asks `reason()` between two rounds, saves,
and raises Interrupted. (TensorFlow's PreemptionCheckpointHandler does nothing on a TPU
VM.)
"""

import contextlib
import os
import pathlib
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from absl import logging

from retinanet_tpu.estimator import waits

T = TypeVar("T")

# The machine's make as Linux shows it: tells without a network whether it is Google's.
_PRODUCT = "/sys/class/dmi/id/product_name"
_METADATA_HOST = "metadata.google.internal"
# What announces this VM's end, under instance/ of the server. A machine that is moved
# while it runs (MIGRATE_ON_HOST_MAINTENANCE) need not stop.
_NOTICES = {
    "preempted": "TRUE",
    "maintenance-event": "TERMINATE_ON_HOST_MAINTENANCE",
}


class Preempted(Exception):
    """A run stopped from outside; started again it goes on from the step it names.

    Attributes:
      step: of its newest checkpoint, 0 if there is none.
    """

    def __init__(self, reason: str, step: int, *, num_lost: int = 0):
        """Takes what the message contains.

        Args:
          reason: Why it stopped.
          step: The step of its newest checkpoint, 0 if there is none.
          num_lost: How many steps were trained since then.
        """
        saved = f"the newest checkpoint is of step {step}"
        if not step:
            saved = "nothing is saved"
        elif not num_lost:
            saved = "which is saved"
        joint = ", " if step and not num_lost else "; "
        super().__init__(f"Stopped at step {step + num_lost}{joint}{saved}: {reason}.")
        self.step = step


class PreemptionListener:
    """Hears, while a `with` block runs, what asks the process to stop.

    SIGTERM, SIGINT and SIGHUP are heard in the main thread of a process only; a second
    SIGINT (Ctrl-C) is a KeyboardInterrupt. SIGHUP stays ignored under nohup.
    """

    def __init__(self, metadata_host: str | None = None, poll_secs: float = 5):
        """Takes the metadata server to ask, None for none, and the time between."""
        self._host, self._poll_secs = metadata_host, poll_secs
        self._reason, self._handlers = None, {}
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="notices", daemon=True)

    def __enter__(self) -> "PreemptionListener":
        """Begins to listen."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *ending_signals()):
                self._handlers[number] = signal.signal(number, self._on_signal)
        if self._host:
            logging.info("Asking %s for notices of preemption", self._host)
            self._thread.start()
        return self

    def __exit__(self, *error):
        """Leaves signals to whom they were left before."""
        self._is_over.set()
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def reason(self) -> str | None:
        """Returns why to stop, None while there is no reason."""
        return self._reason

    def _on_signal(self, number, frame):
        if number == signal.SIGINT and self._reason:
            signal.default_int_handler(number, frame)
        self._reason = f"signal {signal.Signals(number).name}"

    def _poll(self):
        while not self._is_over.wait(self._poll_secs):
            for name, bad in _NOTICES.items():
                said = ask_metadata(self._host, f"instance/{name}")
                if said == bad:
                    self._reason = f"the machine's {name} is {said}"
                    return


@contextlib.contextmanager
def handlers_kept() -> Iterator[None]:
    """Puts the handlers of signals back after code that sets its own.

    Meanwhile a signal ends the process, unless that code takes it: what waits in C++
    would not let Python hear it.
    """
    handlers = {}
    if threading.current_thread() is threading.main_thread():
        numbers = (signal.SIGINT, *ending_signals())
        handlers = {n: signal.signal(n, signal.SIG_DFL) for n in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)


def ending_signals() -> list[int]:
    """Returns the signals by which others end a process.

    SIGHUP is one of them: the terminal or the ssh session is gone. Under nohup a
    process ignores it, and goes on doing so.
    """
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if is_ignored else [signal.SIGTERM, signal.SIGHUP]


def find_metadata_host() -> str | None:
    """Returns the metadata server of the Google Cloud VM that this is, else None.

    GCE_METADATA_HOST overrides it, as for Google's own libraries; empty, it is None.
    """
    host = os.environ.get("GCE_METADATA_HOST")
    if host is not None:
        return host or None
    try:
        product = pathlib.Path(_PRODUCT).read_text()
    except OSError:
        return None
    return _METADATA_HOST if product.startswith("Google") else None


def ask_metadata(host: str, path: str, timeout_secs: float = 2) -> str | None:
    """Returns what the metadata server has under a path, None without an answer."""
    request = urllib.request.Request(
        f"http://{host}/computeMetadata/v1/{path}",
        headers={"Metadata-Flavor": "Google"},
    )
    # The server is on the machine's own link; a proxy would not find it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=timeout_secs) as answer:
            return answer.read().decode().strip()
    except (OSError, ValueError):
        return None


def no_stop() -> None:
    """Is the `reason` of who is never asked to stop."""


def stop_when(
    stop_reason: Callable[[], str | None], items: Iterable[T], step: int
) -> Iterator[T]:
    """Yields the items as long as there is no reason to stop.

    Raises:
      Interrupted: there is one; says that `step` is saved.
    """
    try:
        for item in items:
            if reason := stop_reason():
                raise Preempted(reason, step)
            yield item
    except waits.GivenUpError as stop:
        raise Preempted(str(stop), step) from None
