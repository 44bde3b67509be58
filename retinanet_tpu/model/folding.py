"""Folds a normalization into the convolution before it to move fewer bytes.

The batch's moments of a pointwise convolution's output follow from those of its input:
E[y] = E[x] W and Cov[y] = W' Cov[x] W. So scale and shift are known before the
convolution, and kernel and normalization become one convolution. Its output before
normalization is never written, nor read by the forward or backward pass. This is used
where the output is larger than the input. For ResNet-50 at 640 px it saves 2 GB of 20
in a step of 8 images. In float32 the variance is exact to 1e-6. On a TPU, which
multiplies in bfloat16, its mean error is 0.05 %, and an activation's rounding is 0.4 %.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu.model import layers, norms


def conv_norm(
    conv: layers.Conv, norm: norms.BatchNorm, x: tf.Tensor, *, is_training: bool
) -> tf.Tensor:
    """Returns norm(conv(x)), in x's dtype.

    Args:
      conv: The convolution.
      norm: The normalization of its output channels.
      x: float [B, H, W, in_channels].
      is_training: Whether to normalize by the batch's moments.
    """
    if norm.uses_batch(is_training) and _folds(conv, norm, is_training):
        return conv_norm_sum([(conv, norm, x)], is_training=is_training)
    x = conv.without_bias(x)
    return norm(x, is_training=is_training, bias=conv.bias)


def conv_norm_sum(
    branches: Sequence[tuple[layers.Conv, norms.BatchNorm, tf.Tensor]],
    *,
    is_training: bool,
) -> tf.Tensor:
    """Returns the sum of norm(conv(x)) over branches.

    If scale and shift of all normalizations can be known before the convolutions, all
    branches become one convolution. The terms of the sum are then never written.

    Args:
      branches: The (conv, norm, x) of each branch. Their outputs have the same shape
        and dtype.
      is_training: Whether to normalize by the batch's moments.
    """
    if not all(_folds(conv, norm, is_training) for conv, norm, _ in branches):
        parts = [conv_norm(*branch, is_training=is_training) for branch in branches]
        return functools.reduce(tf.add, parts)  # TFLite cannot quantize an add_n.
    inputs, kernels, total_shift = [], [], 0.0
    for conv, norm, x in branches:
        x = x[:, :: conv.stride, :: conv.stride] if conv.stride > 1 else x
        moments_fn = functools.partial(
            _moments_of_product, x=x, kernel=conv.kernel[0, 0]
        )
        scale, shift = norm.affine(moments_fn, is_training, conv.bias)
        inputs.append(x)
        kernels.append(conv.kernel * scale)
        total_shift += shift
    with branches[0][0].name_scope:
        kernel = tf.cast(tf.concat(kernels, 2), inputs[0].dtype)
        y = tf.nn.conv2d(tf.concat(inputs, -1), kernel, 1, "VALID")
    return tf.cast(tf.cast(y, tf.float32) + total_shift, y.dtype)


def _folds(conv: layers.Conv, norm: norms.BatchNorm, is_training: bool) -> bool:
    """Returns whether to fold the normalization into the convolution."""
    size, _, in_channels, out_channels = conv.kernel.shape
    widens = conv.stride == 1 and out_channels >= 2 * in_channels
    return size == 1 and (widens or not norm.uses_batch(is_training))


def _moments_of_product(
    center: tf.Tensor, x: tf.Tensor, kernel: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns E[y] and E[y^2] of y = x kernel - center, over all axes but the last."""
    x32 = tf.cast(x, tf.float32)
    mean_x = tf.reduce_mean(x32, [0, 1, 2])
    covariance = _mean_outer(x32) - mean_x[:, None] * mean_x
    mean = tf.linalg.matvec(kernel, mean_x, transpose_a=True) - center
    variance = tf.reduce_sum(kernel * tf.matmul(covariance, kernel), 0)
    return mean, variance + tf.square(mean)


def _mean_outer(x32: tf.Tensor) -> tf.Tensor:
    """Returns E[x x'], [C, C]. Its gradient assumes a symmetric upstream gradient."""
    num_channels = x32.shape[-1]
    count = tf.cast(tf.reduce_prod(tf.shape(x32)[:-1]), tf.float32)
    # A convolution reads x in the layout of the convolutions around it.
    outer = tf.raw_ops.Conv2DBackpropFilter(
        input=tf.stop_gradient(x32),
        filter_sizes=[1, 1, num_channels, num_channels],
        out_backprop=x32,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )[0, 0]
    # Both factors are x, but the gradient above is that of one of them: half of it.
    return (2 * outer - tf.stop_gradient(outer)) / count
