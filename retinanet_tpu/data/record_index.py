"""Reads and writes the index of a split: the sizes of its records.

The converter writes the index beside the records. With it, training resumes in the
middle of an epoch without reading the records before. Without an index, the sizes are
read from the record files. That takes one small read for each record.
"""

import concurrent.futures
import json
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import errors, json_files
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
    index = _read(path_of(files[0]))

    def sizes(path: str) -> np.ndarray:
        indexed = np.array(index.get(os.path.basename(path), []), np.int64)
        if indexed.sum() == tf.io.gfile.stat(path).length:
            return indexed
        return np.fromiter(record_files.scan_sizes(path), np.int64)

    with concurrent.futures.ThreadPoolExecutor(record_files.NUM_READERS) as readers:
        return list(readers.map(sizes, files))


def count_records(files: Sequence[str]) -> list[int]:
    """Returns the number of records of each file.

    Args:
      files: Record files of one split.

    Raises:
      UserError: A file ends within a record.
    """
    return [len(sizes) for sizes in record_sizes(files)]


def _read(path: str) -> dict[str, Any]:
    """Returns the index, empty if there is none or if it is broken."""
    if not tf.io.gfile.exists(path):
        return {}
    try:
        return dict(json_files.read(path))
    except errors.UserError as error:
        logging.warning("records | the index is not used: %s", error)
        return {}
