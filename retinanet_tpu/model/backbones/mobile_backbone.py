"""The common parts of the mobile backbones: stem, sequence of blocks, rounding."""

from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import activations, folding, layers, norms


class BlockShape(Protocol):
    """The settings of a block that its neighbors depend on.

    Attributes:
      out_channels: The number of channels of the output.
      stride: The step of the block, px, 1 or 2.
    """

    @property
    def out_channels(self) -> int:
        """Returns the number of channels of the output."""
        ...

    @property
    def stride(self) -> int:
        """Returns the step of the block, px."""
        ...


class Block(Protocol):
    """A tf.Module from features to features, such as an `InvertedBottleneck`.

    Attributes:
      settings: The settings of the block.
    """

    @property
    def settings(self) -> BlockShape:
        """Returns the settings of the block."""
        ...

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns the output, [B, ceil(H / stride), ceil(W / stride), out_channels].

        Args:
          x: float [B, H, W, C].
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        """
        ...


# Called with (in_channels, name=, index=, norm_fn=, seed=).
BlockFn = Callable[..., Block]


class MobileBackbone(tf.Module):
    """A stem of stride 2 and a sequence of blocks, named block0, block1 and so on.

    A level's features are the output of the last block with its stride.
    """

    def __init__(
        self,
        stem_channels: int,
        block_fns: Sequence[BlockFn],
        *,
        activation_fn: activations.ActivationFn,
        symmetric_padding: bool,
        norm_fn: norms.NormFn,
        seed: int,
    ):
        """Initializes the layers.

        Args:
          stem_channels: The number of channels of the stem.
          block_fns: Functions that return the blocks, in the order of the network.
          activation_fn: The activation of the stem.
          symmetric_padding: Whether the stem's stride pads all four sides.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        """
        super().__init__("backbone")
        self.activation_fn = activation_fn
        self.symmetric_padding = symmetric_padding
        in_channels = stem_channels
        self.blocks: list[Block] = []
        with self.name_scope:
            with tf.name_scope("stem"):
                self.stem_conv = layers.Conv(
                    3,
                    stem_channels,
                    3,
                    name="conv",
                    stride=2,
                    symmetric_padding=symmetric_padding,
                    seed=seed,
                )
                self.stem_norm = norm_fn(stem_channels, name="norm")
            for index, block_fn in enumerate(block_fns):
                block = block_fn(
                    in_channels,
                    name=f"block{index}",
                    index=index,
                    norm_fn=norm_fn,
                    seed=seed,
                )
                self.blocks.append(block)
                in_channels = block.settings.out_channels

    @property
    def channels(self) -> dict[int, int]:
        """Returns the numbers of channels of the features, by level."""
        level, outputs = 1, {}
        for block in self.blocks:
            level += block.settings.stride - 1
            outputs[level] = block.settings.out_channels
        return outputs

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> dict[int, tf.Tensor]:
        """Returns the features by level.

        Args:
          x: float [B, H, W, 3], normalized.
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        Returns:
          [B, ceil(H / 2^l), ceil(W / 2^l), channels[l]] by level l, in x's dtype.
        """
        x = folding.conv_norm(
            self.stem_conv, self.stem_norm, x, is_training=is_training
        )
        x = self.activation_fn(x)
        level, features = 1, {}
        for block in self.blocks:
            x = block(x, is_training=is_training, seeds=seeds)
            level += block.settings.stride - 1
            features[level] = x
        return features


def round_channels(channels: float) -> int:
    """Returns the nearest multiple of 8 that is at least 90 % of channels.

    Args:
      channels: The number of channels times the width of the network.
    Source: The public TensorFlow code of MobileNet and EfficientNet.
    """
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


def check_variant(name: str, variant: str, variants: Sequence[str]) -> None:
    """Raises UserError if there is no such variant.

    Args:
      name: The gin name of the backbone.
      variant: The variant that was chosen.
      variants: The variants of the backbone.
    """
    if variant not in variants:
        raise errors.UserError(
            f"{name}.variant {variant!r} is not one of {list(variants)}."
        )
