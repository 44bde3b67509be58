"""Keeps TensorFlow's long lines about models that it saves out of the log."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from absl import logging


@contextlib.contextmanager
def suppress_info_logs() -> Iterator[None]:
    """Shows warnings and errors only."""
    verbosity, level = logging.get_verbosity(), tf.get_logger().level
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        tf.get_logger().setLevel(level)
