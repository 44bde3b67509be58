"""Imports TensorFlow without Keras and jax.

TensorFlow loads both, and most programs use neither. Without them the import takes a
third less CPU time. A later import of Keras or jax, such as that by `tf.keras`, works
as usual.
"""

import importlib
import importlib.abc
import sys
from collections.abc import Sequence
from typing import Any

# TensorFlow ignores that these are missing. It looks for `keras` itself without that.
_DEFERRED = ("jax", "keras.src")


class _Deferring(importlib.abc.MetaPathFinder):
    """A finder that reports the deferred packages as missing."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: Any = None
    ) -> None:
        """Raises ModuleNotFoundError for a deferred package."""
        if fullname in _DEFERRED:
            raise ModuleNotFoundError(f"{fullname} is imported later", name=fullname)


def run() -> None:
    """Imports TensorFlow, unless it is already imported."""
    finder = _Deferring()
    sys.meta_path.insert(0, finder)
    try:
        importlib.import_module("tensorflow")
    finally:
        sys.meta_path.remove(finder)
