"""The bidirectional feature pyramid network of EfficientDet."""

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import activations, folding, layers, norms
from retinanet_tpu.model.necks import fpn, fusion


class BiFPN(tf.Module):
    """A feature pyramid that passes features down and up again, several times.

    The coarse levels are the backbone's last level through a 1x1 convolution, and then
    max pooling. Each cell has a node for every level but the coarsest on the way down,
    and for every level but the finest on the way up. A node resizes its inputs, fuses
    them, and applies an activation, a convolution and a normalization. In the first
    cell, each input of each node has a 1x1 convolution of its own.

    Source: EfficientDet, arXiv:1911.09070, section 3; the order of the layers as in the
    public TensorFlow code.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        num_channels: int = 64,
        num_cells: int = 3,
        min_level: int = 3,
        max_level: int = 7,
        fusion_fn: fusion.FusionFn = fusion.AttentionFusion,
        conv_fn: layers.ConvFn = layers.SeparableConv,
        activation_fn: activations.ActivationFn = activations.swish,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          channels: The numbers of channels of the backbone's features, by level.
          num_channels: The number of channels of every level of the pyramid.
          num_cells: The number of times that features pass down and up.
          min_level: The finest level, with a stride of 2^min_level px.
          max_level: The coarsest level, above min_level.
          fusion_fn: Returns the sum of the inputs of a node.
          conv_fn: Returns the convolution of a node.
          activation_fn: The activation before that convolution.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: The backbone does not have min_level, or max_level is not above it,
            or there is no cell.
        """
        super().__init__("bifpn")
        fpn.check_levels("BiFPN", channels, min_level, max_level)
        if max_level == min_level or num_cells < 1:
            raise errors.UserError(
                f"BiFPN has levels {min_level}..{max_level} and {num_cells} cells; it"
                " requires two levels and one cell. Set min_level, max_level and"
                " num_cells."
            )
        self.levels = tuple(range(min_level, max_level + 1))
        self.num_channels = num_channels
        present = [channels[level] for level in self.levels if level in channels]
        num_coarse = len(self.levels) - len(present)
        self.coarse: _Projection | None = None
        with self.name_scope:
            if num_coarse:
                self.coarse = _Projection(
                    present[-1],
                    num_channels,
                    name=f"coarse{self.levels[len(present)]}",
                    norm_fn=norm_fn,
                    seed=seed,
                )
            in_channels = present + [num_channels] * num_coarse
            self.cells: list[_Cell] = []
            for i in range(num_cells):
                cell = _Cell(
                    in_channels,
                    num_channels,
                    name=f"cell{i}",
                    min_level=min_level,
                    fusion_fn=fusion_fn,
                    conv_fn=conv_fn,
                    activation_fn=activation_fn,
                    norm_fn=norm_fn,
                    seed=seed,
                )
                self.cells.append(cell)
                in_channels = [num_channels] * len(self.levels)

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
        pyramid = [features[level] for level in self.levels if level in features]
        if self.coarse is not None:
            x = self.coarse(pyramid[-1], is_training=is_training)
            for _ in range(len(self.levels) - len(pyramid)):
                x = _pool(x)
                pyramid.append(x)
        for cell in self.cells:
            pyramid = cell(pyramid, is_training=is_training)
        return tuple(pyramid)


