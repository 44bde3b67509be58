r"""Measures what a run reads that resumes in the middle of an epoch.

  python tools/benchmarks/resume.py [--num_records=20000] [--record_bytes=20000] \
      [--num_files=64] [--used=0.9]

The tool writes records of random bytes, and reads the rest of an epoch in three ways:

  skip    reads the epoch from its start and drops the records that were used
  index   resumes with the index that retinanet-tpu convert writes
  scan    resumes without an index of the record sizes

The output is a Markdown table of the first record and of the rest of the epoch. Bytes
are those of all read calls of the process (Linux). CPU times are of the process.
"""

import retinanet_tpu.startup.cpu

import os
import pathlib
import re
import tempfile
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tpu.data import record_files, record_index, record_order
from retinanet_tpu.startup import guard

FLAGS = flags.FLAGS

WAYS = ("skip", "index", "scan")  # In this order: "scan" deletes the index.
_SPLIT = "train"


class Cost(NamedTuple):
    """The cost of reading records.

    Attributes:
      num_bytes: The bytes that the process read.
      cpu_secs: The CPU time of the process.
      secs: The wall time.
    """

    num_bytes: int
    cpu_secs: float
    secs: float


def write(folder: str, *, num_records: int, record_bytes: int, num_files: int) -> None:
    """Writes record files and their index.

    Args:
      folder: An empty directory.
      num_records: The number of records of all files.
      record_bytes: The mean size of a record; the sizes are 0.5 to 1.5 times that.
      num_files: The number of files.
    """
    rng = np.random.default_rng(0)
    sizes = rng.integers(record_bytes // 2, 3 * record_bytes // 2, num_records)
    written = {}
    for index, in_file in enumerate(np.array_split(sizes, num_files)):
        path = f"{folder}/{record_files.file_name(_SPLIT, index, num_files)}"
        with tf.io.TFRecordWriter(path) as writer:
            for size in in_file:
                writer.write(rng.bytes(size))
        written[path] = (in_file + record_files.FRAME_BYTES).tolist()
    record_index.write(written)


def measure(folder: str, way: str, *, num_records: int, num_used: int) -> list[Cost]:
    """Returns the cost of the first record, and of all that remain of the epoch.

    Args:
      folder: The directory of the records. The index is deleted for "scan".
      way: One of WAYS.
      num_records: The number of records in an epoch.
      num_used: The number of records that were used, less than `num_records`.
    """
    files = record_files.find(folder, _SPLIT)
    if way == "scan":
        record_index.remove(files[0])
    before = _cost()
    records = iter(_records(files, way, num_used).take(num_records - num_used))
    next(records)
    first = _cost()
    assert sum(1 for _ in records) == num_records - num_used - 1
    return [_difference(first, before), _difference(_cost(), before)]


def _records(files: list[str], way: str, num_used: int) -> tf.data.Dataset:
    first_example = 0 if way == "skip" else num_used
    options = record_order.ReadOptions(first_example=first_example)
    shares = record_order.files_of_host(files, _SPLIT, options.shard)
    records = record_order.read_records_in_order(shares, options)
    return records.skip(num_used - first_example)


def _cost() -> Cost:
    status = pathlib.Path(f"/proc/{os.getpid()}/io").read_text()
    num_bytes = int(re.findall(r"rchar: (\d+)", status)[0])
    return Cost(num_bytes, time.process_time(), time.monotonic())


def _difference(after: Cost, before: Cost) -> Cost:
    return Cost(*(a - b for a, b in zip(after, before, strict=True)))


def rows(folder: str, *, num_records: int, num_used: int) -> Iterator[str]:
    """Yields the rows of the table.

    Args:
      folder: The directory of the records.
      num_records: The number of records in an epoch.
      num_used: The number of records that were used.
    """
    for way in WAYS:
        costs = measure(folder, way, num_records=num_records, num_used=num_used)
        cells = [
            f"{cost.num_bytes / 1e6:,.1f} | {cost.cpu_secs:.2f} | {cost.secs:.2f}"
            for cost in costs
        ]
        yield f"| {way} | {' | '.join(cells)} |"


def main() -> None:
    """Runs the command."""
    unit = "MB read | CPU s | s"
    print(f"| | first record: {unit} | rest of the epoch: {unit} |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        write(
            folder,
            num_records=FLAGS.num_records,
            record_bytes=FLAGS.record_bytes,
            num_files=FLAGS.num_files,
        )
        num_used = int(FLAGS.used * FLAGS.num_records)
        for row in rows(folder, num_records=FLAGS.num_records, num_used=num_used):
            print(row)


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_integer("num_records", 20_000, "Number of records in the data set.")
    flags.DEFINE_integer("record_bytes", 20_000, "Mean size of a record, bytes.")
    flags.DEFINE_integer("num_files", 64, "Number of record files.")
    flags.DEFINE_float(
        "used", 0.9, "Fraction of the epoch before the resume.", upper_bound=0.999
    )


if __name__ == "__main__":
    define_flags()
    guard.run(main)
