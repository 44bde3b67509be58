"""EfficientNet and EfficientNet-Lite, backbones of inverted bottlenecks."""

import math

from retinanet_tpu.model import activations, norms
from retinanet_tpu.model.backbones import inverted_bottleneck, mobile_backbone

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


class EfficientNet(mobile_backbone.MobileBackbone):
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
        norm_fn: norms.NormFn = norms.BatchNorm,
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
        mobile_backbone.check_variant("EfficientNet", variant, VARIANTS)
        is_lite = variant.startswith("lite")
        activation_fn = activation_fn or (
            activations.relu6 if is_lite else activations.swish
        )
        stem_channels = _STEM_CHANNELS
        if not is_lite:
            width, _ = _FACTORS[variant]
            stem_channels = mobile_backbone.round_channels(width * stem_channels)
        settings = _block_settings(
            variant,
            stem_channels=stem_channels,
            activation_fn=activation_fn,
            symmetric_padding=symmetric_padding,
            drop_rate=drop_rate,
        )
        self.variant = variant
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
    stem_channels: int,
    activation_fn: activations.ActivationFn,
    symmetric_padding: bool,
    drop_rate: float,
) -> list[inverted_bottleneck.BlockSettings]:
    """Returns the settings of all blocks of a variant."""
    has_gates = not variant.startswith("lite")
    stages = _scaled_stages(variant)
    num_blocks = sum(number for number, *_ in stages)
    in_channels = stem_channels
    settings: list[inverted_bottleneck.BlockSettings] = []
    for number, kernel_size, stride, expansion, channels in stages:
        for i in range(number):
            settings.append(
                inverted_bottleneck.BlockSettings(
                    out_channels=channels,
                    expanded_channels=expansion * in_channels,
                    kernel_size=kernel_size,
                    stride=stride if i == 0 else 1,
                    squeezed_channels=max(1, in_channels // 4) if has_gates else 0,
                    activation_fn=activation_fn,
                    squeeze_activation_fn=activation_fn,
                    symmetric_padding=symmetric_padding,
                    drop_rate=drop_rate * len(settings) / num_blocks,
                )
            )
            in_channels = channels
    return settings


def _scaled_stages(variant: str) -> list[tuple[int, int, int, int, int]]:
    """Returns the stages of a variant, in the form of _STAGES."""
    width, depth = _FACTORS[variant]
    is_lite = variant.startswith("lite")
    stages = []
    for i, (number, size, stride, expansion, channels) in enumerate(_STAGES):
        is_end = i in (0, len(_STAGES) - 1)
        number = number if is_lite and is_end else math.ceil(depth * number)
        channels = mobile_backbone.round_channels(width * channels)
        stages.append((number, size, stride, expansion, channels))
    return stages
