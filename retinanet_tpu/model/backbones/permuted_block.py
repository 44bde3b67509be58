"""The block of SpineNet: resamples and adds earlier outputs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu.model import activations, folding, layers, norms
from retinanet_tpu.model.backbones import residual_block
from retinanet_tpu.model.necks import fpn


@dataclasses.dataclass(frozen=True)
class BlockSettings:
    """The settings of the residual blocks of one resolution.

    Attributes:
      number: The number of the block in the network.
      channels: The number of channels of the 3x3 convolutions.
      is_bottleneck: Whether they are bottlenecks, with 4 channels output channels.
      repeats: The number of residual blocks.
      activation_fn: The activation.
      drop_rate: The probability that stochastic depth drops a residual block.
    """

    number: int
    channels: int
    is_bottleneck: bool
    repeats: int
    activation_fn: activations.ActivationFn
    drop_rate: float = 0.0

    @property
    def out_channels(self) -> int:
        """Returns the number of output channels."""
        return 4 * self.channels if self.is_bottleneck else self.channels

    @property
    def kernels(self) -> list[residual_block.Kernel]:
        """Returns the shapes of the convolutions of each residual block."""
        kernel = residual_block.Kernel
        if self.is_bottleneck:
            ends = kernel(self.channels, 1), kernel(self.out_channels, 1)
            return [ends[0], kernel(self.channels, 3), ends[1]]
        return [kernel(self.channels, 3)] * 2


class Input(NamedTuple):
    """An earlier output that a block resamples.

    Attributes:
      number: The number of the block with this output.
      channels: Its number of channels.
      inner_channels: The number of channels inside of the resampling.
      level_change: The level of the block minus that of the input.
    """

    number: int
    channels: int
    inner_channels: int
    level_change: int


class PermutedBlock(tf.Module):
    """Resamples and adds earlier outputs, then applies residual blocks.

    Source: SpineNet, arXiv:1912.05027, figure 6; as in TensorFlow Model Garden.
    """

    def __init__(
        self,
        settings: BlockSettings,
        inputs: Sequence[Input],
        *,
        added: int | None = None,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          settings: The settings of the residual blocks.
          inputs: The inputs.
          added: The number of a block whose output is added as it is, or None.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        """
        super().__init__(f"block{settings.number}")
        self.settings = settings
        self.inputs = tuple(source.number for source in inputs)
        self.added = added
        with self.name_scope:
            self.resamplings = [
                Resampling(
                    source,
                    settings.out_channels,
                    name=f"input{i}",
                    activation_fn=settings.activation_fn,
                    norm_fn=norm_fn,
                    seed=seed,
                )
                for i, source in enumerate(inputs, start=1)
            ]
            self.residuals = residual_blocks(
                settings.out_channels, settings, norm_fn=norm_fn, seed=seed
            )

    def __call__(
        self,
        outputs: Mapping[int, tf.Tensor],
        sides: tuple[int, int],
        *,
        is_training: bool,
        seeds: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Returns the output, float [B, *sides, out_channels].

        Args:
          outputs: The earlier outputs by number, float [B, H, W, C].
          sides: The height and width of this block.
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        """
        x = outputs[self.added] if self.added is not None else None
        for number, resample in zip(self.inputs, self.resamplings, strict=True):
            y = resample(outputs[number], sides, is_training=is_training)
            x = y if x is None else x + y
        x = self.settings.activation_fn(x)
        for block in self.residuals:
            x = block(x, is_training=is_training, seeds=seeds)
        return x


class Resampling(tf.Module):
    """Changes the resolution and the number of channels of an earlier output."""

    def __init__(
        self,
        source: Input,
        out_channels: int,
        *,
        name: str,
        activation_fn: activations.ActivationFn = activations.swish,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers: squeeze, downsample and expand.

        Args:
          source: The input.
          out_channels: The number of channels of the result.
          name: The last part of the path.
          activation_fn: The activation after the first two convolutions.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        """
        super().__init__(name)
        self.level_change = source.level_change
        self.activation_fn = activation_fn
        self.downsample: layers.Conv | None = None
        inner = source.inner_channels
        with self.name_scope:
            self.squeeze = layers.Conv(
                source.channels, inner, 1, name="squeeze", seed=seed
            )
            self.norm_squeeze = norm_fn(inner, name="norm_squeeze")
            if self.level_change > 0:
                self.downsample = layers.Conv(
                    inner,
                    inner,
                    3,
                    name="downsample",
                    stride=2,
                    symmetric_padding=False,
                    seed=seed,
                )
                self.norm_downsample = norm_fn(inner, name="norm_downsample")
            self.expand = layers.Conv(inner, out_channels, 1, name="expand", seed=seed)
            self.norm_expand = norm_fn(out_channels, name="norm_expand")

    def __call__(
        self, x: tf.Tensor, sides: tuple[int, int], *, is_training: bool
    ) -> tf.Tensor:
        """Returns x resampled, without an activation at the end.

        Args:
          x: float [B, H, W, channels of the input].
          sides: The height and width of the result.
          is_training: Whether to normalize by the batch's moments.
        Returns:
          [B, *sides, out_channels].
        """
        x = folding.conv_norm(
            self.squeeze, self.norm_squeeze, x, is_training=is_training
        )
        x = self.activation_fn(x)
        if self.downsample is not None:
            x = folding.conv_norm(
                self.downsample, self.norm_downsample, x, is_training=is_training
            )
            x = self.activation_fn(x)
        for _ in range(self.level_change - 1):
            x = tf.nn.max_pool2d(x, 3, 2, "SAME")
        # Model Garden upsamples before this convolution. The result is the same, but
        # the convolution would be at least four times as large.
        x = folding.conv_norm(self.expand, self.norm_expand, x, is_training=is_training)
        if self.level_change < 0:
            x = fpn.upsample(x, sides, factor=2**-self.level_change)
        return x


def residual_blocks(
    in_channels: int,
    settings: BlockSettings,
    *,
    norm_fn: norms.NormFn = norms.BatchNorm,
    seed: int = 0,
) -> list[residual_block.ResidualBlock]:
    """Returns the residual blocks of one resolution.

    Args:
      in_channels: The number of channels of the input. If it is not that of the
        output, the first block has a projection.
      settings: The settings.
      norm_fn: Returns a normalization from (num_channels, name=).
      seed: The seed of the kernels.
    """
    return [
        residual_block.ResidualBlock(
            in_channels if i == 0 else settings.out_channels,
            settings.kernels,
            name=f"residual{i + 1}",
            has_projection=i == 0 and in_channels != settings.out_channels,
            activation_fn=settings.activation_fn,
            drop_rate=settings.drop_rate,
            index=settings.number * settings.repeats + i,
            norm_fn=norm_fn,
            seed=seed,
        )
        for i in range(settings.repeats)
    ]
