"""The feature pyramid network."""

import functools
import itertools

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import initializers, layers, resampling


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
        norm_fn: layers.NormFn = layers.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          channels: The numbers of channels of the backbone's features, by level.
          num_channels: The number of channels of every level of the pyramid.
          min_level: The finest level, with a stride of 2^min_level px.
          max_level: The coarsest level.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: The backbone does not have min_level, or max_level is below it.
        """
        super().__init__("fpn")
        if min_level not in channels or max_level < min_level:
            raise errors.UserError(
                f"FPN levels {min_level}..{max_level} must rise from one of the"
                f" backbone's levels {sorted(channels)}; set min_level and max_level."
            )
        self.levels = tuple(range(min_level, max_level + 1))
        self.num_channels = num_channels
        conv = functools.partial(
            layers.Conv,
            initial_bias=0.0,
            init_fn=initializers.glorot_uniform,
            seed=seed,
        )
        self.laterals: list[layers.Conv] = []
        self.outputs: list[layers.Conv] = []
        self.norms: list[layers.BatchNorm] = []
        with self.name_scope:
            for level in self.levels:
                stride = 2
                if level in channels:
                    stride = 1
                    lateral = conv(
                        channels[level], num_channels, 1, name=f"lateral{level}"
                    )
                    self.laterals.append(lateral)
                name = f"output{level}"
                output = conv(num_channels, num_channels, 3, name=name, stride=stride)
                self.outputs.append(output)
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
        for i in reversed(range(len(laterals) - 1)):
            size = laterals[i].shape[1:3]
            laterals[i] += resampling.upsample(laterals[i + 1], size)
        outputs = [
            output.without_bias(x)
            for output, x in zip(self.outputs, laterals, strict=False)
        ]
        for previous, output in itertools.pairwise(self.outputs[len(laterals) - 1 :]):
            x = outputs[-1] + tf.cast(previous.bias, outputs[-1].dtype)
            is_first = len(outputs) == len(laterals)
            outputs.append(output.without_bias(x if is_first else tf.nn.relu(x)))
        return tuple(
            norm(x, is_training=is_training, bias=output.bias)
            for norm, output, x in zip(self.norms, self.outputs, outputs, strict=True)
        )