class _Cell(tf.Module):
    """A way down from the coarsest level, and a way up again."""

    def __init__(
        self,
        in_channels: list[int],
        num_channels: int,
        *,
        name: str,
        min_level: int,
        fusion_fn: fusion.FusionFn,
        conv_fn: layers.ConvFn,
        activation_fn: activations.ActivationFn,
        norm_fn: norms.NormFn,
        seed: int,
    ):
        super().__init__(name)
        last = len(in_channels) - 1

        def node(prefix: str, i: int, inputs: list[int]) -> _Node:
            return _Node(
                inputs,
                num_channels,
                name=f"{prefix}{min_level + i}",
                fusion_fn=fusion_fn,
                conv_fn=conv_fn,
                activation_fn=activation_fn,
                norm_fn=norm_fn,
                seed=seed,
            )

        with self.name_scope:
            # Coarsest first: each fuses a level with the node of the level above.
            self.down: list[_Node] = []
            for i in reversed(range(last)):
                coarser = in_channels[last] if i == last - 1 else num_channels
                self.down.append(node("down", i, [in_channels[i], coarser]))
            # Finest first: each also fuses the node of its own level on the way down,
            # which the coarsest level does not have.
            self.up: list[_Node] = []
            for i in range(1, last + 1):
                inner = [num_channels] * (1 if i == last else 2)
                self.up.append(node("up", i, [in_channels[i], *inner]))

    def __call__(
        self, features: list[tf.Tensor], *, is_training: bool
    ) -> list[tf.Tensor]:
        """Returns the features of the same levels, finest first."""
        down = [features[-1]]
        for x, node in zip(reversed(features[:-1]), self.down, strict=True):
            down.append(node([x, down[-1]], x.shape[1:3], is_training=is_training))
        outputs = [down.pop()]
        for x, node in zip(features[1:], self.up, strict=True):
            inner = down.pop()
            # The coarsest level has no node on the way down.
            inputs = [x, outputs[-1]] if inner is x else [x, inner, outputs[-1]]
            outputs.append(node(inputs, x.shape[1:3], is_training=is_training))
        return outputs


class _Node(tf.Module):
    """Resizes and fuses inputs; then an activation, a convolution and a norm."""

    def __init__(
        self,
        in_channels: list[int],
        num_channels: int,
        *,
        name: str,
        fusion_fn: fusion.FusionFn,
        conv_fn: layers.ConvFn,
        activation_fn: activations.ActivationFn,
        norm_fn: norms.NormFn,
        seed: int,
    ):
        super().__init__(name)
        self.activation_fn = activation_fn
        with self.name_scope:
            self.projections = [
                _Projection(
                    channels,
                    num_channels,
                    name=f"input{i}",
                    norm_fn=norm_fn,
                    seed=seed,
                )
                for i, channels in enumerate(in_channels)
            ]
            self.fusion = fusion_fn(len(in_channels), num_channels, name="fusion")
            self.conv = conv_fn(
                num_channels, num_channels, 3, name="conv", initial_bias=0.0, seed=seed
            )
            self.norm = norm_fn(num_channels, name="norm")

    def __call__(
        self, inputs: list[tf.Tensor], size: tuple[int, int], *, is_training: bool
    ) -> tf.Tensor:
        """Returns the output for inputs of this level or one beside it."""
        resized = []
        for x, projection in zip(inputs, self.projections, strict=True):
            x = projection(x, is_training=is_training)
            if x.shape[1] > size[0] or x.shape[2] > size[1]:
                x = _pool(x)
            resized.append(fpn.upsample(x, size) if x.shape[1:3] != size else x)
        x = self.activation_fn(self.fusion(resized))
        return folding.conv_norm(self.conv, self.norm, x, is_training=is_training)


class _Projection(tf.Module):
    """A 1x1 convolution and a normalization; nothing, if channels do not change."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        name: str,
        norm_fn: norms.NormFn,
        seed: int,
    ):
        super().__init__(name)
        self.conv: layers.Conv | None = None
        with self.name_scope:
            if in_channels != out_channels:
                self.conv = layers.Conv(
                    in_channels,
                    out_channels,
                    1,
                    name="conv",
                    initial_bias=0.0,
                    seed=seed,
                )
                self.norm = norm_fn(out_channels, name="norm")

    def __call__(self, x: tf.Tensor, *, is_training: bool) -> tf.Tensor:
        """Returns x with the number of output channels."""
        if self.conv is None:
            return x
        return folding.conv_norm(self.conv, self.norm, x, is_training=is_training)


def _pool(x: tf.Tensor) -> tf.Tensor:
    """Returns the next coarser level."""
    return tf.nn.max_pool2d(x, 3, 2, "SAME")
