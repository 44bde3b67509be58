"""Times a stream of batches. Two environments share it: standard library only."""

import json
import time
from collections.abc import Iterable
from typing import Any


def measure(
    batches: Iterable[Any], batch_size: int, *, secs: float, warm_up_secs: float
) -> dict[str, float]:
    """Measures the throughput of an endless stream of batches.

    Args:
      batches: The endless stream.
      batch_size: The number of images in a batch.
      secs: The duration of the measurement; at least one batch is read.
      warm_up_secs: The time to read before the measurement, while threads start and
        buffers fill.

    Returns:
      A dict of "images" (their number), "secs" (wall time) and "cpu_secs" (CPU time of
      this process on all cores).
    """
    stream = iter(batches)
    end = time.monotonic() + warm_up_secs
    next(stream)
    while time.monotonic() < end:
        next(stream)
    start = time.monotonic()
    cpu_start = time.process_time()
    images = 0
    while not images or time.monotonic() - start < secs:
        next(stream)
        images += batch_size
    return {
        "images": images,
        "secs": time.monotonic() - start,
        "cpu_secs": time.process_time() - cpu_start,
    }


def report(batches: Iterable[Any], setting: dict[str, Any]) -> None:
    """Measures a stream with the given setting and prints the result as JSON.

    Args:
      batches: The endless stream.
      setting: The setting, as written by tools/benchmarks/input.py.
    """
    result = measure(
        batches,
        setting["batch_size"],
        secs=setting["secs"],
        warm_up_secs=setting["warm_up_secs"],
    )
    print(json.dumps(result), flush=True)
