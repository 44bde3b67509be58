"""Stochastic depth: training skips the residual branches of random images.

Every image has random numbers of its own. They depend on the step, the image's id and
the layer only. So a step has the same loss on any number of replicas, and a resumed run
repeats it.
"""

import tensorflow as tf


def image_seeds(image_ids: tf.Tensor, step: tf.Tensor) -> tf.Tensor:
    """Returns the seed of each image in a step, uint32 [B].

    Args:
      image_ids: int64 [B], the ids of the images.
      step: int64, the number of steps before this one.
    """
    ids, number = tf.cast(image_ids, tf.uint32), tf.cast(step, tf.uint32)
    return _mix(_mix(ids) ^ number)


def drop(
    x: tf.Tensor, *, rate: float, layer: int, seeds: tf.Tensor | None
) -> tf.Tensor:
    """Returns x, 0 for random images, and divided by 1 - rate for the others.

    Args:
      x: float [B, ...], a residual branch.
      rate: The probability that an image is dropped, in [0, 1).
      layer: The number of the branch in the network. Branches of different numbers
        drop independently.
      seeds: uint32 [B] of `image_seeds`. None keeps x as it is, as in inference.
    Source: arXiv:1603.09382; the division as in EfficientNet, arXiv:1905.11946.
    """
    if rate == 0 or seeds is None:
        return x
    bits = _mix(seeds + tf.constant(layer * 0x9E3779B9 % 2**32, tf.uint32))
    # A float32 represents 24 bits exactly.
    uniforms = tf.cast(tf.bitwise.right_shift(bits, 8), tf.float32) / 2**24
    factors = tf.where(uniforms >= rate, 1 / (1 - rate), 0.0)
    shape = [-1] + [1] * (x.shape.rank - 1)
    return x * tf.reshape(tf.cast(factors, x.dtype), shape)


def _mix(x: tf.Tensor) -> tf.Tensor:
    """Returns uint32 x with every bit dependent on all bits.

    Source: The finalizer of MurmurHash3.
    """
    x = (x ^ tf.bitwise.right_shift(x, 16)) * tf.constant(0x85EBCA6B, tf.uint32)
    x = (x ^ tf.bitwise.right_shift(x, 13)) * tf.constant(0xC2B2AE35, tf.uint32)
    return x ^ tf.bitwise.right_shift(x, 16)
