"""Reads the rest of an epoch, without the records that were used before a resume."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import tensorflow as tf

# Returns the dataset of a part from its number, int64 [].
ReadPartFn: TypeAlias = Callable[[tf.Tensor], tf.data.Dataset]
# Joins the datasets of all parts to one: the epoch's order of whatever they contain.
OrderFn: TypeAlias = Callable[[ReadPartFn], tf.data.Dataset]
# The limit of records in a part.
_MAX_RECORDS = 2**32


class Part(NamedTuple):
    """A part of a file: records first, first + step, …

    Attributes:
      path: The record file.
      sizes: int64 [number of records of the file], bytes, framing included.
      first: The index of the first record.
      step: The distance between two records.
      num_records: The number of records.
    """

    path: str
    sizes: np.ndarray
    first: int
    step: int
    num_records: int


class _Runs(NamedTuple):
    """Records that follow each other in a file, each after a gap of used records.

    Attributes:
      gaps: int64 [R], the number of used records before each run.
      counts: int64 [R], the number of records.
      offsets: int64 [R], the position of the first record in the file, bytes.
      num_bytes: int64 [R], the length of the run, bytes.
    """

    gaps: np.ndarray
    counts: np.ndarray
    offsets: np.ndarray
    num_bytes: np.ndarray


def read(
    parts: Sequence[Part], num_used: int, order_fn: OrderFn, *, buffer_bytes: int
) -> tf.data.Dataset:
    """Returns the serialized records of an epoch after the first `num_used`.

    The order is that of numbers in place of records, which is cheap to compute. Then
    the epoch is read with an empty string in place of each used record: the shuffle
    treats it like the record, and nothing is read.

    Args:
      parts: The parts of files that the epoch reads.
      num_used: The number of records that were used.
      order_fn: The function that joins the parts. Its order must not depend on the
        values that it joins.
      buffer_bytes: The largest read, bytes.
    """
    counts = tf.constant([part.num_records for part in parts], tf.int64)

    def numbers(part: tf.Tensor) -> tf.data.Dataset:
        first = part * _MAX_RECORDS
        return tf.data.Dataset.range(first, first + counts[part])

    batches = order_fn(numbers).take(num_used).batch(4096)
    used = np.sort(np.concatenate(list(batches.as_numpy_iterator())))
    ends = np.searchsorted(used, _MAX_RECORDS * np.arange(1, len(parts)))
    positions = np.split(used % _MAX_RECORDS, ends)
    runs = [_unused_runs(*pair) for pair in zip(parts, positions, strict=True)]
    read_part_fn = _make_reader(parts, runs, buffer_bytes)
    return order_fn(read_part_fn).skip(num_used)


def _make_reader(
    parts: Sequence[Part], runs: Sequence[_Runs], buffer_bytes: int
) -> ReadPartFn:
    """Returns the function that reads a part with "" in place of used records."""
    paths = tf.constant([part.path for part in parts])
    first_rows = np.cumsum([0, *(len(of_part.counts) for of_part in runs)])
    columns = [tf.constant(np.concatenate(c)) for c in zip(*runs, strict=True)]
    record = tf.TensorSpec([], tf.string)

    def read_part(part: tf.Tensor) -> tf.data.Dataset:
        def read_run(
            gap: tf.Tensor, count: tf.Tensor, offset: tf.Tensor, num_bytes: tf.Tensor
        ) -> tf.data.Dataset:
            # TFRecordDataset has no argument for the offset.
            variant = tf.raw_ops.TFRecordDatasetV2(
                filenames=paths[part],
                compression_type="",
                buffer_size=tf.minimum(num_bytes, buffer_bytes),
                byte_offsets=offset,
            )
            records = tf.data.experimental.from_variant(variant, record).take(count)
            return tf.data.Dataset.from_tensors("").repeat(gap).concatenate(records)

        first, end = tf.constant(first_rows)[part], tf.constant(first_rows)[part + 1]
        rows = tuple(column[first:end] for column in columns)
        return tf.data.Dataset.from_tensor_slices(rows).flat_map(read_run)

    return read_part


def _unused_runs(part: Part, used: np.ndarray) -> _Runs:
    """Returns the runs of a part that remain, and an empty one after the last gap.

    Args:
      part: The part.
      used: int64 [U], the positions in the part of the used records.
    """
    is_used = np.zeros(part.num_records, bool)
    is_used[used] = True
    positions = np.flatnonzero(~is_used)
    indexes = part.first + part.step * positions
    heads = np.flatnonzero(np.diff(indexes, prepend=-2) != 1)
    counts = np.diff(heads, append=len(positions))
    ends = positions[heads + counts - 1] + 1
    gaps = np.append(positions[heads], part.num_records) - np.append(0, ends)
    edges = np.append(0, np.cumsum(part.sizes))  # Of all records, bytes.
    offsets = edges[indexes[heads]]
    num_bytes = edges[indexes[heads] + counts] - offsets
    return _Runs(
        gaps, np.append(counts, 0), np.append(offsets, 0), np.append(num_bytes, 0)
    )
