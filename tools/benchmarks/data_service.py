"""Measures what more workers of a tf.data service bring, on the CPUs of one machine.

  python tools/benchmarks/data_service.py --gin_file=gin_configs/bccd_r18.gin

For each number of workers there is a service of its own; every worker is held to one
CPU. The services are read in turn, round after round, and a Markdown table comes out.
The reader takes CPU time too, so the last worker on a machine brings less than the
others, and what else runs there takes its share: believe the ratios.
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

import tensorflow as tf
from absl import flags

from retinanet_tpu import errors
from retinanet_tpu.data import pipeline, record_order
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables

_WORKERS = flags.DEFINE_list("workers", ["1", "2"], "Numbers of workers to compare.")
_SECONDS = flags.DEFINE_float("seconds", 8.0, "To measure for, each time.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each has its turn.")

_START_SECS = 120
_WARM_UP_BATCHES = 20  # More than any buffer on the way holds.


@contextlib.contextmanager
def service(num_workers: int) -> Iterator[str]:
    """Yields the address of a service whose workers have one CPU each."""
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(_part("--role=dispatcher"))
        for index in range(num_workers):
            worker = ["--role=worker", f"--dispatcher=localhost:{port}"]
            stack.enter_context(_part(*worker, cpu=index % os.cpu_count()))
        yield f"grpc://localhost:{port}"


@contextlib.contextmanager
def _part(*arguments, cpu=None):
    """Runs a part of a service; yields its port."""
    held = [] if cpu is None else ["taskset", "--cpu-list", str(cpu)]
    with tempfile.TemporaryFile("w+") as log:
        command = [
            *held,
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


def _port(process, log):
    end = time.monotonic() + _START_SECS
    while time.monotonic() < end and process.poll() is None:
        log.seek(0)
        if found := re.search(r"grpc://\S+:(\d+)", log.read()):
            return int(found[1])
        time.sleep(0.1)
    log.seek(0)
    raise errors.UserError(f"A part of the service did not start: {log.read()}")


def images_per_sec(batches: tf.data.Dataset, batch_size: int, secs: float) -> float:
    """Returns how many images a second a reader gets that does nothing with them."""
    iterator = iter(batches)
    for _ in itertools.islice(iterator, _WARM_UP_BATCHES):
        pass
    start, count = time.monotonic(), 0
    while time.monotonic() - start < secs:
        next(iterator)
        count += 1
    return count * batch_size / (time.monotonic() - start)


def main() -> None:
    """Runs the command."""
    cli.parse_files()
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    data, batch_size = run.data, run.plan.batch_size
    counts = [int(count) for count in _WORKERS.value]
    rates = {count: [] for count in counts}
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
            rates[count].append(images_per_sec(batches, batch_size, _SECONDS.value))
    print("| workers | images/s | of the first | rounds |\n|---|---|---|---|")
    first = rates[counts[0]]
    for count in counts:
        ratios = [b / a for a, b in zip(first, rates[count], strict=True)]
        shown = ", ".join(f"{rate:.0f}" for rate in rates[count])
        middle, ratio = statistics.median(rates[count]), statistics.median(ratios)
        print(f"| {count} | {middle:.0f} | {ratio:.2f} | {shown} |")


if __name__ == "__main__":
    guard.run(main)
