"""MobileNetV3, a backbone of inverted bottlenecks for phones."""

from retinanet_tpu.model import activations, norms
from retinanet_tpu.model.backbones import inverted_bottleneck, mobile_backbone

_STEM_CHANNELS = 16
# (kernel size, expanded channels, channels, has squeeze-and-excitation, has hard
# swish, stride) of each block at width 1.
_BLOCKS: dict[str, tuple[tuple[int, int, int, bool, bool, int], ...]] = {
    "large": (
        (3, 16, 16, False, False, 1),
        (3, 64, 24, False, False, 2),
        (3, 72, 24, False, False, 1),
        (5, 72, 40, True, False, 2),
        (5, 120, 40, True, False, 1),
        (5, 120, 40, True, False, 1),
        (3, 240, 80, False, True, 2),
        (3, 200, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 184, 80, False, True, 1),
        (3, 480, 112, True, True, 1),
        (3, 672, 112, True, True, 1),
        (5, 672, 160, True, True, 2),
        (5, 960, 160, True, True, 1),
        (5, 960, 160, True, True, 1),
    ),
    "small": (
        (3, 16, 16, True, False, 2),
        (3, 72, 24, False, False, 2),
        (3, 88, 24, False, False, 1),
        (5, 96, 40, True, True, 2),
        (5, 240, 40, True, True, 1),
        (5, 240, 40, True, True, 1),
        (5, 120, 48, True, True, 1),
        (5, 144, 48, True, True, 1),
        (5, 288, 96, True, True, 2),
        (5, 576, 96, True, True, 1),
        (5, 576, 96, True, True, 1),
    ),
}
VARIANTS = tuple(_BLOCKS)


class MobileNetV3(mobile_backbone.MobileBackbone):
    """A network of inverted bottlenecks that was searched for the CPUs of phones.

    The first blocks have relu, the stem and the later blocks hard swish. Some blocks
    have squeeze-and-excitation with a hard sigmoid. A level's features are the output
    of the last block with its stride. The convolution to 960 or 576 channels before
    the classifier is left out. Small has no level 1.

    Source: arXiv:1905.02244, tables 1 and 2.
    """

    def __init__(
        self,
        *,
        variant: str = "large",
        width: float = 1.0,
        scales_like_keras: bool = False,
        activation_fn: activations.ActivationFn = activations.hard_swish,
        symmetric_padding: bool = False,
        drop_rate: float = 0.0,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          variant: "large" or "small".
          width: The factor of all numbers of channels, above 0. The products are
            rounded to multiples of 8.
          scales_like_keras: Whether the width acts as in Keras: the stem keeps 16
            channels, and a block multiplies its number of input channels by the factor
            of width 1. Otherwise the width multiplies every number, as in torchvision.
            Both are the same network at width 1.
          activation_fn: The activation of the stem and of the later blocks.
          symmetric_padding: Whether strides pad all four sides, as in torchvision.
            The weights of TensorFlow and Keras require False.
          drop_rate: The probability of stochastic depth in the last block; it rises
            linearly from 0 in the first block.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: There is no such variant.
        """
        mobile_backbone.check_variant("MobileNetV3", variant, VARIANTS)
        self.variant = variant
        stem_channels = _STEM_CHANNELS
        if not scales_like_keras:
            stem_channels = mobile_backbone.round_channels(width * stem_channels)
        settings = _block_settings(
            variant,
            width=width,
            stem_channels=stem_channels,
            scales_like_keras=scales_like_keras,
            activation_fn=activation_fn,
            symmetric_padding=symmetric_padding,
            drop_rate=drop_rate,
        )
        super().__init__(
            stem_channels,
            inverted_bottleneck.block_fns(settings),
            activation_fn=activation_fn,
            symmetric_padding=symmetric_padding,
            norm_fn=norm_fn,
            seed=seed,
        )


def _block_settings(
    variant: str,
    *,
    width: float,
    stem_channels: int,
    scales_like_keras: bool,
    activation_fn: activations.ActivationFn,
    symmetric_padding: bool,
    drop_rate: float,
) -> list[inverted_bottleneck.BlockSettings]:
    """Returns the settings of all blocks of a variant."""
    blocks = _BLOCKS[variant]
    # The numbers of input channels of the next block: scaled, and at width 1.
    in_channels, base_in_channels = stem_channels, _STEM_CHANNELS
    settings = []
    for index, (size, expanded, channels, has_gate, is_late, stride) in enumerate(
        blocks
    ):
        scale = in_channels / base_in_channels if scales_like_keras else width
        expanded = mobile_backbone.round_channels(scale * expanded)
        base_in_channels = channels
        in_channels = mobile_backbone.round_channels(width * channels)
        settings.append(
            inverted_bottleneck.BlockSettings(
                out_channels=in_channels,
                expanded_channels=expanded,
                kernel_size=size,
                stride=stride,
                squeezed_channels=(
                    mobile_backbone.round_channels(expanded / 4) if has_gate else 0
                ),
                activation_fn=activation_fn if is_late else activations.relu,
                gate_fn=activations.hard_sigmoid,
                symmetric_padding=symmetric_padding,
                drop_rate=drop_rate * index / len(blocks),
            )
        )
    return settings
