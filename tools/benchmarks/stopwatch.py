"""Times a stream of batches. Standard library only: two environments share it."""

import json
import time
from collections.abc import Iterable
from typing import Any


def measure(
    batches: Iterable[Any], batch_size: int, *, secs: float, warm_up_secs: float
) -> dict[str, float]:
    """Returns what came out of an endless stream, and what it took.

    Args:
      batches: endless.
      batch_size: images in each.
      secs: to measure for, at least one batch.
      warm_up_secs: to read on before, while threads start and buffers fill.

    Returns:
      "images", "secs" by the clock, and "cpu_secs" of this process on all cores.
    """
    stream = iter(batches)
    end = time.monotonic() + warm_up_secs
    next(stream)
    while time.monotonic() < end:
        next(stream)
    start, cpu_start, images = time.monotonic(), time.process_time(), 0
    while not images or time.monotonic() - start < secs:
        next(stream)
        images += batch_size
    return {
        "images": images,
        "secs": time.monotonic() - start,
        "cpu_secs": time.process_time() - cpu_start,
    }


def report(batches: Iterable[Any], setting: dict[str, Any]) -> None:
    """Measures as a setting says and prints the result as a line of JSON."""
    result = measure(
        batches,
        setting["batch_size"],
        secs=setting["secs"],
        warm_up_secs=setting["warm_up_secs"],
    )
    print(json.dumps(result), flush=True)
