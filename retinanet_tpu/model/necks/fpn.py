"""The feature pyramid network."""

import functools
from collections.abc import Mapping

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import initializers, layers, norms
from retinanet_tpu.model.necks import fusion


class FPN(tf.Module):
    """A feature pyramid with two coarse levels from strided convolutions.

    P3 to P5 are 3x3 convolutions of laterals that are summed top-down. P6 is a 3x3
    convolution of stride 2 on P5, and P7 one on relu(P6), both before normalization.
    Every output is normalized at the end.

    Source: arXiv:1612.03144; P6 and P7 as in RetinaNet, arXiv:1708.02002, section 4,
    but P6 from P5; normalization as in the shared TensorFlow recipe.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        num_channels: int = 256,
        min_level: int = 3,
        max_level: int = 7,
        coarse_from_backbone: bool = False,
        symmetric_padding: bool = True,
        fusion_fn: fusion.FusionFn = fusion.SumFusion,
        own_norm_fn: norms.NormFn | None = None,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          channels: The numbers of channels of the backbone's features, by level.
          num_channels: The number of channels of every level of the pyramid.
          min_level: The finest level, with a stride of 2^min_level px.
          max_level: The coarsest level.
          coarse_from_backbone: Whether P6 is a convolution of C5, as in the paper,
            instead of P5. C5 is the coarsest level of the backbone.
          symmetric_padding: Whether P6 and P7 pad all four sides; see `layers.Conv`.
          fusion_fn: Returns the sum of a lateral and the coarser level.
          own_norm_fn: Returns a normalization of this neck alone. None means norm_fn.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: The backbone does not have min_level, or max_level is below it.
        """
        super().__init__("fpn")
        check_levels("FPN", channels, min_level, max_level)
        self.levels = tuple(range(min_level, max_level + 1))
        self.num_channels = num_channels
        self.coarse_from_backbone = coarse_from_backbone
        norm_fn = own_norm_fn or norm_fn
        conv = functools.partial(
            layers.Conv,
            symmetric_padding=symmetric_padding,
            initial_bias=0.0,
            init_fn=initializers.glorot_uniform,
            seed=seed,
        )
        self.laterals: list[layers.Conv] = []
        self.fusions: list[fusion.Fusion] = []
        self.outputs: list[layers.Conv] = []
        self.norms: list[norms.Norm] = []
        with self.name_scope:
            for level in self.levels:
                is_coarse = level not in channels
                in_channels = num_channels
                if is_coarse and coarse_from_backbone and level - 1 in channels:
                    in_channels = channels[level - 1]
                if not is_coarse:
                    name = f"lateral{level}"
                    self.laterals.append(
                        conv(channels[level], num_channels, 1, name=name)
                    )
                if not is_coarse and level > min_level:
                    name = f"fusion{level - 1}"
                    self.fusions.append(fusion_fn(2, num_channels, name=name))
                stride = 2 if is_coarse else 1
                name = f"output{level}"
                self.outputs.append(
                    conv(in_channels, num_channels, 3, name=name, stride=stride)
                )
                self.norms.append(norm_fn(num_channels, name=f"norm{level}"))

    def __call__(
        self, features: dict[int, tf.Tensor], *, is_training: bool
    ) -> tuple[tf.Tensor, ...]:
        """Returns the pyramid, finest level first.

        Args:
          features: The features of the backbone by level l, float
            [B, ceil(H / 2^l), ceil(W / 2^l), C_l].
          is_training: Whether to normalize by the batch's moments.
        Returns:
          float [B, ceil(H / 2^l), ceil(W / 2^l), num_channels] for each level l.
        """
        laterals = [
            lateral(features[level])
            for level, lateral in zip(self.levels, self.laterals, strict=False)
        ]
        for i in reversed(range(len(self.fusions))):
            coarser = upsample(laterals[i + 1], laterals[i].shape[1:3])
            laterals[i] = self.fusions[i]([laterals[i], coarser])
        outputs = [
            output.without_bias(x)
            for output, x in zip(self.outputs, laterals, strict=False)
        ]
        for i in range(len(laterals), len(self.levels)):
            x = outputs[-1] + tf.cast(self.outputs[i - 1].bias, outputs[-1].dtype)
            if i > len(laterals):
                x = tf.nn.relu(x)
            elif self.coarse_from_backbone:
                x = features[self.levels[i - 1]]
            outputs.append(self.outputs[i].without_bias(x))
        return tuple(
            norm(x, is_training=is_training, bias=output.bias)
            for norm, output, x in zip(self.norms, self.outputs, outputs, strict=True)
        )


def check_levels(
    name: str, channels: Mapping[int, int], min_level: int, max_level: int
) -> None:
    """Checks that a pyramid begins at a level of the backbone.

    Args:
      name: The name of the neck.
      channels: The numbers of channels of the backbone's features, by level.
      min_level: The finest level.
      max_level: The coarsest level.
    Raises:
      UserError: The backbone does not have min_level, or max_level is below it.
    """
    if min_level not in channels or max_level < min_level:
        raise errors.UserError(
            f"{name} levels {min_level}..{max_level} must rise from one of the"
            f" backbone's levels {sorted(channels)}; set min_level and max_level."
        )


def upsample(x: tf.Tensor, size: tuple[int, int], *, factor: int = 2) -> tf.Tensor:
    """Returns x with height and width multiplied by repetition, then cropped.

    Args:
      x: float [B, H, W, C], with static H, W and C.
      size: The height and width of the result, at most factor H and factor W.
      factor: The number of repetitions along each side.
    """
    # Not tf.image.resize, because XLA on CPU cannot compile its gradient.
    _, height, width, channels = x.shape
    batch = tf.shape(x)[0] if x.shape[0] is None else x.shape[0]
    # Not x[:, :, None], because TFLite has no slice of six dimensions.
    x = tf.reshape(x, [batch, height, 1, width, 1, channels])
    x = tf.broadcast_to(x, [batch, height, factor, width, factor, channels])
    x = tf.reshape(x, [batch, factor * height, factor * width, channels])
    return x[:, : size[0], : size[1]]
