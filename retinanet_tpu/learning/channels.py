"""Converts between maps of single anchors and the channels of convolutions.

A convolution predicts n values for each of the A anchors of a cell in A * n channels,
anchor outer.
"""

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas


def repeat(maps: tf.Tensor, num_channels: int) -> tf.Tensor:
    """Returns [B, H, W, A * num_channels]: each of A maps `num_channels` times.

    Args:
      maps: [B, A, H, W].
      num_channels: The number of channels of an anchor.
    """
    num_anchors = maps.shape[1]
    if num_anchors == 1 or replicas.runs_cpu_kernels():
        return tf.repeat(tf.transpose(maps, [0, 2, 3, 1]), num_channels, axis=-1)
    anchor_of_channel = np.repeat(np.arange(num_anchors), num_channels)
    # Selects of broadcasts fuse into the loss: a TPU never writes the repeated map.
    first, *others = tf.unstack(maps[..., None], axis=1)
    repeated = first
    for anchor, values in enumerate(others, start=1):
        repeated = tf.where(anchor_of_channel >= anchor, values, repeated)
    return repeated


def interleave(maps: list[tf.Tensor]) -> tf.Tensor:
    """Returns [B, H, W, A * n], anchor outer, from n tensors [B, A, H, W]."""
    stacked = tf.stack(maps, axis=2)
    _, per_cell, count, height, width = stacked.shape
    flat = tf.reshape(stacked, [-1, per_cell * count, height, width])
    return tf.transpose(flat, [0, 2, 3, 1])


def split(values: tf.Tensor, num_channels: int) -> list[tf.Tensor]:
    """Returns num_channels tensors [B, A, H, W] from [B, H, W, A * num_channels].

    The inverse of `interleave`.

    Args:
      values: [B, H, W, A * num_channels], anchor outer.
      num_channels: The number of channels of an anchor.
    """
    return tf.unstack(planes(values, num_channels), axis=2)


def planes(values: tf.Tensor, num_channels: int) -> tf.Tensor:
    """Returns [B, A, num_channels, H, W] from [B, H, W, A * num_channels].

    A TPU stores the last axis in tiles of 128, so single values of anchors are kept in
    maps.

    Args:
      values: [B, H, W, A * num_channels], anchor outer.
      num_channels: The number of channels of an anchor.
    """
    _, height, width, count = values.shape
    shape = [-1, count // num_channels, num_channels, height, width]
    return tf.reshape(tf.transpose(values, [0, 3, 1, 2]), shape)
