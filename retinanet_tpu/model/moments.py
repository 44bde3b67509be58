"""Moments of the channels of a batch."""

from collections.abc import Callable

import tensorflow as tf


@tf.custom_gradient
def about(
    center: tf.Tensor, x32: tf.Tensor
) -> tuple[tuple[tf.Tensor, tf.Tensor], Callable[..., tuple[None, tf.Tensor]]]:
    """Returns E[x - center] and E[(x - center)^2] over all axes but the last.

    They need one pass over x and one exchange between replicas. The two-pass variance
    needs two of each. The difference E[x^2] - E[x]^2 loses all digits if the mean is
    1000 standard deviations, unless `center` is near the mean.

    Args:
      center: float32 [C], constants. They get no gradient.
      x32: float32 [..., C].
    Returns:
      float32 [C] each.
    """
    axes = list(range(x32.shape.rank - 1))

    def gradient(mean: tf.Tensor, mean_square: tf.Tensor) -> tuple[None, tf.Tensor]:
        # TensorFlow's own gradient writes seven arrays of the size of x.
        count = tf.cast(tf.size(x32) // x32.shape[-1], tf.float32)
        slope = 2.0 * mean_square / count
        return None, x32 * slope + (mean / count - center * slope)

    # An operation that subtracts would write an array of the size of x on CPUs.
    squares = tf.math.squared_difference(x32, center)
    mean = tf.reduce_mean(x32, axes) - center
    return (mean, tf.reduce_mean(squares, axes)), gradient
