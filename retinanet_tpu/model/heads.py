"""The heads: predict class logits and the outputs of boxes at each anchor."""

import functools
import itertools
import math
from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import structures
from retinanet_tpu.boxes.box_coder import AnchorOffsets, BoxCoder
from retinanet_tpu.model import activations, folding, initializers, layers, norms

# As in the paper.
_initial_kernel = functools.partial(initializers.normal, stddev=0.01)
# Almost 0, so that the first class probabilities are the prior for any image. The input
# of the last convolution is normalized: with the paper's 0.01 the logits would have a
# standard deviation of 0.3.
_initial_last_kernel = functools.partial(initializers.normal, stddev=1e-5)


class Heads(tf.Module):
    """Two towers of convolutions that are applied to every level of the pyramid.

    The levels share the convolutions. Each level has its own normalizations by default,
    because the statistics of levels differ.

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
        box_coder: BoxCoder = AnchorOffsets(),
        num_convs: int = 4,
        num_channels: int = 256,
        prior: float = 0.01,
        conv_fn: layers.ConvFn = layers.Conv,
        init_fn: initializers.InitFn = _initial_kernel,
        activation_fn: activations.ActivationFn = activations.relu,
        shares_norms: bool = False,
        own_norm_fn: norms.NormFn | None = None,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes both towers.

        Args:
          in_channels: The number of channels of the pyramid.
          levels: The levels of the pyramid, finest first.
          num_classes: The number of classes, without background.
          num_anchors: The number of anchors in a cell.
          box_coder: The representation of a box, which determines its channels.
          num_convs: The number of convolutions before the last one.
          num_channels: The number of output channels of these convolutions.
          prior: The probability of every class in an untrained network, in (0, 1).
          conv_fn: Returns a convolution, also the last one.
          init_fn: Returns the first values of the kernels before the last one.
          activation_fn: The activation after each normalization.
          shares_norms: Whether the levels share the normalizations, too.
          own_norm_fn: Returns a normalization of the heads alone. None means norm_fn.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        """
        super().__init__("heads")
        tower = functools.partial(
            _Tower,
            [in_channels] + [num_channels] * num_convs,
            levels=levels,
            conv_fn=functools.partial(conv_fn, seed=seed),
            init_fn=init_fn,
            activation_fn=activation_fn,
            shares_norms=shares_norms,
            norm_fn=own_norm_fn or norm_fn,
        )
        # Every anchor starts at p = prior. At 0.5, the loss of background anchors would
        # dominate the first steps.
        logit = math.log(prior / (1 - prior))
        with self.name_scope:
            self.class_tower = tower(
                num_anchors * num_classes, logit, name="class", last_name="logits"
            )
            self.box_tower = tower(
                num_anchors * box_coder.num_channels,
                0.0,
                name="box",
                last_name=box_coder.output_name,
            )

    def __call__(
        self, features: Sequence[tf.Tensor], *, is_training: bool
    ) -> structures.Predictions:
        """Returns the class logits and the outputs of boxes of each level.

        Their dtype is that of the features in training, else float32.

        Args:
          features: float [B, H_l, W_l, in_channels] for each level.
          is_training: Whether to normalize by the batch's moments.
        """
        return structures.Predictions(
            class_logits=self.class_tower(features, is_training=is_training),
            box_outputs=self.box_tower(features, is_training=is_training),
        )


class _Tower(tf.Module):
    """Shared convolutions with normalizations, and a last convolution."""

    def __init__(
        self,
        channels: Sequence[int],
        out_channels: int,
        bias: float,
        *,
        name: str,
        last_name: str,
        levels: Sequence[int],
        conv_fn: layers.ConvFn,
        init_fn: initializers.InitFn,
        activation_fn: activations.ActivationFn,
        shares_norms: bool,
        norm_fn: norms.NormFn,
    ):
        super().__init__(name)
        self.activation_fn = activation_fn
        self.convs: list[layers.Conv] = []
        self.norms: list[list[norms.Norm]] = []
        with self.name_scope:
            for i, (inner, outer) in enumerate(itertools.pairwise(channels), start=1):
                conv = conv_fn(
                    inner, outer, 3, name=f"conv{i}", initial_bias=0.0, init_fn=init_fn
                )
                if shares_norms:
                    on_levels = [norm_fn(outer, name=f"norm{i}")] * len(levels)
                else:
                    names = [f"norm{i}_level{level}" for level in levels]
                    on_levels = [norm_fn(outer, name=name) for name in names]
                self.convs.append(conv)
                self.norms.append(on_levels)
            self.last_conv = conv_fn(
                channels[-1],
                out_channels,
                3,
                name=last_name,
                initial_bias=bias,
                init_fn=_initial_last_kernel,
            )

    def __call__(
        self, features: Sequence[tf.Tensor], *, is_training: bool
    ) -> tuple[tf.Tensor, ...]:
        """Returns the output of the last convolution for each level."""
        outputs = []
        for level, x in enumerate(features):
            for conv, on_levels in zip(self.convs, self.norms, strict=True):
                norm = on_levels[level]
                x = folding.conv_norm(conv, norm, x, is_training=is_training)
                x = self.activation_fn(x)
            # bfloat16 would round scores to steps of 0.4 %, and many would be equal.
            outputs.append(self.last_conv(x if is_training else tf.cast(x, tf.float32)))
        return tuple(outputs)
