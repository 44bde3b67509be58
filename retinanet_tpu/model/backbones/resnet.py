"""ResNet v1.5, a backbone.

A backbone is a tf.Module named "backbone" with `channels`, a dict from level to the
channels of its features, and a call from images to a dict from level to features.
"""

from collections.abc import Callable

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import folding, layers

# depth: (blocks of stages 2 to 5, whether they are bottlenecks)
DEPTHS = {
    10: ((1, 1, 1, 1), False),
    14: ((1, 1, 1, 1), True),
    18: ((2, 2, 2, 2), False),
    26: ((2, 2, 2, 2), True),
    34: ((3, 4, 6, 3), False),
    50: ((3, 4, 6, 3), True),
    101: ((3, 4, 23, 3), True),
    152: ((3, 8, 36, 3), True),
    200: ((3, 24, 36, 3), True),
}


class ResNet(tf.Module):
    """A residual network: a stem, then stages 2 to 5 of strides 4 to 32.

    By default the first block of every stage projects its shortcut, also where shapes
    would allow the identity, and a bottleneck strides in its 3x3 convolution. Published
    weights want the layers that they were trained in, see `pretrained`.

    Source: arXiv:1512.03385; the stride as in v1.5 of public implementations.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        width: int = 64,
        stride_in_1x1: bool = False,
        symmetric_pool_padding: bool = False,
        identity_first_shortcut: bool = False,
        norm_fn: Callable = layers.BatchNorm,
        seed: int = 0,
    ):
        """Builds the layers.

        Args:
          depth: 10, 18, 34 (basic blocks), 14, 26, 50, 101, 152 or 200 (bottlenecks).
          width: channels of the stem; stage s is 2 ** (s - 2) times as wide.
          stride_in_1x1: whether a bottleneck strides in its first 1x1 convolution.
          symmetric_pool_padding: whether the stem's pool pads all sides, not below and
            right only where an image is even: Keras and PyTorch do.
          identity_first_shortcut: whether stage 2 of basic blocks has no projection.
          norm_fn: makes a normalization from (num_channels, name=, initial_gamma=).
          seed: of the kernels.
        Raises:
          UserError: the depth is none of these.
        """
        super().__init__("backbone")
        if depth not in DEPTHS:
            raise errors.UserError(
                f"ResNet depth {depth} is not one of {sorted(DEPTHS)}."
            )
        stage_blocks, is_bottleneck = DEPTHS[depth]
        make = {"norm_fn": norm_fn, "seed": seed}
        self.stride_in_1x1 = stride_in_1x1
        self.symmetric_pool_padding = symmetric_pool_padding
        self.identity_first_shortcut = identity_first_shortcut
        self.stages = []
        with self.name_scope:
            with tf.name_scope("stem"):
                self.stem_conv = _StemConv(
                    3, width, 7, name="conv", stride=2, seed=seed
                )
                self.stem_norm = norm_fn(width, name="norm")
            in_channels = width
            for stage, num_blocks in enumerate(stage_blocks, start=2):
                channels = width * 2 ** (stage - 2)
                stride = 1 if stage == 2 else 2
                first = _kernels(channels, stride, is_bottleneck, stride_in_1x1)
                others = _kernels(channels, 1, is_bottleneck, stride_in_1x1)
                out_channels = first[-1][0]
                is_same = stride == 1 and in_channels == out_channels
                projects = not (identity_first_shortcut and is_same)
                with tf.name_scope(f"stage{stage}"):
                    blocks = [
                        _Block(in_channels, first, projects, name="block1", **make)
                    ]
                    blocks += [
                        _Block(out_channels, others, False, name=f"block{i}", **make)
                        for i in range(2, num_blocks + 1)
                    ]
                self.stages.append(blocks)
                in_channels = out_channels

    @property
    def channels(self) -> dict[int, int]:
        """Channels of the features, by level."""
        outputs = [blocks[-1].convs[-1].kernel.shape[-1] for blocks in self.stages]
        return dict(enumerate(outputs, start=2))

    def __call__(self, x: tf.Tensor, *, is_training: bool) -> dict[int, tf.Tensor]:
        """Returns the features of levels 2 to 5.

        Args:
          x: float [B, H, W, 3], normalized.
          is_training: whether to normalize by the batch's moments.
        Returns:
          From level l to [B, ceil(H / 2^l), ceil(W / 2^l), channels[l]] in x's dtype.
        """
        x = folding.conv_norm(
            self.stem_conv, self.stem_norm, x, is_training=is_training
        )
        x = tf.nn.relu(x)
        if self.symmetric_pool_padding:
            # After a ReLU a zero never wins. XLA has no pool with paddings of its own.
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        x = tf.nn.max_pool2d(
            x, 3, 2, "VALID" if self.symmetric_pool_padding else "SAME"
        )
        features = {}
        for level, blocks in enumerate(self.stages, start=2):
            for block in blocks:
                x = block(x, is_training=is_training)
            features[level] = x
        return features


class _StemConv(layers.Conv):
    """The 7x7 convolution of stride 2, as a 4x4 one over blocks of 2x2 pixels.

    The same products and sums, with some zeros. A TPU keeps channels in tiles of 128:
    with 3 of them it moves 1.5 GB for 8 images of 640 px, with 12 it is 1.2 GB.
    Source: as in the public MLPerf ResNet-50 for TPUs.
    """

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        if any(side % 2 for side in x.shape[1:3]):
            return super().without_bias(x)
        *_, in_channels, out_channels = self.kernel.shape
        blocks = tf.concat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        kernel = tf.pad(self.kernel, [[1, 0], [1, 0], [0, 0], [0, 0]])
        kernel = tf.reshape(kernel, [4, 2, 4, 2, in_channels, out_channels])
        kernel = tf.transpose(kernel, [0, 2, 1, 3, 4, 5])
        kernel = tf.reshape(kernel, [4, 4, 4 * in_channels, out_channels])
        padding = [[0, 0], [2, 1], [2, 1], [0, 0]]
        return tf.nn.conv2d(blocks, tf.cast(kernel, x.dtype), 1, padding)


def _kernels(channels, stride, is_bottleneck, stride_in_1x1):
    """Returns (out_channels, kernel_size, stride) of a block's convolutions."""
    if is_bottleneck:
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        return [(channels, 1, first), (channels, 3, second), (4 * channels, 1, 1)]
    return [(channels, 3, stride), (channels, 3, 1)]


