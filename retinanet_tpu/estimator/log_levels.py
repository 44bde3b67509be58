"""The verbosity of the log, to suppress TensorFlow's lines about saved models."""

import contextlib
from collections.abc import Iterator

import tensorflow as tf
from absl import logging


@contextlib.contextmanager
def suppress_info_logs() -> Iterator[None]:
    """Restricts the log to warnings and errors within a `with` block."""
    verbosity, level = logging.get_verbosity(), tf.get_logger().level
    logging.set_verbosity(logging.WARNING)
    tf.get_logger().setLevel("WARNING")
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        tf.get_logger().setLevel(level)
