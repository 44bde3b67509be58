"""A feature pyramid whose coarse levels are pooled."""

import functools

import tensorflow as tf

from retinanet_tpu.model import activations, folding, layers, norms
from retinanet_tpu.model.necks import fpn, fusion


class PooledFPN(tf.Module):
    """A feature pyramid with coarse levels from max pooling, for 8-bit integers.

    P6 is C5 through a 1x1 convolution and 2x2 max pooling, and P7 is pooled from it.
    The way down begins at the coarsest level. Every convolution is normalized, so that
    its output has a known range, and an activation follows each fusion.

    Source: arXiv:1612.03144; the coarse levels as in EfficientDet, arXiv:1911.09070;
    the order of the layers as in the specification project.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        num_channels: int = 256,
        min_level: int = 3,
        max_level: int = 7,
        fusion_fn: fusion.FusionFn = fusion.AttentionFusion,
        conv_fn: layers.ConvFn = layers.Conv,
        activation_fn: activations.ActivationFn = activations.relu,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          channels: The numbers of channels of the backbone's features, by level.
          num_channels: The number of channels of every level of the pyramid.
          min_level: The finest level, with a stride of 2^min_level px.
          max_level: The coarsest level.
          fusion_fn: Returns the sum of a level and the coarser one.
          conv_fn: Returns the 3x3 convolution of each output.
          activation_fn: The activation after each fusion.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: The backbone does not have min_level, or max_level is below it.
        """
        super().__init__("pooled_fpn")
        fpn.check_levels("PooledFPN", channels, min_level, max_level)
        self.levels = tuple(range(min_level, max_level + 1))
        self.num_channels = num_channels
        self.activation_fn = activation_fn
        lateral = functools.partial(layers.Conv, initial_bias=0.0, seed=seed)
        output = functools.partial(conv_fn, initial_bias=0.0, seed=seed)
        # One for each level of the backbone, and one for the first coarse level.
        self.laterals: list[tuple[layers.Conv, norms.Norm]] = []
        self.fusions: list[fusion.Fusion] = []
        self.outputs: list[tuple[layers.Conv, norms.Norm]] = []
        with self.name_scope:
            for level in self.levels:
                source = level if level in channels else level - 1
                if source in channels:
                    conv = lateral(
                        channels[source], num_channels, 1, name=f"lateral{level}"
                    )
                    norm = norm_fn(num_channels, name=f"lateral_norm{level}")
                    self.laterals.append((conv, norm))
                if level > min_level:
                    name = f"fusion{level - 1}"
                    self.fusions.append(fusion_fn(2, num_channels, name=name))
                conv = output(num_channels, num_channels, 3, name=f"output{level}")
                norm = norm_fn(num_channels, name=f"norm{level}")
                self.outputs.append((conv, norm))

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
        apply = functools.partial(folding.conv_norm, is_training=is_training)
        present = [features[level] for level in self.levels if level in features]
        num_coarse = len(self.levels) - len(present)
        inputs = present + present[-1:] * min(num_coarse, 1)
        pyramid = [
            apply(*pair, x) for pair, x in zip(self.laterals, inputs, strict=True)
        ]
        x = pyramid[-1]
        del pyramid[len(present) :]
        for _ in range(num_coarse):
            x = tf.nn.max_pool2d(x, 2, 2, "SAME")
            pyramid.append(x)
        for i in reversed(range(len(self.fusions))):
            coarser = fpn.upsample(pyramid[i + 1], pyramid[i].shape[1:3])
            pyramid[i] = self.activation_fn(self.fusions[i]([pyramid[i], coarser]))
        return tuple(
            apply(*pair, x) for pair, x in zip(self.outputs, pyramid, strict=True)
        )
