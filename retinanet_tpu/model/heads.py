"""The heads: what is at each anchor, and where exactly."""

import functools
import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.model import folding, layers


class Heads(tf.Module):
    """Two towers of convolutions that slide over every level of the pyramid.

    The levels share the convolutions; each has normalizations of its own, because
    their statistics differ.

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
        norm_fn: Callable = layers.BatchNorm,
        seed: int = 0,
    ):
        """Builds both towers.

        Args:
          in_channels: channels of the pyramid.
          levels: of the pyramid, finest first.
          num_classes: classes to tell apart, background not counted.
          num_anchors: anchors of a cell.
          num_convs: convolutions before the last one.
          num_channels: channels between them.
          prior: probability that the untrained network gives every class, in (0, 1).
          norm_fn: makes a normalization from (num_channels, name=).
          seed: of the kernels.
        """
        super().__init__("heads")
        tower = functools.partial(
            _Tower,
            [in_channels] + [num_channels] * num_convs,
            levels=levels,
            norm_fn=norm_fn,
            seed=seed,
        )
        # Every anchor starts at p = prior, else background swamps the first steps.
        logit = math.log(prior / (1 - prior))
        with self.name_scope:
            self.class_tower = tower(
                num_anchors * num_classes, logit, name="class", last_name="logits"
            )
            self.box_tower = tower(num_anchors * 4, 0.0, name="box", last_name="deltas")

    def __call__(
        self, features: Sequence[tf.Tensor], *, is_training: bool
    ) -> structures.Predictions:
        """Returns class logits and box deltas of each level.

        In training they have the features' dtype, else float32.

        Args:
          features: for each level [B, H_l, W_l, in_channels].
          is_training: whether to normalize by the batch's moments.
        """
        return structures.Predictions(
            class_logits=self.class_tower(features, is_training=is_training),
            box_deltas=self.box_tower(features, is_training=is_training),
        )


class _Tower(tf.Module):
    """Convolutions shared by the levels, normalized by level, then the last one."""

    def __init__(
        self, channels, out_channels, bias, *, name, last_name, levels, norm_fn, seed
    ):
        super().__init__(name)
        self.convs, self.norms = [], []
        init_fn = functools.partial(layers.normal, stddev=0.01)  # The paper's.
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
            # Next to 0, so that the first class probabilities are the prior whatever
            # the image: what comes in is normalized, and the paper's 0.01 would
            # spread the logits by 0.3.
            self.last_conv = layers.Conv(
                channels[-1],
                out_channels,
                3,
                name=last_name,
                initial_bias=bias,
                init_fn=functools.partial(layers.normal, stddev=1e-5),
                seed=seed,
            )

    def __call__(self, features, *, is_training):
        outputs = []
        for level, x in enumerate(features):
            for conv, norms in zip(self.convs, self.norms, strict=True):
                x = folding.conv_norm(conv, norms[level], x, is_training=is_training)
                x = tf.nn.relu(x)
            # bfloat16 would round scores to steps of 0.4 % and make ties.
            outputs.append(self.last_conv(x if is_training else tf.cast(x, tf.float32)))
        return tuple(outputs)
