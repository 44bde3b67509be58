"""The residual block of ResNet, ResNeXt and SpineNet."""

from collections.abc import Sequence
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu.model import (
    activations,
    folding,
    grouped_conv,
    layers,
    norms,
    stochastic_depth,
)


class Kernel(NamedTuple):
    """The shape of one convolution of a block.

    Attributes:
      channels: The number of output channels.
      size: The side of the window, px.
      stride: The step of the window, px.
      num_groups: The number of groups of channels.
    """

    channels: int
    size: int
    stride: int = 1
    num_groups: int = 1


class ResidualBlock(tf.Module):
    """Convolutions with normalizations, added to a shortcut.

    Source: arXiv:1512.03385.
    """

    def __init__(
        self,
        in_channels: int,
        kernels: Sequence[Kernel],
        *,
        name: str,
        has_projection: bool = False,
        symmetric_padding: bool = True,
        activation_fn: activations.ActivationFn = activations.relu,
        last_gamma: float = 1.0,
        drop_rate: float = 0.0,
        index: int = 0,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers: conv1, norm1, ..., shortcut and norm_shortcut.

        Args:
          in_channels: The number of channels of the input.
          kernels: The shapes of the convolutions.
          name: The last part of the block's path.
          has_projection: Whether the shortcut is a 1x1 convolution. Otherwise it is
            the identity.
          symmetric_padding: Whether a stride pads all four sides; see `layers.Conv`.
          activation_fn: The activation after the convolutions and after the sum.
          last_gamma: The first gamma of the last normalization before the sum.
          drop_rate: The probability that stochastic depth drops the convolutions.
          index: The number of the block in the network, for `stochastic_depth`.
          norm_fn: Returns a normalization from (num_channels, name=, initial_gamma=).
          seed: The seed of the kernels.
        """
        super().__init__(name)
        self.activation_fn = activation_fn
        self.drop_rate = drop_rate
        self.index = index
        self.out_channels = kernels[-1].channels
        self.convs: list[layers.Conv] = []
        self.norms: list[norms.BatchNorm] = []
        self.shortcut: layers.Conv | None = None
        with self.name_scope:
            if has_projection:
                self.shortcut = layers.Conv(
                    in_channels,
                    self.out_channels,
                    1,
                    name="shortcut",
                    stride=max(kernel.stride for kernel in kernels),
                    seed=seed,
                )
                self.norm_shortcut = norm_fn(self.out_channels, name="norm_shortcut")
            for i, kernel in enumerate(kernels, start=1):
                is_grouped = kernel.num_groups > 1
                make_conv = grouped_conv.GroupedConv if is_grouped else layers.Conv
                conv = make_conv(
                    in_channels,
                    kernel.channels,
                    kernel.size,
                    name=f"conv{i}",
                    stride=kernel.stride,
                    num_groups=kernel.num_groups,
                    symmetric_padding=symmetric_padding,
                    seed=seed,
                )
                self.convs.append(conv)
                gamma = last_gamma if i == len(kernels) else 1.0
                self.norms.append(
                    norm_fn(kernel.channels, name=f"norm{i}", initial_gamma=gamma)
                )
                in_channels = kernel.channels

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns activation_fn(convolutions(x) + shortcut(x)).

        Args:
          x: float [B, H, W, in_channels].
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        Returns:
          [B, ceil(H / stride), ceil(W / stride), out_channels].
        """
        inner = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            inner = folding.conv_norm(conv, norm, inner, is_training=is_training)
            inner = self.activation_fn(inner)
        branches = [(self.convs[-1], self.norms[-1], inner)]
        is_dropped = self.drop_rate > 0 and seeds is not None
        # Both terms become one convolution, unless stochastic depth drops one of them.
        if self.shortcut is not None and not is_dropped:
            branches.append((self.shortcut, self.norm_shortcut, x))
        y = folding.conv_norm_sum(branches, is_training=is_training)
        y = stochastic_depth.drop(y, rate=self.drop_rate, layer=self.index, seeds=seeds)
        if len(branches) == 1:
            y += self._shortcut_of(x, is_training)
        return self.activation_fn(y)

    def _shortcut_of(self, x: tf.Tensor, is_training: bool) -> tf.Tensor:
        """Returns the shortcut of x."""
        if self.shortcut is None:
            return x
        return folding.conv_norm(
            self.shortcut, self.norm_shortcut, x, is_training=is_training
        )
