"""Reads and writes the index of a split: the sizes of its records.

The converter writes the index beside the records. With it, training resumes in the
middle of an epoch without reading the records before. Without an index, the sizes are
read from the record files. That takes one small read for each record of a local file;
remote files are read almost whole.
"""

import concurrent.futures
import json
import os
import re
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import json_files
from retinanet_tpu.data import record_files


def path_of(record_path: str) -> str:
    """Returns the path of the index: DIR/<split>.index.json.

    Args:
      record_path: The path of one of the split's record files.
    """
    return re.sub(r"-\d{5}-of-\d{5}\.tfrecord$", "", record_path) + ".index.json"


def write(sizes: Mapping[str, Sequence[int]]) -> None:
    """Writes the index of a split.

    Args:
      sizes: The sizes of the records of each record file of the split, by path: bytes,
        framing included, in the order of the file.
    """
    index = {os.path.basename(path): list(values) for path, values in sizes.items()}
    with tf.io.gfile.GFile(path_of(next(iter(sizes))), "w") as file:
        file.write(json.dumps(index, separators=(",", ":")))


def remove(record_path: str) -> None:
    """Deletes the index of a split if there is one.

    Args:
      record_path: The path of one of the split's record files.
    """
    path = path_of(record_path)
    if tf.io.gfile.exists(path):
        tf.io.gfile.remove(path)


def record_sizes(files: Sequence[str]) -> list[np.ndarray]:
    """Returns the sizes of the records of each file.

    The index is used for a file whose length is the sum of its sizes. The other files
    have been replaced or have no index; their sizes are read from them.

    Args:
      files: Record files of one split.

    Returns:
      int64 [number of records] for each file, bytes, framing included.

    Raises:
      UserError: A file ends within a record.
    """
    index_path = path_of(files[0])
    index = _read(index_path)

    def indexed_sizes(path: str) -> np.ndarray | None:
        sizes = index.get(os.path.basename(path), np.array([], np.int64))
        return sizes if sizes.sum() == tf.io.gfile.stat(path).length else None

    def scanned_sizes(path: str) -> np.ndarray:
        return np.fromiter(record_files.scan_sizes(path), np.int64)

    with concurrent.futures.ThreadPoolExecutor(record_files.NUM_READERS) as readers:
        indexed = list(readers.map(indexed_sizes, files))
        others = [
            path for path, sizes in zip(files, indexed, strict=True) if sizes is None
        ]
        if others:
            logging.info(
                "records | %s does not describe %d of %d files; reading the lengths of "
                "their records",
                index_path,
                len(others),
                len(files),
            )
        scanned = readers.map(scanned_sizes, others)
        return [next(scanned) if sizes is None else sizes for sizes in indexed]


def count_records(files: Sequence[str]) -> list[int]:
    """Returns the number of records of each file.

    Args:
      files: Record files of one split.

    Raises:
      UserError: A file ends within a record.
    """
    return [len(sizes) for sizes in record_sizes(files)]


def _read(path: str) -> dict[str, np.ndarray]:
    """Returns the sizes by file name, none if there is no index or if it is corrupt."""
    try:
        index = {
            name: np.array(sizes, np.int64).reshape(len(sizes))
            for name, sizes in json_files.read(path).items()
        }
    except tf.errors.NotFoundError:
        return {}
    # Also a UserError, which is a ValueError.
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        logging.warning("records | the index %s is not used: %s", path, error)
        return {}
    return index
