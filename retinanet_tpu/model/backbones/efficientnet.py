"""EfficientNet and EfficientNet-Lite, backbones of inverted bottlenecks."""

import math

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import activations, folding, layers
from retinanet_tpu.model.backbones import inverted_bottleneck

# variant: (factor of channels, factor of the numbers of blocks)
_FACTORS: dict[str, tuple[float, float]] = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
    "lite3": (1.2, 1.4),
    "lite4": (1.4, 1.8),
}
VARIANTS = tuple(_FACTORS)
# (number of blocks, kernel size, stride, expansion, channels) of each stage of B0
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM_CHANNELS = 32


class EfficientNet(tf.Module):
    """A network of inverted bottlenecks that grows in depth and width together.

    EfficientNet has squeeze-and-excitation and swish. EfficientNet-Lite has neither,
    so that eight bits represent its activations well; it has relu6, and a stem and end
    stages of fixed size. A level's features are the output of the last block with its
    stride. The convolution to 1280 channels before the classifier is left out.

    Source: arXiv:1905.11946, tables 1 and 2; Lite as in the public TensorFlow code.
    """

    def __init__(
        self,
        *,
        variant: str = "lite0",
        activation_fn: activations.ActivationFn | None = None,
        symmetric_padding: bool = False,
        drop_rate: float = 0.2,
        norm_fn: layers.NormFn = layers.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          variant: "b0" to "b7", or "lite0" to "lite4".
          activation_fn: The activation. None is swish, and relu6 for Lite.
          symmetric_padding: Whether strides pad all four sides, as in torchvision.
            TensorFlow's and timm's weights, and those of Lite, require False.
          drop_rate: The probability of stochastic depth in the last block; it rises
            linearly from 0 in the first block.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: There is no such variant.
        """
        super().__init__("backbone")
        if variant not in _FACTORS:
            raise errors.UserError(
                f"EfficientNet.variant {variant!r} is not one of {list(VARIANTS)}."
            )
        is_lite = variant.startswith("lite")
        self.variant = variant
        self.symmetric_padding = symmetric_padding
        self.activation_fn = activation_fn or (
            activations.relu6 if is_lite else activations.swish
        )
        stages = _scaled_stages(variant)
        num_blocks = sum(number for number, *_ in stages)
        in_channels = _STEM_CHANNELS
        if not is_lite:
            in_channels = _round_channels(in_channels * _FACTORS[variant][0])
        self.blocks: list[inverted_bottleneck.InvertedBottleneck] = []
        with self.name_scope:
            with tf.name_scope("stem"):
                self.stem_conv = layers.Conv(
                    3,
                    in_channels,
                    3,
                    name="conv",
                    stride=2,
                    symmetric_padding=symmetric_padding,
                    seed=seed,
                )
                self.stem_norm = norm_fn(in_channels, name="norm")
            for number, kernel_size, stride, expansion, channels in stages:
                for i in range(number):
                    index = len(self.blocks)
                    settings = inverted_bottleneck.BlockSettings(
                        out_channels=channels,
                        expanded_channels=expansion * in_channels,
                        kernel_size=kernel_size,
                        stride=stride if i == 0 else 1,
                        squeezed_channels=0 if is_lite else max(1, in_channels // 4),
                        activation_fn=self.activation_fn,
                        squeeze_activation_fn=self.activation_fn,
                        symmetric_padding=symmetric_padding,
                        drop_rate=drop_rate * index / num_blocks,
                    )
                    self.blocks.append(
                        inverted_bottleneck.InvertedBottleneck(
                            in_channels,
                            settings,
                            name=f"block{index}",
                            index=index,
                            norm_fn=norm_fn,
                            seed=seed,
                        )
                    )
                    in_channels = channels

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
        """Returns the features of levels 1 to 5.

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


def _scaled_stages(variant: str) -> list[tuple[int, int, int, int, int]]:
    """Returns the stages of a variant, in the form of _STAGES."""
    width, depth = _FACTORS[variant]
    is_lite = variant.startswith("lite")
    stages = []
    for i, (number, size, stride, expansion, channels) in enumerate(_STAGES):
        is_end = i in (0, len(_STAGES) - 1)
        number = number if is_lite and is_end else math.ceil(depth * number)
        channels = _round_channels(width * channels)
        stages.append((number, size, stride, expansion, channels))
    return stages


def _round_channels(channels: float) -> int:
    """Returns the nearest multiple of 8 that is at least 90 % of channels."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8
