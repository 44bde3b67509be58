"""Logs events that take long, so that nobody takes them for a standstill."""

import contextlib
import threading
import time
from collections.abc import Iterator

from absl import logging

_PROGRESS_SECS = 30


@contextlib.contextmanager
def logged(event: str) -> Iterator[None]:
    """Logs the start, the progress and the duration of an event.

    Args:
      event: The event, such as "preflight | compiling".
    """
    start = time.monotonic()
    is_done = threading.Event()

    def log_progress() -> None:
        while not is_done.wait(_PROGRESS_SECS):
            logging.info("%s | %d s so far", event, time.monotonic() - start)

    logging.info("%s", event)
    thread = threading.Thread(target=log_progress, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
        logging.info("%s | took %.0f s", event, time.monotonic() - start)
