"""The inverted bottleneck, the residual block of the mobile networks."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import tensorflow as tf

from retinanet_tpu.model import (
    activations,
    folding,
    layers,
    norms,
    stochastic_depth,
)


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """The settings of an inverted bottleneck.

    Attributes:
      out_channels: The number of channels of the output.
      expanded_channels: The number of channels of the depthwise convolution. If it is
        that of the input, the block has no expanding convolution.
      kernel_size: The side of the depthwise window, px, odd.
      stride: The step of the depthwise window, px, 1 or 2.
      is_fused: Whether one convolution with this window expands, instead of a
        pointwise and a depthwise one.
      squeezed_channels: The number of channels inside the squeeze-and-excitation; 0
        means that there is none.
      activation_fn: The activation after the first two convolutions.
      squeeze_activation_fn: The activation inside the squeeze-and-excitation.
      gate_fn: The activation of its gate.
      symmetric_padding: Whether a stride pads all four sides; see `layers.Conv`.
      is_residual: Whether the input is added to the output, if shapes allow it.
      drop_rate: The probability that stochastic depth drops the block.
    """

    out_channels: int
    expanded_channels: int
    kernel_size: int = 3
    stride: int = 1
    is_fused: bool = False
    squeezed_channels: int = 0
    activation_fn: activations.ActivationFn = activations.relu6
    squeeze_activation_fn: activations.ActivationFn = activations.relu
    gate_fn: activations.ActivationFn = tf.sigmoid
    symmetric_padding: bool = False
    is_residual: bool = True
    drop_rate: float = 0.0


class InvertedBottleneck(tf.Module):
    """Expands channels, convolves each of them, and projects them linearly.

    Source: MobileNetV2, arXiv:1801.04381; squeeze-and-excitation after the depthwise
    convolution as in MobileNetV3, arXiv:1905.02244; fused as in MobileDets,
    arXiv:2004.14525.
    """

    def __init__(
        self,
        in_channels: int,
        settings: BlockSettings,
        *,
        name: str,
        index: int,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers: expand, depthwise, squeeze_excite and project.

        Args:
          in_channels: The number of channels of the input.
          settings: The settings of the block.
          name: The last part of the block's path.
          index: The number of the block in the network, for `stochastic_depth`.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        """
        super().__init__(name)
        self.settings = settings
        self.index = index
        expanded, out_channels = settings.expanded_channels, settings.out_channels
        self.expand: layers.Conv | None = None
        self.depthwise: layers.DepthwiseConv | None = None
        self.squeeze_excite: layers.SqueezeExcite | None = None
        size, stride = settings.kernel_size, settings.stride
        pads_all_sides = settings.symmetric_padding
        with self.name_scope:
            if settings.is_fused or expanded != in_channels:
                self.expand = layers.Conv(
                    in_channels,
                    expanded,
                    size if settings.is_fused else 1,
                    name="expand",
                    stride=stride if settings.is_fused else 1,
                    symmetric_padding=pads_all_sides,
                    seed=seed,
                )
                self.norm_expand = norm_fn(expanded, name="norm_expand")
            if not settings.is_fused:
                self.depthwise = layers.DepthwiseConv(
                    expanded,
                    size,
                    name="depthwise",
                    stride=stride,
                    symmetric_padding=pads_all_sides,
                    seed=seed,
                )
                self.norm_depthwise = norm_fn(expanded, name="norm_depthwise")
            if settings.squeezed_channels:
                self.squeeze_excite = layers.SqueezeExcite(
                    expanded,
                    settings.squeezed_channels,
                    name="squeeze_excite",
                    activation_fn=settings.squeeze_activation_fn,
                    gate_fn=settings.gate_fn,
                    seed=seed,
                )
            self.project = layers.Conv(
                expanded, out_channels, 1, name="project", seed=seed
            )
            self.norm_project = norm_fn(out_channels, name="norm_project")
        has_shape_of_input = settings.stride == 1 and in_channels == out_channels
        self.adds_input = settings.is_residual and has_shape_of_input

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the output, without an activation after the projection.

        Args:
          x: float [B, H, W, in_channels].
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        Returns:
          [B, ceil(H / stride), ceil(W / stride), out_channels].
        """
        y = x
        pairs: list[tuple[layers.Conv, norms.BatchNorm]] = []
        if self.expand is not None:
            pairs.append((self.expand, self.norm_expand))
        if self.depthwise is not None:
            pairs.append((self.depthwise, self.norm_depthwise))
        for conv, norm in pairs:
            y = folding.conv_norm(conv, norm, y, is_training=is_training)
            y = self.settings.activation_fn(y)
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        y = folding.conv_norm(
            self.project, self.norm_project, y, is_training=is_training
        )
        if not self.adds_input:
            return y
        rate = self.settings.drop_rate
        return x + stochastic_depth.drop(y, rate=rate, layer=self.index, seeds=seeds)


def block_fns(
    settings: Iterable[BlockSettings],
) -> list[Callable[..., InvertedBottleneck]]:
    """Returns a function for each block, to be called with its input channels.

    Args:
      settings: The settings of the blocks, in the order of the network.
    """
    return [functools.partial(InvertedBottleneck, settings=x) for x in settings]
