"""Traces functions of datasets without AutoGraph."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

P = ParamSpec("P")
T = TypeVar("T")


def without_autograph(fn: Callable[P, T]) -> Callable[P, T]:
    """Returns fn, whose datasets trace their functions without AutoGraph.

    AutoGraph rewrites Python's control flow for tensors, which our functions do not
    use. It took four fifths of the time to make a training dataset.

    Args:
      fn: A function that makes datasets.
    """
    converted: Callable[P, T] = tf.autograph.experimental.do_not_convert(fn)
    return converted
