"""MobileDet, backbones that were searched for detection on mobile accelerators."""

import dataclasses
import functools

import tensorflow as tf

from retinanet_tpu.model import (
    activations,
    folding,
    layers,
    norms,
    stochastic_depth,
)
from retinanet_tpu.model.backbones import inverted_bottleneck, mobile_backbone


@dataclasses.dataclass(frozen=True)
class TuckerSettings:
    """The settings of a Tucker convolution.

    Attributes:
      out_channels: The number of channels of the output.
      compressed_channels: The number of input channels of the window's convolution.
      convolved_channels: The number of output channels of the window's convolution.
      kernel_size: The side of the window, px, odd.
      stride: The step of the window, px, 1 or 2.
      activation_fn: The activation after the first two convolutions.
      symmetric_padding: Whether a stride pads all four sides; see `layers.Conv`.
      drop_rate: The probability that stochastic depth drops the block.
    """

    out_channels: int
    compressed_channels: int
    convolved_channels: int
    kernel_size: int = 3
    stride: int = 1
    activation_fn: activations.ActivationFn = activations.relu6
    symmetric_padding: bool = False
    drop_rate: float = 0.0


class TuckerConv(tf.Module):
    """Compresses channels, convolves a window, and projects linearly.

    It is a bottleneck with separate numbers of channels before and after the window.

    Source: MobileDets, arXiv:2004.14525, section 3.
    """

    def __init__(
        self,
        in_channels: int,
        settings: TuckerSettings,
        *,
        name: str,
        index: int,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers: compress, conv and project.

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
        compressed, convolved = (
            settings.compressed_channels,
            settings.convolved_channels,
        )
        with self.name_scope:
            self.compress = layers.Conv(
                in_channels, compressed, 1, name="compress", seed=seed
            )
            self.norm_compress = norm_fn(compressed, name="norm_compress")
            self.conv = layers.Conv(
                compressed,
                convolved,
                settings.kernel_size,
                name="conv",
                stride=settings.stride,
                symmetric_padding=settings.symmetric_padding,
                seed=seed,
            )
            self.norm_conv = norm_fn(convolved, name="norm_conv")
            self.project = layers.Conv(
                convolved, settings.out_channels, 1, name="project", seed=seed
            )
            self.norm_project = norm_fn(settings.out_channels, name="norm_project")
        self.adds_input = settings.stride == 1 and in_channels == settings.out_channels

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
        pairs = [(self.compress, self.norm_compress), (self.conv, self.norm_conv)]
        for conv, norm in pairs:
            y = folding.conv_norm(conv, norm, y, is_training=is_training)
            y = self.settings.activation_fn(y)
        y = folding.conv_norm(
            self.project, self.norm_project, y, is_training=is_training
        )
        if not self.adds_input:
            return y
        rate = self.settings.drop_rate
        return x + stochastic_depth.drop(y, rate=rate, layer=self.index, seeds=seeds)


@dataclasses.dataclass(frozen=True)
class _Bottleneck:
    """An inverted bottleneck of an architecture at width 1."""

    channels: int
    expansion: int
    kernel_size: int = 3
    stride: int = 1
    is_residual: bool = True
    is_fused: bool = False


@dataclasses.dataclass(frozen=True)
class _Tucker:
    """A Tucker convolution of an architecture at width 1."""

    channels: int
    input_ratio: float
    output_ratio: float


@dataclasses.dataclass(frozen=True)
class _Architecture:
    """The stem, the blocks, and the choices for all blocks of a variant."""

    stem_channels: int
    blocks: tuple[_Bottleneck | _Tucker, ...]
    activation_fn: activations.ActivationFn = activations.relu6
    has_squeeze_excite: bool = False


_Fused = functools.partial(_Bottleneck, is_fused=True)

_ARCHITECTURES: dict[str, _Architecture] = {
    "cpu": _Architecture(
        stem_channels=16,
        blocks=(
            _Bottleneck(8, 1),
            _Bottleneck(16, 4, stride=2),
            _Bottleneck(32, 8, stride=2),
            *[_Bottleneck(32, 4)] * 3,
            _Bottleneck(72, 8, kernel_size=5, stride=2),
            _Bottleneck(72, 8),
            _Bottleneck(72, 4, kernel_size=5),
            _Bottleneck(72, 4),
            _Bottleneck(72, 8, is_residual=False),
            *[_Bottleneck(72, 8)] * 3,
            _Bottleneck(104, 8, kernel_size=5, stride=2),
            *[_Bottleneck(104, 4, kernel_size=5)] * 2,
            _Bottleneck(104, 4),
            _Bottleneck(144, 8),
        ),
        activation_fn=activations.hard_swish,
        has_squeeze_excite=True,
    ),
    "edge_tpu": _Architecture(
        stem_channels=32,
        blocks=(
            _Tucker(16, 0.25, 0.75),
            _Fused(16, 8, stride=2),
            _Fused(16, 4),
            _Fused(16, 8),
            _Fused(16, 4),
            _Fused(40, 8, kernel_size=5, stride=2),
            *[_Fused(40, 4)] * 3,
            _Bottleneck(72, 8, stride=2),
            _Bottleneck(72, 8),
            *[_Fused(72, 4)] * 2,
            *[_Bottleneck(96, 8, kernel_size=5)] * 2,
            *[_Bottleneck(96, 8)] * 2,
            _Bottleneck(120, 8, kernel_size=5, stride=2),
            _Bottleneck(120, 8),
            _Bottleneck(120, 4, kernel_size=5),
            _Bottleneck(120, 8),
            _Bottleneck(384, 8, kernel_size=5),
        ),
    ),
    "dsp": _Architecture(
        stem_channels=32,
        blocks=(
            _Bottleneck(24, 1),
            _Fused(32, 4, stride=2),
            _Fused(32, 4),
            _Bottleneck(32, 4),
            _Tucker(32, 0.25, 0.75),
            _Fused(64, 8, stride=2),
            _Bottleneck(64, 4),
            *[_Fused(64, 4)] * 2,
            _Fused(120, 8, stride=2),
            _Bottleneck(120, 4),
            *[_Bottleneck(120, 8)] * 2,
            _Fused(144, 8),
            *[_Bottleneck(144, 8)] * 3,
            _Bottleneck(160, 4, stride=2),
            _Bottleneck(160, 4),
            _Fused(160, 4),
            _Tucker(160, 0.75, 0.75),
            _Bottleneck(240, 8),
        ),
    ),
    "gpu": _Architecture(
        stem_channels=32,
        blocks=(
            _Tucker(16, 0.25, 0.25),
            _Fused(32, 8, stride=2),
            *[_Tucker(32, 0.25, 0.25)] * 3,
            _Fused(64, 8, stride=2),
            *[_Fused(64, 8)] * 2,
            _Fused(64, 4),
            _Fused(128, 8, stride=2),
            *[_Fused(128, 4)] * 3,
            _Fused(128, 8, is_residual=False),
            *[_Fused(128, 8)] * 3,
            _Fused(128, 4, stride=2),
            *[_Fused(128, 4)] * 3,
            _Bottleneck(384, 8),
        ),
    ),
}
VARIANTS = tuple(_ARCHITECTURES)


class MobileDet(mobile_backbone.MobileBackbone):
    """A network that was searched for one kind of accelerator.

    Its blocks are inverted bottlenecks, fused inverted bottlenecks and Tucker
    convolutions. The variant for CPUs has squeeze-and-excitation and hard swish, the
    others relu6. A level's features are the output of the last block with its stride.

    Source: arXiv:2004.14525; blocks, rounding and padding as in the TensorFlow Object
    Detection API.
    """

    def __init__(
        self,
        *,
        variant: str = "cpu",
        width: float = 1.0,
        activation_fn: activations.ActivationFn | None = None,
        symmetric_padding: bool = False,
        drop_rate: float = 0.0,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          variant: "cpu", "edge_tpu", "dsp" or "gpu".
          width: The factor of all numbers of channels, above 0. The products are
            rounded to multiples of 8.
          activation_fn: The activation. None is hard swish for "cpu", and relu6.
          symmetric_padding: Whether strides pad all four sides. The published weights
            require False.
          drop_rate: The probability of stochastic depth in the last block; it rises
            linearly from 0 in the first block.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: There is no such variant.
        """
        mobile_backbone.check_variant("MobileDet", variant, VARIANTS)
        self.variant = variant
        architecture = _ARCHITECTURES[variant]
        activation_fn = activation_fn or architecture.activation_fn
        stem_channels = in_channels = _round(width * architecture.stem_channels)
        block_fns = []
        for index, block in enumerate(architecture.blocks):
            out_channels = _round(width * block.channels)
            block_fns.append(
                _block_fn(
                    block,
                    in_channels,
                    out_channels,
                    has_squeeze_excite=architecture.has_squeeze_excite,
                    activation_fn=activation_fn,
                    symmetric_padding=symmetric_padding,
                    drop_rate=drop_rate * index / len(architecture.blocks),
                )
            )
            in_channels = out_channels
        super().__init__(
            stem_channels,
            block_fns,
            activation_fn=activation_fn,
            symmetric_padding=symmetric_padding,
            norm_fn=norm_fn,
            seed=seed,
        )


def _block_fn(
    block: _Bottleneck | _Tucker,
    in_channels: int,
    out_channels: int,
    *,
    has_squeeze_excite: bool,
    activation_fn: activations.ActivationFn,
    symmetric_padding: bool,
    drop_rate: float,
) -> mobile_backbone.BlockFn:
    """Returns the function that returns a block of an architecture."""
    if isinstance(block, _Tucker):
        tucker = TuckerSettings(
            out_channels=out_channels,
            compressed_channels=_round(block.input_ratio * in_channels),
            convolved_channels=_round(block.output_ratio * out_channels),
            activation_fn=activation_fn,
            symmetric_padding=symmetric_padding,
            drop_rate=drop_rate,
        )
        return functools.partial(TuckerConv, settings=tucker)
    expanded_channels = block.expansion * in_channels
    settings = inverted_bottleneck.BlockSettings(
        out_channels=out_channels,
        expanded_channels=expanded_channels,
        kernel_size=block.kernel_size,
        stride=block.stride,
        is_fused=block.is_fused,
        squeezed_channels=_round(expanded_channels / 4) if has_squeeze_excite else 0,
        activation_fn=activation_fn,
        squeeze_activation_fn=activation_fn,
        symmetric_padding=symmetric_padding,
        is_residual=block.is_residual,
        drop_rate=drop_rate,
    )
    return functools.partial(inverted_bottleneck.InvertedBottleneck, settings=settings)


def _round(channels: float) -> int:
    """Returns the nearest multiple of 8, at least 8, a half rounded up."""
    return max(8, int(channels / 8 + 0.5) * 8)
