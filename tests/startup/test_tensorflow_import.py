import subprocess
import sys

import pytest

import repository

pytestmark = pytest.mark.long


def test_keras_and_jax_are_imported_at_their_first_use():
    code = """
import retinanet_tpu.startup.cpu
import sys
import tensorflow as tf
print([name in sys.modules for name in ("keras", "keras.src", "jax")])
print(tf.keras.layers.Dense(2)(tf.ones([1, 3])).shape)
import jax
print(jax.numpy.arange(3).sum())
"""
    # Not a fork of a process that has imported them.
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=repository.ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[False, False, False]", "(1, 2)", "3"]
