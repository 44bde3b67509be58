"""The heads: predict class logits and box deltas at each anchor."""

import functools
import math
from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.model import folding, initializers, layers


class Heads(tf.Module):
    """Two towers of convolutions that are applied to every level of the pyramid.

    The levels share the convolutions. Each level has its own normalizations, because
    the statistics of levels differ.

    Source: RetinaNet, arXiv:1708.02002, section 4; normalization by level as in
    NAS-FPN, arXiv:1904.07392.
    """

    def __init__(
        self,
        in_channels: int,
        levels: Sequence[int],
        *,
        num_classes: int,
        num_anchors: int,
        num_convs: int = 4,
        num_channels: int = 256,
        prior: float = 0.01,
        norm_fn: layers.NormFn = layers.BatchNorm,
        seed: int = 0,
    ):
        """Initializes both towers.

        Args:
          in_channels: The number of channels of the pyramid.
          levels: The levels of the pyramid, finest first.
          num_classes: The number of classes, without background.
          num_anchors: The number of anchors in a cell.
          num_convs: The number of convolutions before the last one.
          num_channels: The number of output channels of these convolutions.
          prior: The probability of every class in an untrained network, in (0, 1).
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        """
        super().__init__("heads")
        tower = functools.partial(
            _Tower,
            [in_channels] + [num_channels] * num_convs,
            levels=levels,
            norm_fn=norm_fn,
            seed=seed,
        )
        # Every anchor starts at p = prior. At 0.5, the loss of background anchors would
        # dominate the first steps.
        logit = math.log(prior / (1 - prior))
        with self.name_scope:
            self.class_tower = tower(
                num_anchors * num_classes, logit, name="class", last_name="logits"
            )
            self.box_tower = tower(num_anchors * 4, 0.0, name="box", last_name="deltas")

    def __call__(
        self, features: Sequence[tf.Tensor], *, is_training: bool
    ) -> structures.Predictions:
        """Returns the class logits and box deltas of each level.

        Their dtype is that of the features in training, else float32.

        Args:
          features: float [B, H_l, W_l, in_channels] for each level.
          is_training: Whether to normalize by the batch's moments.
        """
        return structures.Predictions(
            class_logits=self.class_tower(features, is_training=is_training),
            box_deltas=self.box_tower(features, is_training=is_training),
        )


class _Tower(tf.Module):
    """Shared convolutions with normalizations by level, and a last convolution."""

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int,
        bias: float,
        *,
        name: str,
        last_name: str,
        levels: Sequence[int],
        norm_fn: layers.NormFn,
        seed: int,
    ):
        super().__init__(name)
        self.convs: list[layers.Conv] = []
        self.norms: list[list[layers.BatchNorm]] = []
        # As in the paper.
        init_fn = functools.partial(initializers.normal, stddev=0.01)
        with self.name_scope:
            for i in range(1, len(channels)):
                self.convs.append(
                    layers.Conv(
                        channels[i - 1],
                        channels[i],
                        3,
                        name=f"conv{i}",
                        initial_bias=0.0,
                        init_fn=init_fn,
                        seed=seed,
                    )
                )
                self.norms.append(
                    [
                        norm_fn(channels[i], name=f"norm{i}_level{level}")
                        for level in levels
                    ]
                )
            # Almost 0, so that the first class probabilities are the prior for any
            # image. The input is normalized: with the paper's 0.01 the logits would
            # have a standard deviation of 0.3.
            self.last_conv = layers.Conv(
                channels[-1],
                out_channels,
                3,
                name=last_name,
                initial_bias=bias,
                init_fn=functools.partial(initializers.normal, stddev=1e-5),
                seed=seed,
            )

    def __call__(
        self, features: Sequence[tf.Tensor], *, is_training: bool
    ) -> tuple[tf.Tensor, ...]:
        """Returns the output of the last convolution for each level."""
        outputs = []
        for level, x in enumerate(features):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = folding.conv_norm(conv, norms[level], x, is_training=is_training)
                x = tf.nn.relu(x)
            # bfloat16 would round scores to steps of 0.4 %, and many would be equal.
            outputs.append(self.last_conv(x if is_training else tf.cast(x, tf.float32)))
        return tuple(outputs)
