"""Computes gradients of losses."""

import tensorflow as tf


def value_and_gradient(fn, x):
    """Returns fn(x) and the gradient of its sum, as arrays."""
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = fn(x)
    return y.numpy(), tape.gradient(y, x).numpy()
