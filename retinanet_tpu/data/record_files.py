"""Finds the record files of a data directory, and divides them among hosts."""

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
FRAME_BYTES = 16
# Opening a remote file takes about 50 ms for any size: open many at once.
NUM_READERS = 16
# The mean size of a record is estimated from 8 records of each of 16 files.
_SAMPLED_FILES = 16
_SAMPLED_RECORDS = 8


def file_name(split: str, index: int, count: int) -> str:
    """Returns the name of a shard, such as train-00000-of-00064.tfrecord."""
    return f"{split}-{index:05d}-of-{count:05d}.tfrecord"


def check_directory(data_dir: str) -> None:
    """Raises MissingFileError if a data directory does not exist."""
    if tf.io.gfile.isdir(data_dir):
        return
    is_relative = "://" not in data_dir and not os.path.isabs(data_dir)
    location = f" in the working directory {os.getcwd()}" if is_relative else ""
    raise errors.MissingFileError(
        f"There is no directory {data_dir}{location}; set DATA_DIR to the directory "
        "with the records, or mount it."
    )


def list_files(data_dir: str, split: str, ending: str = "") -> list[str]:
    """Returns the existing record files of a split, sorted.

    Args:
      data_dir: The directory, never read as a glob pattern. It need not exist.
      split: The name of the split, such as "train".
      ending: A regular expression for the text after the name of a record file.
    """
    name = re.compile(
        re.escape(split) + r"-[0-9]{5}-of-[0-9]{5}\.tfrecord" + ending, re.DOTALL
    )
    names = tf.io.gfile.listdir(data_dir) if tf.io.gfile.isdir(data_dir) else []
    return [os.path.join(data_dir, n) for n in sorted(names) if name.fullmatch(n)]


def find(data_dir: str, split: str) -> list[str]:
    """Returns the record files of a split, sorted, the same list on every host.

    Args:
      data_dir: The data directory.
      split: The name of the split, such as "train".

    Raises:
      MissingFileError: The directory does not exist, or a file of the split is missing.
      UserError: The files belong to more than one conversion.
    """
    check_directory(data_dir)
    files = list_files(data_dir, split)
    if not files:
        pattern = os.path.join(data_dir, f"{split}-?????-of-?????.tfrecord")
        raise errors.MissingFileError(
            f"No file matches {pattern}; write the records with "
            "retinanet-tpu convert or set DATA_DIR."
        )
    # The names end in -of-00064.tfrecord, checked by `list_files`.
    totals = sorted({int(path.removesuffix(".tfrecord")[-5:]) for path in files})
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
    """Returns the files that one host reads. Each file belongs to one host.

    Args:
      files: All files, in the same order on every host.
      shard: (index of this host, number of hosts).

    Raises:
      UserError: The index is not in 0..count-1.
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


def check_not_empty(files: Sequence[str]) -> None:
    """Raises UserError if all files are empty: an endless dataset would hang."""
    if not any(tf.io.gfile.stat(path).length for path in files):
        raise errors.UserError(
            f"The {len(files)} record files of this host are empty (first {files[0]}); "
            "convert again with a smaller --num_shards."
        )


def mean_record_bytes(files: Sequence[str]) -> int:
    """Estimates the mean size of a record from the first records of up to 16 files.

    Args:
      files: The record files, at least one of them not empty. The same files in the
        same order give the same result.

    Returns:
      The size in bytes, framing included, at least 1.

    Raises:
      UserError: One of these files ends within its first records.
    """

    def first_sizes(path: str) -> list[int]:
        return list(itertools.islice(scan_sizes(path), _SAMPLED_RECORDS))

    with concurrent.futures.ThreadPoolExecutor(NUM_READERS) as readers:
        sampled = readers.map(first_sizes, files[:: -(-len(files) // _SAMPLED_FILES)])
        sizes = list(itertools.chain.from_iterable(sampled))
    return max(1, sum(sizes) // max(1, len(sizes)))


def scan_sizes(path: str) -> Iterator[int]:
    """Yields the size of each record in bytes, framing included.

    Of a local file it reads only the lengths in front of the records.

    Args:
      path: The record file.

    Raises:
      UserError: The file ends within a record.
    """
    size = tf.io.gfile.stat(path).length
    position, count = 0, 0
    # GFile reads 512 KiB for each length.
    is_local = "://" not in path
    with open(path, "rb", 0) if is_local else tf.io.gfile.GFile(path, "rb") as file:
        while position < size:
            file.seek(position)
            head = file.read(_LENGTH.size)
            if len(head) == _LENGTH.size:
                record_bytes = FRAME_BYTES + _LENGTH.unpack(head)[0]
                position += record_bytes
            if len(head) < _LENGTH.size or position > size:
                raise errors.UserError(
                    f"{path} is truncated: it ends within record {count}. Copy the "
                    "file again, or write it again with retinanet-tpu convert."
                )
            yield record_bytes
            count += 1
