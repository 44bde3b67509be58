"""The layers of the network."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import activations, initializers, variable_paths

# From RGB pixels in 0..255 to the input of the backbone, float32.
NormalizeFn = Callable[[tf.Tensor], tf.Tensor]


class Conv(tf.Module):
    """A convolution with output sides of ceil(input side / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        name: str,
        stride: int = 1,
        num_groups: int = 1,
        symmetric_padding: bool = True,
        initial_bias: float | None = None,
        init_fn: initializers.InitFn = initializers.lecun_normal,
        seed: int = 0,
    ):
        """Initializes the kernel with random numbers of its own stream, and the bias.

        Args:
          in_channels: The number of channels of the input.
          out_channels: The number of channels of the output.
          kernel_size: The side of the square window, odd.
          name: The last part of the layer's path.
          stride: The step of the window, px, 1 or 2.
          num_groups: The number of groups of channels that are convolved separately.
          symmetric_padding: Whether a stride pads all four sides equally. Otherwise
            it pads like TensorFlow's SAME: an even side only below or right.
          initial_bias: The first value of the bias. None makes a layer without bias.
          init_fn: Returns the first values of the kernel.
          seed: The seed of the random numbers, together with the path; >= 0.
        """
        super().__init__(name)
        self.stride = stride
        self.symmetric_padding = symmetric_padding
        shape = (kernel_size, kernel_size, in_channels // num_groups, out_channels)
        with self.name_scope:
            rng = np.random.default_rng(
                [seed, *variable_paths.current_path("kernel").encode()]
            )
            self.kernel = replicas.make_variable(
                self._initial_kernel(rng, shape, init_fn), name="kernel", trainable=True
            )
            self.bias = None
            if initial_bias is not None:
                bias = np.full(out_channels, initial_bias, np.float32)
                self.bias = replicas.make_variable(bias, name="bias", trainable=True)

    @tf.Module.with_name_scope
    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x, in the dtype of x.

        Args:
          x: float [B, H, W, in_channels].
        Returns:
          [B, ceil(H / stride), ceil(W / stride), out_channels].
        """
        x = self.without_bias(x)
        return x if self.bias is None else x + tf.cast(self.bias, x.dtype)

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x without the bias, for `BatchNorm` to add."""
        kernel = tf.cast(self.kernel, x.dtype)
        stride = self.stride
        if stride > 1 and kernel.shape[0] == 1 and kernel.shape[2] < 16:
            # For such kernels and an odd batch, oneDNN's gradient of a strided
            # convolution writes behind its memory on CPUs with AVX-512.
            x, stride = x[:, ::stride, ::stride], 1
        x, padding = self._pad(x)
        return tf.nn.conv2d(x, kernel, stride, padding)

    def _initial_kernel(
        self,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        init_fn: initializers.InitFn,
    ) -> np.ndarray:
        """Returns the first values of the kernel."""
        return init_fn(rng, shape)

    def _pad(self, x: tf.Tensor) -> tuple[tf.Tensor, str]:
        """Returns the padded input and the padding that the convolution adds.

        Symmetric padding is an operation of its own. TensorFlow's fast convolutions on
        CPUs do not support explicit padding; XLA fuses it.
        """
        if self.stride == 1 or not self.symmetric_padding:
            return x, "SAME"
        pad = [self.kernel.shape[0] // 2] * 2
        return tf.pad(x, [[0, 0], pad, pad, [0, 0]]) if any(pad) else x, "VALID"


class DepthwiseConv(Conv):
    """A convolution of each channel by itself.

    Source: MobileNets, arXiv:1704.04861, section 3.1.
    """

    def __init__(self, num_channels: int, kernel_size: int, **kwargs: Any):
        """Initializes the kernel, float32 [kernel_size, kernel_size, num_channels, 1].

        Args:
          num_channels: The number of channels of the input and of the output.
          kernel_size: The side of the square window, odd.
          **kwargs: The other arguments of `Conv`, but num_groups.
        """
        super().__init__(
            num_channels, num_channels, kernel_size, num_groups=num_channels, **kwargs
        )

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x without the bias, for `BatchNorm` to add."""
        kernel = tf.cast(self.kernel, x.dtype)
        strides = [1, self.stride, self.stride, 1]
        x, padding = self._pad(x)
        return tf.nn.depthwise_conv2d(x, kernel, strides, padding)

    def _initial_kernel(
        self,
        rng: np.random.Generator,
        shape: tuple[int, ...],
        init_fn: initializers.InitFn,
    ) -> np.ndarray:
        """Returns the first values of the kernel, [size, size, num_channels, 1]."""
        return init_fn(rng, shape).swapaxes(2, 3)


class SeparableConv(DepthwiseConv):
    """A depthwise convolution, then a pointwise one with a bias.

    `kernel` is the depthwise one. `pointwise` is a `Conv`.

    Source: MobileNets, arXiv:1704.04861, section 3.1.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        name: str,
        stride: int = 1,
        symmetric_padding: bool = True,
        initial_bias: float | None = None,
        init_fn: initializers.InitFn = initializers.lecun_normal,
        seed: int = 0,
    ):
        """Initializes both kernels and the bias of the pointwise convolution.

        Args:
          in_channels: The number of channels of the input.
          out_channels: The number of channels of the output.
          kernel_size: The side of the square window, odd.
          name: The last part of the layer's path.
          stride: The step of the window, px, 1 or 2.
          symmetric_padding: Whether a stride pads all four sides; see `Conv`.
          initial_bias: The first value of the bias. None makes a layer without bias.
          init_fn: Returns the first values of the pointwise kernel. The depthwise
            kernel has those of `initializers.lecun_normal`.
          seed: The seed of the kernels.
        """
        super().__init__(
            in_channels,
            kernel_size,
            name=name,
            stride=stride,
            symmetric_padding=symmetric_padding,
            seed=seed,
        )
        with self.name_scope:
            self.pointwise = Conv(
                in_channels,
                out_channels,
                1,
                name="pointwise",
                initial_bias=initial_bias,
                init_fn=init_fn,
                seed=seed,
            )
        self.bias = self.pointwise.bias

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x without the bias, for `BatchNorm` to add."""
        return self.pointwise.without_bias(super().without_bias(x))


# Called with the arguments of `Conv`.
ConvFn = Callable[..., Conv]


class SqueezeExcite(tf.Module):
    """Multiplies each channel by a gate that depends on the means of all channels.

    Source: arXiv:1709.01507.
    """

    def __init__(
        self,
        num_channels: int,
        squeezed_channels: int,
        *,
        name: str,
        activation_fn: activations.ActivationFn = activations.relu,
        gate_fn: activations.ActivationFn = tf.sigmoid,
        seed: int = 0,
    ):
        """Initializes both convolutions.

        Args:
          num_channels: The number of channels of the input and of the output.
          squeezed_channels: The number of channels between the convolutions.
          name: The last part of the layer's path.
          activation_fn: The activation between the convolutions.
          gate_fn: The activation of the gate.
          seed: The seed of the kernels.
        """
        super().__init__(name)
        self.activation_fn = activation_fn
        self.gate_fn = gate_fn
        conv = functools.partial(Conv, kernel_size=1, initial_bias=0.0, seed=seed)
        with self.name_scope:
            self.squeeze = conv(num_channels, squeezed_channels, name="squeeze")
            self.excite = conv(squeezed_channels, num_channels, name="excite")

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        """Returns x with each channel multiplied by its gate.

        Args:
          x: float [B, H, W, num_channels].
        """
        means = tf.reduce_mean(tf.cast(x, tf.float32), [1, 2], keepdims=True)
        gate = self.squeeze(tf.cast(means, x.dtype))
        return x * self.gate_fn(self.excite(self.activation_fn(gate)))
