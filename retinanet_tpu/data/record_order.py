"""The endless, reproducible order in which training reads records.

Writers often distribute sorted images to the files in turn. Reading such files in
parallel from their first records would restore the sorted order, in every epoch. The
files that are open together are therefore read from different positions: see
`_parts_of_epoch`.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.data import record_files, record_index, resumed_epoch

# The number of files read at once. 16 hides the latency of remote storage.
_CYCLE_LENGTH = 16
READ_BUFFER_BYTES = 4 << 20
_READ_AHEAD = 8  # Records that are prefetched from each file.
# The limit of records in a file. A record's number is position * 2**32 + its index.
_MAX_RECORDS = 2**32
_GOLDEN_RATIO = 2654435769  # 2**32 / 1.618…: multiples spread evenly modulo 2**32.


class ReadOptions(NamedTuple):
    """The settings that decide which examples training reads, and in which order.

    Attributes:
      seed: The seed of the shuffle and of the augmentation.
      shard: (index of this host, number of hosts).
      first_example: The number of examples that this host used before a resume.
      shuffle_buffer: The size of the shuffle buffer, records. It is smaller if they do
        not fit into `shuffle_bytes`.
      shuffle_bytes: The memory limit of the shuffle buffer, bytes.
      service_address: grpc://HOST:PORT of a tf.data service that makes the batches, or
        None.
    """

    seed: int = 0
    shard: tuple[int, int] = (0, 1)
    first_example: int = 0
    shuffle_buffer: int = 1024
    shuffle_bytes: int = 1 << 30
    service_address: str | None = None


class Share(NamedTuple):
    """The part of a file that one host reads: records start, start + step, …

    Attributes:
      path: The record file.
      start: The index of the first record.
      step: The distance between two records. 1 is the whole file.
    """

    path: str
    start: int = 0
    step: int = 1


class _Source(NamedTuple):
    """The shares of a host as arrays that a dataset can index.

    Attributes:
      paths: object [F], as in `Share`.
      starts: int64 [F], as in `Share`.
      steps: int64 [F], as in `Share`.
      num_estimated: int64 [F], the number of records of each share, estimated from its
        bytes.
      buffer_size: The size of the shuffle buffer, records.
    """

    paths: np.ndarray
    starts: np.ndarray
    steps: np.ndarray
    num_estimated: np.ndarray
    buffer_size: int

    def records(self, file: tf.Tensor) -> tf.data.Dataset:
        """Returns the serialized records of a share, by its index in the arrays."""
        path = tf.constant(self.paths)[file]
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        step = tf.constant(self.steps)[file]
        start = tf.constant(self.starts)[file]
        return records.shard(step, start)


def files_of_host(
    files: Sequence[str], split: str, shard: tuple[int, int]
) -> list[Share]:
    """Returns the shares that a host trains on, equally many for all hosts.

    Each host gets the same number of whole files. Some files may be left over, fewer
    than there are hosts. Of these each of n hosts gets every n-th record.

    Args:
      files: The record files of all hosts.
      split: The name of their split, for messages.
      shard: (index of this host, number of hosts).

    Raises:
      UserError: There are fewer files than hosts, or the files of this host are empty.
    """
    host, num_hosts = shard
    if len(files) < num_hosts:
        raise errors.UserError(
            f"{len(files)} {split} files cannot be divided among {num_hosts} hosts; "
            f"convert again with --num_shards={num_hosts} or a multiple."
        )
    num_left = len(files) % num_hosts
    num_whole = len(files) - num_left
    whole = record_files.share(files[:num_whole], shard)
    record_files.check_not_empty(whole)
    if num_left:
        logging.warning(
            "records | %d %s files are not a multiple of %d hosts: every host reads "
            "the last %d files and uses one record in %d of them. Convert again with "
            "--num_shards=%d to read each file on one host only.",
            len(files),
            split,
            num_hosts,
            num_left,
            num_hosts,
            num_whole + num_hosts,
        )
    left = [Share(path, host, num_hosts) for path in files[num_whole:]]
    return [Share(path) for path in whole] + left


def read_records_in_order(
    shares: Sequence[Share], options: ReadOptions
) -> tf.data.Dataset:
    """Returns an endless dataset of a host's serialized records in one fixed order.

    Args:
      shares: The shares of this host.
      options: The seed, the shard, the size of the shuffle and the first example.

    Returns:
      Dataset of (number, record), int64 [] and string []. The number is unique over
      all hosts, epochs and records.

    Raises:
      UserError: A file is truncated.
    """
    host, num_hosts = options.shard
    # Host i of n numbers its examples i, n + i, 2n + i, …
    first_number = options.first_example * num_hosts + host
    numbers = tf.data.Dataset.counter(first_number, num_hosts)
    return tf.data.Dataset.zip(numbers, _serialized_in_order(shares, options))


def read_records_for_data_service(
    shares: Sequence[Share], options: ReadOptions
) -> tf.data.Dataset:
    """Returns an endless dataset whose source a tf.data service can distribute.

    The elements of the source are positions. A position is epoch * number of files +
    index in that epoch's order of files. A worker that gets a position reads that file,
    and up to 15 more at the same time. It starts inside the file, at another record for
    each position, and wraps around at the end.

    Args:
      shares: The shares of this host.
      options: The seed, the shard, the size of the shuffle and the first example.
        Reading starts at the first file that was not fully read.

    Returns:
      Dataset of (number, record), as from `read_records_in_order`.

    Raises:
      UserError: A file is truncated.
    """
    host, num_hosts = options.shard
    num_at_once = min(_CYCLE_LENGTH, len(shares))
    source = _make_source(shares, options)
    num_in_memory = max(2, source.buffer_size // num_at_once)
    read_ahead = min(_READ_AHEAD, num_in_memory // 2)

    def read(position: tf.Tensor) -> tf.data.Dataset:
        epoch, index = position // len(shares), position % len(shares)
        file = _shuffled_files(np.arange(len(shares)), options.seed, epoch)[index]
        fraction = position * _GOLDEN_RATIO % 2**32  # In units of 2**-32.
        start = tf.constant(source.num_estimated)[file] * fraction // 2**32
        records = source.records(file)
        records = records.skip(start).concatenate(records.take(start))
        shuffle_seed = _shuffle_seed(options.seed, position)
        # Shuffled within the file, so that no record of an epoch stays in a buffer.
        shuffled = _shuffled(records, num_in_memory - read_ahead, shuffle_seed)
        first_number = (position * num_hosts + host) * _MAX_RECORDS
        return shuffled.enumerate(first_number).prefetch(read_ahead)

    # Not Dataset.counter: it is one element, repeated. One worker would get all of it,
    # and no other worker would continue after its death.
    first_position = _first_position(shares, options)
    positions = tf.data.Dataset.range(first_position, 2**31 // num_hosts)
    # Not a parallel interleave: it would request positions long before they are needed
    # and keep them from other workers. The files are prefetched instead.
    return positions.interleave(read, cycle_length=num_at_once)


def _make_source(shares: Sequence[Share], options: ReadOptions) -> _Source:
    paths = [share.path for share in shares]
    record_bytes = record_files.mean_record_bytes(paths)
    num_fitting = options.shuffle_bytes // record_bytes
    buffer_size = max(1, min(options.shuffle_buffer, num_fitting))
    logging.info(
        "records | shuffle buffer: %d records of about %d bytes",
        buffer_size,
        record_bytes,
    )
    file_bytes = np.array([tf.io.gfile.stat(path).length for path in paths], np.int64)
    steps = np.array([share.step for share in shares], np.int64)
    return _Source(
        paths=np.array(paths, object),
        starts=np.array([share.start for share in shares], np.int64),
        steps=steps,
        num_estimated=file_bytes // (record_bytes * steps),
        buffer_size=buffer_size,
    )


def _num_records(shares: Sequence[Share], sizes: Sequence[np.ndarray]) -> np.ndarray:
    """Returns int64 [F], the number of records of each share.

    Args:
      shares: The shares.
      sizes: The sizes of the records of each share's file.
    """
    counts = np.array([len(of_file) for of_file in sizes], np.int64)
    starts = np.array([share.start for share in shares])
    steps = np.array([share.step for share in shares])
    return (counts - starts + steps - 1) // steps


def _record_sizes(shares: Sequence[Share]) -> list[np.ndarray]:
    return record_index.record_sizes([share.path for share in shares])


def _first_position(shares: Sequence[Share], options: ReadOptions) -> int:
    """Returns the position of the first file that was not fully read."""
    if not options.first_example:
        return 0
    counts = _num_records(shares, _record_sizes(shares))
    epoch, num_used = divmod(options.first_example, int(counts.sum()))
    ends = np.cumsum(_shuffled_files(counts, options.seed, epoch))
    num_whole = int(np.searchsorted(ends, num_used, side="right"))
    logging.info("records | resuming at file %d of epoch %d", num_whole, epoch)
    return epoch * len(shares) + num_whole


def _serialized_in_order(
    shares: Sequence[Share], options: ReadOptions
) -> tf.data.Dataset:
    """Returns an endless dataset of serialized records from first_example on."""
    source = _make_source(shares, options)

    def read_part(
        file: tf.Tensor, start: tf.Tensor, count: tf.Tensor
    ) -> tf.data.Dataset:
        return source.records(file).skip(start).take(count)

    def read_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        parts = _parts_of_epoch(source, options.seed, epoch)
        return _joined(parts, read_part, source, _shuffle_seed(options.seed, epoch))

    if not options.first_example:
        return tf.data.Dataset.counter().flat_map(read_epoch)
    sizes = _record_sizes(shares)
    counts = _num_records(shares, sizes)
    epoch, num_used = divmod(options.first_example, int(counts.sum()))
    logging.info("records | resuming at record %d of epoch %d", num_used, epoch)
    if not num_used:
        return tf.data.Dataset.counter(epoch).flat_map(read_epoch)
    resumed = tf.constant(epoch, tf.int64)
    columns = _parts_of_epoch(source, options.seed, resumed)
    parts = [
        _make_part(shares[file], sizes[file], int(counts[file]), start, count)
        for file, start, count in zip(*(c.numpy() for c in columns), strict=True)
    ]

    def order(read_part_fn: resumed_epoch.ReadPartFn) -> tf.data.Dataset:
        numbers = (np.arange(len(parts)),)
        seed = _shuffle_seed(options.seed, resumed)
        return _joined(numbers, read_part_fn, source, seed)

    rest = resumed_epoch.read(parts, num_used, order, buffer_bytes=READ_BUFFER_BYTES)
    later = tf.data.Dataset.counter(epoch + 1).flat_map(read_epoch)
    return rest.concatenate(later)


def _make_part(
    share: Share, sizes: np.ndarray, num_records: int, start: int, count: int
) -> resumed_epoch.Part:
    """Returns a row of `_parts_of_epoch` without its estimates.

    Args:
      share: The share of the file.
      sizes: The sizes of the records of the file.
      num_records: The number of records of the share.
      start: The number of records to skip.
      count: The number of records to read, or -1 for all that follow.
    """
    start = min(start, num_records)
    count = num_records - start if count < 0 else min(count, num_records - start)
    first = share.start + start * share.step
    return resumed_epoch.Part(share.path, sizes, first, share.step, count)


def _joined(
    parts: tuple[tf.Tensor | np.ndarray, ...],
    read_part_fn: Callable[..., tf.data.Dataset],
    source: _Source,
    seed: tf.Tensor,
) -> tf.data.Dataset:
    """Returns the elements of an epoch's parts, interleaved and shuffled.

    Args:
      parts: The columns of a table with a row for each part.
      read_part_fn: The function that returns the elements of a row.
      source: The shares of the host.
      seed: int64 [2], the seed of the shuffle.
    """
    elements = tf.data.Dataset.from_tensor_slices(parts).interleave(
        read_part_fn,
        cycle_length=min(_CYCLE_LENGTH, len(source.paths)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )
    return _shuffled(elements, source.buffer_size, seed)


def _parts_of_epoch(
    source: _Source, seed: int, epoch: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the parts of files to read in an epoch, each record once.

    The first C files, which are opened together, start at positions that are spread
    evenly over their lengths. All files that are open together therefore remain at
    different positions. The skipped beginnings of the first files end the epoch.

    Returns:
      int64 [F + C] each: the file, the number of records to skip, and the number of
      records to read, or -1 for all that follow.
    """
    files = _shuffled_files(np.arange(len(source.paths)), seed, epoch)
    first = files[:_CYCLE_LENGTH]
    num_first = min(_CYCLE_LENGTH, len(source.paths))
    shift = tf.random.stateless_uniform([], _shuffle_seed(seed, epoch))
    fractions = (tf.range(num_first, dtype=tf.float32) + shift) / num_first
    lengths = tf.cast(tf.gather(source.num_estimated, first), tf.float32)
    starts = tf.cast(fractions * lengths, tf.int64)
    no_skip = tf.zeros([len(source.paths) - num_first], tf.int64)
    # Reversed: the file that starts farthest has the longest beginning and ends first.
    return (
        tf.concat([files, first[::-1]], axis=0),
        tf.concat([starts, no_skip, tf.zeros_like(starts)], axis=0),
        tf.concat(
            [tf.fill(tf.shape(files), tf.constant(-1, tf.int64)), starts[::-1]], axis=0
        ),
    )


def _shuffled_files(values: np.ndarray, seed: int, epoch: tf.Tensor | int) -> tf.Tensor:
    """Returns the values [F] of all files in an epoch's order of files."""
    return tf.random.experimental.stateless_shuffle(values, _shuffle_seed(seed, epoch))


def _shuffle_seed(seed: int, number: tf.Tensor | int) -> tf.Tensor:
    # Negative: the seeds of the examples' augmentation are (seed, number >= 0).
    return tf.stack([seed, -1 - number])


def _shuffled(
    records: tf.data.Dataset, buffer_size: int, seed: tf.Tensor
) -> tf.data.Dataset:
    """Returns Dataset.shuffle without TensorFlow's global seed, which it mixes in."""
    shuffled = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(records),
        buffer_size=tf.constant(buffer_size, tf.int64),
        seed=seed[0],
        seed2=seed[1],
        reshuffle_each_iteration=False,
        output_types=[records.element_spec.dtype],
        output_shapes=[[]],
    )
    return tf.data.experimental.from_variant(shuffled, records.element_spec)
