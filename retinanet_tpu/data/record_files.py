"""The record files of a data directory: finding, sharing out and counting them."""

import concurrent.futures
import itertools
import os
import re
import struct
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import logging

from retinanet_tpu import errors

# TFRecord framing: uint64 length, uint32 checksum, the record, uint32 checksum.
_LENGTH = struct.Struct("<Q")
_FRAME_BYTES = 16
# Opening a remote file takes ~50 ms, whatever its size: many at once.
_NUM_READERS = 16
# Records whose sizes are read to estimate the mean: 8 of each of 16 files.
_SAMPLED_FILES, _SAMPLED_RECORDS = 16, 8


def file_name(split: str, index: int, count: int) -> str:
    """Returns the name of a shard: train-00000-of-00064.tfrecord."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def check_directory(data_dir: str) -> None:
    """Raises MissingFileError if a data directory does not exist."""
    if tf.io.gfile.isdir(data_dir):
        return
    is_relative = "://" not in data_dir and not os.path.isabs(data_dir)
    where = f" in the working directory {os.getcwd()}" if is_relative else ""
    raise errors.MissingFileError(
        f"There is no directory {data_dir}{where}; set DATA_DIR to the directory with "
        "the records, or mount it."
    )


def listed(data_dir: str, split: str, ending: str = "") -> list[str]:
    """Returns the record files of a split that are there, sorted; no path is a pattern.

    Args:
      data_dir: The directory; it need not exist.
      split: The split, such as "train".
      ending: A regular expression for what follows the name of a record file.
    """
    name = re.compile(
        re.escape(split) + r"-[0-9]{5}-of-[0-9]{5}\.tfrecord" + ending, re.DOTALL
    )
    names = tf.io.gfile.listdir(data_dir) if tf.io.gfile.isdir(data_dir) else []
    return [os.path.join(data_dir, n) for n in sorted(names) if name.fullmatch(n)]


def find(data_dir: str, split: str) -> list[str]:
    """Returns the record files of a split, sorted, the same list on every host.

    Raises:
      MissingFileError: no directory, no file that matches, or one of the set is absent.
      UserError: the files are of more than one conversion.
    """
    check_directory(data_dir)
    files = listed(data_dir, split)
    if not files:
        pattern = os.path.join(data_dir, f"{split}-?????-of-?????.tfrecord")
        raise errors.MissingFileError(
            f"No file matches {pattern}; write the records with "
            "retinanet-tpu convert or set DATA_DIR."
        )
    totals = sorted({int(re.search(r"-of-(\d+)", path[-24:])[1]) for path in files})
    if len(totals) > 1:
        raise errors.UserError(
            f"{data_dir} holds {split} shards of two conversions (of {totals[0]} and "
            f"of {totals[1]}); delete one set."
        )
    expected = {file_name(split, index, totals[0]) for index in range(totals[0])}
    absent = sorted(expected - {os.path.basename(path) for path in files})
    if absent:
        raise errors.MissingFileError(
            f"{data_dir} lacks {len(absent)} of {totals[0]} {split} shards, first "
            f"{absent[0]}; copy it there or convert again."
        )
    return files


def share(files: Sequence[str], shard: tuple[int, int]) -> list[str]:
    """Returns the files that one host reads; over all hosts each file once.

    Args:
      files: all files, in the same order on every host.
      shard: (index of this host, number of hosts).

    Raises:
      UserError: the index is not in 0..count-1.
    """
    index, count = shard
    if not 0 <= index < count:
        raise errors.UserError(f"Shard index {index} must be in 0..{count - 1}.")
    used = list(files[index::count])
    logging.info(
        "records | %d files found, %d used by host %d of %d | first %s",
        len(files),
        len(used),
        index,
        count,
        used[0] if used else "none",
    )
    return used


def count_records(files: Sequence[str]) -> list[int]:
    """Returns how many records each file holds, by hopping from length to length.

    Raises:
      UserError: a file ends within a record.
    """
    with concurrent.futures.ThreadPoolExecutor(_NUM_READERS) as readers:
        return list(readers.map(_count, files))


def check_not_empty(files: Sequence[str]) -> None:
    """Raises UserError where no file holds a byte: reading would never end."""
    if not any(tf.io.gfile.stat(path).length for path in files):
        raise errors.UserError(
            f"The {len(files)} record files of this host are empty (first {files[0]}); "
            "convert again with a smaller --num_shards."
        )


def mean_record_bytes(files: Sequence[str]) -> int:
    """Estimates the mean size of a record from the first records of up to 16 files.

    Args:
      files: Record files, of which at least one is not empty. The same files in the
        same order give the same result.

    Raises:
      UserError: one of these files ends within its first records.
    """

    def first_sizes(path: str) -> list[int]:
        return list(itertools.islice(_sizes(path), _SAMPLED_RECORDS))

    with concurrent.futures.ThreadPoolExecutor(_NUM_READERS) as readers:
        sampled = readers.map(first_sizes, files[:: -(-len(files) // _SAMPLED_FILES)])
        sizes = list(itertools.chain.from_iterable(sampled))
    return max(1, sum(sizes) // max(1, len(sizes)))


def _count(path: str) -> int:
    return sum(1 for _ in _sizes(path))


def _sizes(path: str) -> Iterator[int]:
    """Yields the bytes of each record, framing included."""
    size, position, count = tf.io.gfile.stat(path).length, 0, 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(_LENGTH.size)
            if len(head) == _LENGTH.size:
                record_bytes = _FRAME_BYTES + _LENGTH.unpack(head)[0]
                position += record_bytes
            if len(head) < _LENGTH.size or position > size:
                raise errors.UserError(
                    f"{path} is truncated: it ends within record {count}. Copy the "
                    "file again, or write it again with retinanet-tpu convert."
                )
            yield record_bytes
            count += 1
