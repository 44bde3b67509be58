"""The records that training sees, one after the other, for ever."""

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


class Order(NamedTuple):
    """Which examples training sees, one after the other."""

    seed: int = 0  # of the shuffle and of the augmentation
    shard: tuple[int, int] = (0, 1)  # (index of this host, number of hosts)
    first_example: int = 0  # how many this host has used up before a resume
    shuffle_buffer: int = 1024  # records; at COCO's 160 kB each, 160 MB of memory
    service_address: str | None = None  # grpc://HOST:PORT of what makes the batches


def files_of_host(files: list[str], split: str, shard: tuple[int, int]) -> list[str]:
    """Returns the files that a host trains on.

    Args:
      files: of all hosts.
      split: what they are files of.
      shard: (index of this host, number of hosts).

    Raises:
      UserError: fewer files than hosts, or nothing in those of this host.
    """
    if len(files) < shard[1]:
        raise errors.UserError(
            f"{len(files)} {split} files cannot be shared out to {shard[1]} hosts; "
            f"convert again with --num_shards={shard[1]} or a multiple."
        )
    used = record_files.share(files, shard)
    record_files.check_not_empty(used)
    return used


def one_by_one(files: list[str], order: Order) -> tf.data.Dataset:
    """Returns a host's records for ever in one fixed order, not yet parsed.

    Args:
      files: of this host.
      order: seed, shard, shuffle_buffer and where to go on.

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


def file_by_file(files: list[str], order: Order) -> tf.data.Dataset:
    """Returns a host's records for ever, from a source that a service can hand out.

    The source are places: epoch * number of files + place in that epoch's order of
    files. Whoever gets a place reads that file, and up to 15 more at the same time.

    Args:
      files: of this host.
      order: seed, shard, shuffle_buffer and where to go on: at the first file that is
        not used up.

    Returns:
      Dataset of (number, record), as one_by_one has it.

    Raises:
      UserError: a truncated file.
    """
    host, num_hosts = order.shard
    num_at_once = min(_CYCLE_LENGTH, len(files))

    def read(place: tf.Tensor) -> tf.data.Dataset:
        epoch, index = place // len(files), place % len(files)
        path = _shuffled_files(files, order.seed, epoch)[index]
        records = tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES)
        # Within its file, so that an epoch leaves nothing in a buffer for the next.
        shuffle_seed = _shuffle_seed(order.seed, place)
        buffer_size = max(1, order.shuffle_buffer // num_at_once)
        shuffled = _shuffled(records, buffer_size, shuffle_seed)
        first_number = (place * num_hosts + host) * _MAX_RECORDS
        return shuffled.enumerate(first_number).prefetch(_READ_AHEAD)

    # Not Dataset.counter, which is one element repeated: one worker would get it all,
    # and at that one's death none would go on.
    places = tf.data.Dataset.range(_first_place(files, order), 2**31 // num_hosts)
    # Not in parallel, which would take places long before their turn from others; the
    # files read ahead instead.
    return places.interleave(read, cycle_length=num_at_once)


def _first_place(files, order):
    """Returns the place of the first file that is not used up."""
    if not order.first_example:
        return 0
    counts = np.array(record_files.count_records(files))
    epoch, used_up = divmod(order.first_example, int(counts.sum()))
    ends = np.cumsum(_shuffled_files(counts, order.seed, epoch))
    num_whole = int(np.searchsorted(ends, used_up, side="right"))
    logging.info("records | going on at file %d of epoch %d", num_whole, epoch)
    return epoch * len(files) + num_whole


def _serialized_for_training(files: list[str], order: Order) -> tf.data.Dataset:
    """Returns the records for ever, from first_example on, not yet parsed."""
    epoch, used_up = 0, 0
    if order.first_example:
        num_records = sum(record_files.count_records(files))
        epoch, used_up = divmod(order.first_example, num_records)
        logging.info("records | going on at record %d of epoch %d", used_up, epoch)

    def read_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        paths = _shuffled_files(files, order.seed, epoch)
        records = tf.data.Dataset.from_tensor_slices(paths).interleave(
            lambda path: tf.data.TFRecordDataset(path, buffer_size=READ_BUFFER_BYTES),
            cycle_length=min(_CYCLE_LENGTH, len(files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        return _shuffled(
            records, order.shuffle_buffer, _shuffle_seed(order.seed, epoch)
        )

    epochs = tf.data.Dataset.counter(epoch)
    return epochs.flat_map(read_epoch).skip(used_up)


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
