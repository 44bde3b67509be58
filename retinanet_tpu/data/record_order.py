"""The order in which training reads records, endlessly and reproducibly.

Writers often deal sorted images to the files in turn. Files that are read side by side
from their first records would then give the sorted order back, in every epoch. So the
files that are open together are at different places: see `_parts_of_epoch`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors
from retinanet_tpu.data import record_files

# Files read at once; 16 hides the latency of remote storage.
_CYCLE_LENGTH = 16
READ_BUFFER_BYTES = 4 << 20
_READ_AHEAD = 8  # records of each file
_MAX_RECORDS = 2**32  # in a file, so that places leave room for their numbers
_GOLDEN_RATIO = 2654435769  # 2**32 / 1.618…: multiples spread evenly modulo 2**32


class ReadOptions(NamedTuple):
    """Which examples training sees, one after the other."""

    seed: int = 0  # of the shuffle and of the augmentation
    shard: tuple[int, int] = (0, 1)  # (index of this host, number of hosts)
    first_example: int = 0  # how many this host has used up before a resume
    shuffle_buffer: int = 1024  # records, if they fit into shuffle_bytes
    shuffle_bytes: int = 1 << 30  # memory of the shuffle buffer
    service_address: str | None = None  # grpc://HOST:PORT of what makes the batches


class Share(NamedTuple):
    """The records index, index + count, ... of a file."""

    path: str
    index: int = 0
    count: int = 1


class _Source(NamedTuple):
    """The shares of a host, as arrays that a dataset can index."""

    paths: np.ndarray  # object [F]
    indexes: np.ndarray  # int64 [F]
    counts: np.ndarray  # int64 [F]
    num_estimated: np.ndarray  # int64 [F], records of each share, by its bytes
    buffer_size: int  # records of the shuffle buffer

    def records(self, file: tf.Tensor) -> tf.data.Dataset:
        """Returns the serialized records of a share, by its place in the arrays."""
        path = tf.constant(self.paths)[file]
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        count, index = tf.constant(self.counts)[file], tf.constant(self.indexes)[file]
        return records.shard(count, index)


def files_of_host(
    files: Sequence[str], split: str, shard: tuple[int, int]
) -> list[Share]:
    """Returns what a host trains on; all hosts get equally many records of each file.

    Whole files are dealt to the hosts. Of the files that are left over, fewer than
    there are hosts, each host gets every n-th record.

    Args:
      files: of all hosts.
      split: what they are files of.
      shard: (index of this host, number of hosts).

    Raises:
      UserError: fewer files than hosts, or nothing in those of this host.
    """
    host, num_hosts = shard
    if len(files) < num_hosts:
        raise errors.UserError(
            f"{len(files)} {split} files cannot be shared out to {num_hosts} hosts; "
            f"convert again with --num_shards={num_hosts} or a multiple."
        )
    num_left = len(files) % num_hosts
    num_whole = len(files) - num_left
    whole = record_files.share(files[:num_whole], shard)
    record_files.check_not_empty(whole)
    if num_left:
        logging.warning(
            "records | %d %s files are no multiple of %d hosts: every host reads the "
            "last %d files and uses one record in %d of them. Convert again with "
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
    files: Sequence[Share], order: ReadOptions
) -> tf.data.Dataset:
    """Returns a host's records for ever in one fixed order, not yet parsed.

    Args:
      files: of this host.
      order: seed, shard, size of the shuffle and where to go on.

    Returns:
      Dataset of (number, record), int64 [] and string []. No two hosts, epochs or
      records share a number.

    Raises:
      UserError: a truncated file.
    """
    host, num_hosts = order.shard
    # Host i of n numbers its examples i, n + i, ...
    numbers = tf.data.Dataset.counter(order.first_example * num_hosts + host, num_hosts)
    return tf.data.Dataset.zip(numbers, _serialized_for_training(files, order))


def read_records_for_data_service(
    files: Sequence[Share], order: ReadOptions
) -> tf.data.Dataset:
    """Returns a host's records for ever, from a source that a service can hand out.

    The source are places: epoch * number of files + place in that epoch's order of
    files. Whoever gets a place reads that file, and up to 15 more at the same time.
    It begins within the file, elsewhere for each place, and ends where it began.

    Args:
      files: of this host.
      order: seed, shard, size of the shuffle and where to go on: at the first file that
        is not used up.

    Returns:
      Dataset of (number, record), as one_by_one has it.

    Raises:
      UserError: a truncated file.
    """
    host, num_hosts = order.shard
    num_at_once = min(_CYCLE_LENGTH, len(files))
    source = _make_source(files, order)
    num_in_memory = max(2, source.buffer_size // num_at_once)
    read_ahead = min(_READ_AHEAD, num_in_memory // 2)

    def read(place: tf.Tensor) -> tf.data.Dataset:
        epoch, index = place // len(files), place % len(files)
        file = _shuffled_files(np.arange(len(files)), order.seed, epoch)[index]
        share = place * _GOLDEN_RATIO % 2**32
        start = tf.constant(source.num_estimated)[file] * share // 2**32
        records = source.records(file)
        records = records.skip(start).concatenate(records.take(start))
        shuffle_seed = _shuffle_seed(order.seed, place)
        # Within its file, so that an epoch leaves nothing in a buffer for the next.
        shuffled = _shuffled(records, num_in_memory - read_ahead, shuffle_seed)
        first_number = (place * num_hosts + host) * _MAX_RECORDS
        return shuffled.enumerate(first_number).prefetch(read_ahead)

    # Not Dataset.counter, which is one element repeated: one worker would get it all,
    # and at that one's death none would go on.
    places = tf.data.Dataset.range(_first_place(files, order), 2**31 // num_hosts)
    # Not in parallel, which would take places long before their turn from others; the
    # files read ahead instead.
    return places.interleave(read, cycle_length=num_at_once)


def _make_source(files: Sequence[Share], order: ReadOptions) -> _Source:
    paths, indexes, counts = zip(*files, strict=True)
    record_bytes = record_files.mean_record_bytes(paths)
    buffer_size = max(1, min(order.shuffle_buffer, order.shuffle_bytes // record_bytes))
    logging.info(
        "records | shuffle buffer: %d records of about %d bytes",
        buffer_size,
        record_bytes,
    )
    file_bytes = np.array([tf.io.gfile.stat(path).length for path in paths], np.int64)
    counts = np.array(counts, np.int64)
    return _Source(
        np.array(paths, object),
        np.array(indexes, np.int64),
        counts,
        file_bytes // (record_bytes * counts),
        buffer_size,
    )


def _num_records(files: Sequence[Share]) -> np.ndarray:
    """Returns int64 [F], the records of each share."""
    whole = record_files.count_records([share.path for share in files])
    _, indexes, counts = (np.array(column) for column in zip(*files, strict=True))
    return (np.array(whole) - indexes + counts - 1) // counts


def _first_place(files: Sequence[Share], order: ReadOptions) -> int:
    """Returns the place of the first file that is not used up."""
    if not order.first_example:
        return 0
    counts = _num_records(files)
    epoch, used_up = divmod(order.first_example, int(counts.sum()))
    ends = np.cumsum(_shuffled_files(counts, order.seed, epoch))
    num_whole = int(np.searchsorted(ends, used_up, side="right"))
    logging.info("records | going on at file %d of epoch %d", num_whole, epoch)
    return epoch * len(files) + num_whole


def _serialized_for_training(
    files: Sequence[Share], order: ReadOptions
) -> tf.data.Dataset:
    """Returns the records for ever, from first_example on, not yet parsed."""
    epoch, used_up = 0, 0
    if order.first_example:
        num_records = int(_num_records(files).sum())
        epoch, used_up = divmod(order.first_example, num_records)
        logging.info("records | going on at record %d of epoch %d", used_up, epoch)
    source = _make_source(files, order)

    def read_part(file: tf.Tensor, start: tf.Tensor, count: tf.Tensor):
        return source.records(file).skip(start).take(count)

    def read_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        parts = _parts_of_epoch(source, order.seed, epoch)
        records = tf.data.Dataset.from_tensor_slices(parts).interleave(
            read_part,
            cycle_length=min(_CYCLE_LENGTH, len(files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return _shuffled(records, source.buffer_size, _shuffle_seed(order.seed, epoch))

    epochs = tf.data.Dataset.counter(epoch)
    return epochs.flat_map(read_epoch).skip(used_up)


def _parts_of_epoch(
    source: _Source, seed: int, epoch: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the parts of files to read in an epoch, each record once.

    The first files begin at different places, spread evenly over their length, and so
    all files that are open together are at different places from then on. What the
    first files have before those places ends the epoch.

    Returns:
      int64 [F + C] each: file, records to skip, and records to take or -1 for the rest.
    """
    files = _shuffled_files(np.arange(len(source.paths)), seed, epoch)
    first = files[:_CYCLE_LENGTH]
    num_first = min(_CYCLE_LENGTH, len(source.paths))
    shift = tf.random.stateless_uniform([], _shuffle_seed(seed, epoch))
    shares = (tf.range(num_first, dtype=tf.float32) + shift) / num_first
    lengths = tf.cast(tf.gather(source.num_estimated, first), tf.float32)
    starts = tf.cast(shares * lengths, tf.int64)
    no_skip = tf.zeros([len(source.paths) - num_first], tf.int64)
    # The file that began last has the least left to read, and the most at the end.
    return (
        tf.concat([files, first[::-1]], axis=0),
        tf.concat([starts, no_skip, tf.zeros_like(starts)], axis=0),
        tf.concat(
            [tf.fill(tf.shape(files), tf.constant(-1, tf.int64)), starts[::-1]], axis=0
        ),
    )


def _shuffled_files(of_files, seed: int, epoch: tf.Tensor) -> tf.Tensor:
    """Returns what each file has, in the order of an epoch."""
    return tf.random.experimental.stateless_shuffle(
        of_files, _shuffle_seed(seed, epoch)
    )


def _shuffle_seed(seed: int, number: tf.Tensor) -> tf.Tensor:
    # Negative, because the examples' own seeds are not.
    return tf.stack([seed, -1 - number])


def _shuffled(
    records: tf.data.Dataset, buffer_size: int, seed: tf.Tensor
) -> tf.data.Dataset:
    """Returns Dataset.shuffle, which would mix TensorFlow's global seed into ours."""
    shuffled = tf.raw_ops.ShuffleDataset(
        input_dataset=tf.data.experimental.to_variant(records),
        buffer_size=tf.constant(buffer_size, tf.int64),
        seed=seed[0],
        seed2=seed[1],
        reshuffle_each_iteration=False,
        output_types=[tf.string],
        output_shapes=[[]],
    )
    return tf.data.experimental.from_variant(shuffled, records.element_spec)