class _Block(tf.Module):
    """Convolutions beside a shortcut; `kernels` as `_kernels` gives them."""

    def __init__(self, in_channels, kernels, has_projection, *, name, norm_fn, seed):
        super().__init__(name)
        self.convs, self.norms, self.shortcut = [], [], None
        with self.name_scope:
            if has_projection:
                channels, _, _ = kernels[-1]
                self.shortcut = layers.Conv(
                    in_channels,
                    channels,
                    1,
                    name="shortcut",
                    stride=max(stride for _, _, stride in kernels),
                    seed=seed,
                )
                self.norm_shortcut = norm_fn(channels, name="norm_shortcut")
            for i, (channels, size, stride) in enumerate(kernels, start=1):
                conv = layers.Conv(
                    in_channels,
                    channels,
                    size,
                    name=f"conv{i}",
                    stride=stride,
                    seed=seed,
                )
                # Starting as the identity lets large batches warm up: arXiv:1706.02677.
                gamma = 0.0 if i == len(kernels) else 1.0
                self.convs.append(conv)
                self.norms.append(
                    norm_fn(channels, name=f"norm{i}", initial_gamma=gamma)
                )
                in_channels = channels

    def __call__(self, x, *, is_training):
        inner = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            inner = folding.conv_norm(conv, norm, inner, is_training=is_training)
            inner = tf.nn.relu(inner)
        branches = [(self.convs[-1], self.norms[-1], inner)]
        if self.shortcut is not None:
            branches.append((self.shortcut, self.norm_shortcut, x))
        y = folding.conv_norm_sum(branches, is_training=is_training)
        return tf.nn.relu(y if self.shortcut is not None else y + x)
