"""Measures how a tf.data service scales with its workers, on one machine.

  python tools/benchmarks/data_service.py --gin_file=bccd_r18.gin

Each number of workers has its own service; each worker is pinned to one CPU. The
services are read in turn, round after round. The output is a Markdown table.

The reader uses CPU time too, so the last worker on a machine adds less than the
others. Other programs on the machine slow down all services; the ratios are more
reliable than the rates.
"""

import retinanet_tpu.startup.cpu

import contextlib
import itertools
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import TextIO

import tensorflow as tf
from absl import flags

from retinanet_tpu import errors
from retinanet_tpu.data import pipeline, record_order
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables

_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of workers to compare.")
_MEASURE_SECS = flags.DEFINE_float(
    "measure_secs", 8.0, "Duration of one measurement, s."
)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Number of measurements of each service.")

_START_SECS = 120
_WARM_UP_BATCHES = 20  # More than the buffers of the service and the reader contain.


@contextlib.contextmanager
def service(num_workers: int) -> Iterator[str]:
    """Runs a service and yields its address.

    Args:
      num_workers: The number of workers, each of which is pinned to one CPU.
    """
    num_cpus = os.cpu_count() or 1
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_server("--role=dispatcher"))
        for index in range(num_workers):
            worker = ["--role=worker", f"--dispatcher=localhost:{port}"]
            stack.enter_context(_server(*worker, cpu=index % num_cpus))
        yield f"grpc://localhost:{port}"


@contextlib.contextmanager
def _server(*arguments: str, cpu: int | None = None) -> Iterator[int]:
    """Runs a server of a service; yields its port."""
    pinned = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
    with tempfile.TemporaryFile("w+") as log:
        command = [
            *pinned,
            sys.executable,
            "-m",
            "retinanet_tpu.data_service",
            *arguments,
        ]
        process = subprocess.Popen(command, stderr=log)
        try:
            yield _port(process, log)
        finally:
            process.kill()
            process.wait()


def _port(process: subprocess.Popen, log: TextIO) -> int:
    end = time.monotonic() + _START_SECS
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        if match := re.search(r"grpc://\S+:(\d+)", log.read()):
            return int(match[1])
        time.sleep(0.1)
    log.seek(0)
    raise errors.UserError(f"A server of the service did not start: {log.read()}")


def images_per_sec(batches: tf.data.Dataset, batch_size: int, secs: float) -> float:
    """Returns the throughput of a reader that discards the batches.

    Args:
      batches: The endless dataset.
      batch_size: The number of images in a batch.
      secs: The duration of the measurement.

    Returns:
      Images per second.
    """
    iterator = iter(batches)
    for _ in itertools.islice(iterator, _WARM_UP_BATCHES):
        pass
    start = time.monotonic()
    count = 0
    while time.monotonic() - start < secs:
        next(iterator)
        count += 1
    return count * batch_size / (time.monotonic() - start)


def main() -> None:
    """Runs the command."""
    cli.parse_files()
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    data = run.data
    batch_size = run.plan.batch_size
    counts = [int(count) for count in _WORKERS.value]
    rates: dict[int, list[float]] = {count: [] for count in counts}
    with contextlib.ExitStack() as stack:
        addresses = {n: stack.enter_context(service(n)) for n in counts}
        spec = pipeline.DatasetSpec(
            data.dir,
            data.train_split,
            categories=data.read_categories(),
            image_size=run.recipe.image_size,
            max_boxes=data.max_boxes,
        )
        for _, count in itertools.product(range(_ROUNDS.value), counts):
            batches = pipeline.make_train_dataset(
                spec,
                batch_size=batch_size,
                augmentation=data.augmentation,
                read_options=record_order.ReadOptions(service_address=addresses[count]),
            )
            rate = images_per_sec(batches, batch_size, _MEASURE_SECS.value)
            rates[count].append(rate)
    print("| workers | images/s | of the first | rounds |\n|---|---|---|---|")
    first = rates[counts[0]]
    for count in counts:
        ratios = [b / a for a, b in zip(first, rates[count], strict=True)]
        all_rates = ", ".join(f"{rate:.0f}" for rate in rates[count])
        median = statistics.median(rates[count])
        ratio = statistics.median(ratios)
        print(f"| {count} | {median:.0f} | {ratio:.2f} | {all_rates} |")


if __name__ == "__main__":
    guard.run(main)
