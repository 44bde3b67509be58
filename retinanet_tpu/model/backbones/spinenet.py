"""SpineNet, a backbone whose resolution falls and rises from block to block."""

from typing import NamedTuple

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import activations, folding, layers, norms
from retinanet_tpu.model.backbones import permuted_block, residual_block, stem_conv


class _Variant(NamedTuple):
    """The size of a network.

    Attributes:
      num_channels: The number of channels of the features.
      width: The factor of the channels of all blocks.
      inner_width: The factor of the channels inside of the resamplings.
      repeats: The number of residual blocks of each block.
    """

    num_channels: int
    width: float
    inner_width: float
    repeats: int


class _Block(NamedTuple):
    """The place of a block in the network.

    Attributes:
      level: The level of its resolution.
      is_bottleneck: Whether it has bottlenecks or basic blocks.
      inputs: The numbers of the blocks whose outputs it resamples and adds.
      added: The number of a block of the same shape whose output it adds, or None.
    """

    level: int
    is_bottleneck: bool
    inputs: tuple[int, ...] = ()
    added: int | None = None


_VARIANTS = {
    "49S": _Variant(128, 0.65, 0.5, 1),
    "49": _Variant(256, 1.0, 0.5, 1),
    "96": _Variant(256, 1.0, 0.5, 2),
    "143": _Variant(256, 1.0, 1.0, 3),
    "143L": _Variant(256, 1.3, 1.0, 3),
    "190": _Variant(512, 1.3, 1.0, 4),
}
VARIANTS = tuple(_VARIANTS)
_STEM_CHANNELS = 64
# The number of channels of the 3x3 convolutions by level.
_CHANNELS = {2: 64, 3: 128, 4: 256, 5: 256, 6: 256, 7: 256}
# The blocks by number, in their order. The first two are the stem's. The last block of
# a level is its output.
_BLOCKS = {
    0: _Block(2, True),
    1: _Block(2, True),
    2: _Block(2, True, (0, 1)),
    3: _Block(4, False, (0, 1)),
    4: _Block(3, True, (2, 3)),
    5: _Block(4, True, (2, 4)),
    6: _Block(6, False, (3, 5)),
    7: _Block(4, True, (3, 5)),
    8: _Block(5, False, (6, 7)),
    9: _Block(7, False, (6, 8)),
    10: _Block(5, True, (8, 9)),
    11: _Block(5, True, (8, 10)),
    12: _Block(4, True, (5, 10)),
    13: _Block(3, True, (4, 10)),
    # Block 11 is an input of no other block, so its output is added where it fits.
    14: _Block(5, True, (7, 12), added=11),
    15: _Block(7, True, (5, 14)),
    16: _Block(6, True, (12, 14)),
    17: _Block(2, True, (2, 13)),
}
_OUTPUTS = {block.level: number for number, block in _BLOCKS.items()}
_MIN_LEVEL, _MAX_LEVEL = min(_OUTPUTS), max(_OUTPUTS)
_NUM_STEM_BLOCKS = 2


