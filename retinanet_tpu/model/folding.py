"""A convolution and its normalization as one, where that moves fewer bytes.

The batch's moments of a pointwise convolution's output follow from those of its input,
E[y] = E[x] W and Cov[y] = W' Cov[x] W. Where the output is the larger, kernel and
normalization so become one convolution: what it would normalize is never written, and
neither pass reads it. For ResNet-50 at 640 px that saves 2 GB of 20 in a step of 8
images. In float32 the variance is exact to 1e-6; on a TPU, whose products take
bfloat16, it is off by 0.05 % on average, where an activation's rounding is 0.4 %.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu.model import layers


def conv_norm(
    conv: layers.Conv, norm: layers.BatchNorm, x: tf.Tensor, *, is_training: bool
) -> tf.Tensor:
    """Returns norm(conv(x)), in x's dtype.

    Args:
      conv: makes the map.
      norm: of as many channels.
      x: float [B, H, W, conv's input channels].
      is_training: whether to normalize by the batch's moments.
    """
    if norm.uses_batch(is_training) and _folds(conv, norm, is_training):
        return conv_norm_sum([(conv, norm, x)], is_training=is_training)
    x = conv.without_bias(x)
    return norm(x, is_training=is_training, bias=conv.bias)


def conv_norm_sum(
    branches: Sequence[tuple[layers.Conv, layers.BatchNorm, tf.Tensor]],
    *,
    is_training: bool,
) -> tf.Tensor:
    """Returns the sum of norm(conv(x)) over branches, moving as few bytes as it can.

    Where scale and shift of the normalizations are known beforehand, kernels and
    normalizations of all branches become one convolution, and what would be normalized
    or added is never written nor read.

    Args:
      branches: (conv, norm, x); outputs of one shape and dtype.
      is_training: whether to normalize by the batch's moments.
    """
    if not all(_folds(conv, norm, is_training) for conv, norm, _ in branches):
        parts = [conv_norm(*branch, is_training=is_training) for branch in branches]
        return functools.reduce(tf.add, parts)  # TFLite cannot quantize an add_n.
    inputs, kernels, total_shift = [], [], 0.0
    for conv, norm, x in branches:
        x = x[:, :: conv.stride, :: conv.stride] if conv.stride > 1 else x
        moments_fn = functools.partial(_moments_of_product, x, conv.kernel[0, 0])
        scale, shift = norm.affine(moments_fn, is_training, conv.bias)
        inputs.append(x)
        kernels.append(conv.kernel * scale)
        total_shift += shift
    with branches[0][0].name_scope:
        kernel = tf.cast(tf.concat(kernels, 2), inputs[0].dtype)
        y = tf.nn.conv2d(tf.concat(inputs, -1), kernel, 1, "VALID")
    return tf.cast(tf.cast(y, tf.float32) + total_shift, y.dtype)


def _folds(conv, norm, is_training):
    """Tells whether scale and shift are to be known before the convolution is made."""
    size, _, in_channels, out_channels = conv.kernel.shape
    widens = conv.stride == 1 and out_channels >= 2 * in_channels
    return size == 1 and (widens or not norm.uses_batch(is_training))


def _moments_of_product(x, kernel):
    """Returns E[y] and E[y^2], y = x kernel, over all axes of x but the last."""
    x32 = tf.cast(x, tf.float32)
    mean_x = tf.reduce_mean(x32, [0, 1, 2])
    covariance = _mean_outer(x32) - mean_x[:, None] * mean_x
    mean = tf.linalg.matvec(kernel, mean_x, transpose_a=True)
    variance = tf.reduce_sum(kernel * tf.matmul(covariance, kernel), 0)
    return mean, variance + tf.square(mean)


def _mean_outer(x32):
    """Returns E[x x'], [K, K]; its gradient holds for symmetric ones from above."""
    num_channels = x32.shape[-1]
    count = tf.cast(tf.reduce_prod(tf.shape(x32)[:-1]), tf.float32)
    # As a convolution it takes x in the layout that its neighbors have.
    outer = tf.raw_ops.Conv2DBackpropFilter(
        input=tf.stop_gradient(x32),
        filter_sizes=[1, 1, num_channels, num_channels],
        out_backprop=x32,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )[0, 0]
    # Both factors are x, of which the one above is held: half of the gradient.
    return (2 * outer - tf.stop_gradient(outer)) / count