class SpineNet(tf.Module):
    """Blocks of permuted resolutions that resample the outputs of earlier blocks.

    The features of all levels have the same number of channels, so the network needs no
    feature pyramid. Blocks that no level needs are left out. Strides pad as in
    TensorFlow. A side that is not a multiple of 2^max_level is upsampled and cropped.

    Source: arXiv:1912.05027; layers and variant 143L as in TensorFlow Model Garden.
    """

    def __init__(
        self,
        *,
        variant: str = "49",
        min_level: int = 3,
        max_level: int = 7,
        activation_fn: activations.ActivationFn = activations.swish,
        drop_rate: float = 0.2,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          variant: "49S", "49", "96", "143", "143L" or "190".
          min_level: The finest level of the features, at least 2.
          max_level: The coarsest level of the features, at most 7.
          activation_fn: The activation.
          drop_rate: The probability of stochastic depth in the last block; it rises
            linearly from 0 in the stem.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: There is no such variant or level.
        """
        super().__init__("backbone")
        if variant not in _VARIANTS:
            raise errors.UserError(
                f"SpineNet.variant {variant!r} is not one of {list(VARIANTS)}."
            )
        if not _MIN_LEVEL <= min_level <= max_level <= _MAX_LEVEL:
            raise errors.UserError(
                f"SpineNet levels {min_level}..{max_level} must rise within"
                f" {_MIN_LEVEL}..{_MAX_LEVEL}; set min_level and max_level."
            )
        self.variant = variant
        self.activation_fn = activation_fn
        self.levels = tuple(range(min_level, max_level + 1))
        self.num_channels = _VARIANTS[variant].num_channels
        self.end_convs: list[layers.Conv] = []
        self.end_norms: list[norms.BatchNorm] = []
        with self.name_scope:
            channels = self._make_stem(norm_fn, seed)
            self.blocks = self._make_blocks(channels, drop_rate, norm_fn, seed)
            for level in self.levels:
                in_channels = channels[_OUTPUTS[level]]
                with tf.name_scope(f"end{level}"):
                    self.end_convs.append(
                        layers.Conv(
                            in_channels, self.num_channels, 1, name="conv", seed=seed
                        )
                    )
                    self.end_norms.append(norm_fn(self.num_channels, name="norm"))

    def _settings(
        self, number: int, drop_rate: float = 0.0
    ) -> permuted_block.BlockSettings:
        """Returns the settings of a block."""
        variant, block = _VARIANTS[self.variant], _BLOCKS[number]
        return permuted_block.BlockSettings(
            number=number,
            channels=int(_CHANNELS[block.level] * variant.width),
            is_bottleneck=block.is_bottleneck,
            repeats=variant.repeats,
            activation_fn=self.activation_fn,
            drop_rate=drop_rate,
        )

    def _make_stem(self, norm_fn: norms.NormFn, seed: int) -> dict[int, int]:
        """Makes the stem; returns the output channels of its blocks by number."""
        self.stem_blocks: list[list[residual_block.ResidualBlock]] = []
        with tf.name_scope("stem"):
            self.stem_conv = stem_conv.StemConv(
                3,
                _STEM_CHANNELS,
                7,
                name="conv",
                stride=2,
                symmetric_padding=False,
                seed=seed,
            )
            self.stem_norm = norm_fn(_STEM_CHANNELS, name="norm")
        in_channels, channels = _STEM_CHANNELS, {}
        for number in range(_NUM_STEM_BLOCKS):
            settings = self._settings(number)
            with tf.name_scope(f"block{number}"):
                self.stem_blocks.append(
                    permuted_block.residual_blocks(
                        in_channels, settings, norm_fn=norm_fn, seed=seed
                    )
                )
            in_channels = channels[number] = settings.out_channels
        return channels

    def _make_blocks(
        self,
        channels: dict[int, int],
        drop_rate: float,
        norm_fn: norms.NormFn,
        seed: int,
    ) -> list[permuted_block.PermutedBlock]:
        """Returns the blocks after the stem, and adds their output channels."""
        inner_width = _VARIANTS[self.variant].inner_width
        last = max(_BLOCKS)
        blocks = []
        for number in _needed_blocks(self.levels):
            share = (number - _NUM_STEM_BLOCKS + 1) / (last - _NUM_STEM_BLOCKS + 1)
            settings = self._settings(number, drop_rate * share)
            block = _BLOCKS[number]
            inputs = []
            for source in block.inputs:
                narrow = self._settings(source).channels
                change = block.level - _BLOCKS[source].level
                inputs.append(
                    permuted_block.Input(
                        source, channels[source], int(narrow * inner_width), change
                    )
                )
            blocks.append(
                permuted_block.PermutedBlock(
                    settings, inputs, added=block.added, norm_fn=norm_fn, seed=seed
                )
            )
            channels[number] = settings.out_channels
        return blocks

    @property
    def channels(self) -> dict[int, int]:
        """Returns the numbers of channels of the features, by level."""
        return dict.fromkeys(self.levels, self.num_channels)

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> dict[int, tf.Tensor]:
        """Returns the features of levels min_level to max_level.

        Args:
          x: float [B, H, W, 3], normalized.
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        Returns:
          [B, ceil(H / 2^l), ceil(W / 2^l), channels[l]] by level l, in x's dtype.
        """
        height, width = x.shape[1:3]
        x = folding.conv_norm(
            self.stem_conv, self.stem_norm, x, is_training=is_training
        )
        x = tf.nn.max_pool2d(self.activation_fn(x), 3, 2, "SAME")
        outputs: dict[int, tf.Tensor] = {}
        for number, residuals in enumerate(self.stem_blocks):
            for residual in residuals:
                x = residual(x, is_training=is_training)
            outputs[number] = x
        for block in self.blocks:
            number = block.settings.number
            stride = 2 ** _BLOCKS[number].level
            sides = (-(-height // stride), -(-width // stride))
            outputs[number] = block(
                outputs, sides, is_training=is_training, seeds=seeds
            )
        ends = zip(self.levels, self.end_convs, self.end_norms, strict=True)
        features = {}
        for level, conv, norm in ends:
            x = outputs[_OUTPUTS[level]]
            x = folding.conv_norm(conv, norm, x, is_training=is_training)
            features[level] = self.activation_fn(x)
        return features


def _needed_blocks(levels: tuple[int, ...]) -> list[int]:
    """Returns the numbers of the blocks after the stem that levels need, in order."""
    needed: set[int | None] = {_OUTPUTS[level] for level in levels}
    for number, block in reversed(_BLOCKS.items()):
        if number in needed:
            needed |= {*block.inputs, block.added}
    return [number for number in list(_BLOCKS)[_NUM_STEM_BLOCKS:] if number in needed]
