"""ResNet v1.5, a backbone."""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import folding, layers

# depth: (numbers of blocks of stages 2 to 5, whether they are bottlenecks)
DEPTHS: dict[int, tuple[tuple[int, ...], bool]] = {
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
    """A residual network: a stem, then stages 2 to 5 with strides of 4 to 32 px.

    By default a bottleneck strides in its 3x3 convolution. The first block of every
    stage projects its shortcut, even if shapes would allow the identity. Published
    weights require the layers that they were trained with, see `pretrained`.

    Source: arXiv:1512.03385; the stride as in v1.5 of public implementations.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        width: int = 64,
        stride_in_1x1: bool = False,
        symmetric_padding: bool = True,
        symmetric_pool_padding: bool = False,
        identity_first_shortcut: bool = False,
        norm_fn: layers.NormFn = layers.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          depth: The depth: 10, 18 or 34 (basic blocks), or 14, 26, 50, 101, 152 or 200
            (bottlenecks).
          width: The number of channels of the stem. Stage s has 2^(s - 2) times as
            many.
          stride_in_1x1: Whether a bottleneck strides in its first 1x1 convolution, as
            in v1, instead of its 3x3 convolution.
          symmetric_padding: Whether convolutions with a stride pad all four sides, as
            in PyTorch. Otherwise they pad like TensorFlow's SAME; see `layers.Conv`.
          symmetric_pool_padding: Whether the stem's pool pads all four sides, as in
            Keras and PyTorch. Otherwise it pads an even side only below or right.
          identity_first_shortcut: Whether the first shortcut of a stage that changes
            no shape is the identity instead of a projection. This is stage 2 of basic
            blocks.
          norm_fn: Returns a normalization from (num_channels, name=, initial_gamma=).
          seed: The seed of the kernels.
        Raises:
          UserError: The depth is none of these.
        """
        super().__init__("backbone")
        if depth not in DEPTHS:
            raise errors.UserError(
                f"ResNet depth {depth} is not one of {sorted(DEPTHS)}."
            )
        stage_blocks, is_bottleneck = DEPTHS[depth]
        self.stride_in_1x1 = stride_in_1x1
        self.symmetric_pool_padding = symmetric_pool_padding
        self.identity_first_shortcut = identity_first_shortcut
        self.stages: list[list[_Block]] = []
        with self.name_scope:
            with tf.name_scope("stem"):
                self.stem_conv = _StemConv(
                    3,
                    width,
                    7,
                    name="conv",
                    stride=2,
                    symmetric_padding=symmetric_padding,
                    seed=seed,
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
                has_projection = not (identity_first_shortcut and is_same)
                with tf.name_scope(f"stage{stage}"):
                    blocks = [
                        _Block(
                            in_channels if i == 1 else out_channels,
                            first if i == 1 else others,
                            has_projection and i == 1,
                            name=f"block{i}",
                            symmetric_padding=symmetric_padding,
                            norm_fn=norm_fn,
                            seed=seed,
                        )
                        for i in range(1, num_blocks + 1)
                    ]
                self.stages.append(blocks)
                in_channels = out_channels

    @property
    def channels(self) -> dict[int, int]:
        """Returns the numbers of channels of the features, by level."""
        outputs = [blocks[-1].convs[-1].kernel.shape[-1] for blocks in self.stages]
        return dict(enumerate(outputs, start=2))

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> dict[int, tf.Tensor]:
        """Returns the features of levels 2 to 5.

        Args:
          x: float [B, H, W, 3], normalized.
          is_training: Whether to normalize by the batch's moments.
          seeds: Unused; a ResNet has no stochastic depth.
        Returns:
          [B, ceil(H / 2^l), ceil(W / 2^l), channels[l]] by level l, in x's dtype.
        """
        x = folding.conv_norm(
            self.stem_conv, self.stem_norm, x, is_training=is_training
        )
        x = tf.nn.relu(x)
        if self.symmetric_pool_padding:
            # Not a padded pool, which XLA does not have. After a ReLU zeros never
            # exceed the maximum.
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        padding = "VALID" if self.symmetric_pool_padding else "SAME"
        x = tf.nn.max_pool2d(x, 3, 2, padding)
        features = {}
        for level, blocks in enumerate(self.stages, start=2):
            for block in blocks:
                x = block(x, is_training=is_training)
            features[level] = x
        return features


class _StemConv(layers.Conv):
    """The 7x7 convolution of stride 2, as a 4x4 convolution over blocks of 2x2 pixels.

    It has the same products and sums, and some zeros. A TPU stores channels in tiles of
    128. With 3 channels it moves 1.5 GB for 8 images of 640 px, with 12 of them 1.2 GB.
    Source: as in the public MLPerf ResNet-50 for TPUs.
    """

    @tf.Module.with_name_scope
    def without_bias(self, x: tf.Tensor) -> tf.Tensor:
        """Returns the convolution of x without the bias."""
        if any(side % 2 for side in x.shape[1:3]):
            return super().without_bias(x)
        *_, in_channels, out_channels = self.kernel.shape
        blocks = tf.concat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1)
        # An eighth row and column: the window begins at an even pixel.
        side, padding = ([1, 0], [2, 1]) if self.symmetric_padding else ([0, 1], [1, 2])
        kernel = tf.pad(self.kernel, [side, side, [0, 0], [0, 0]])
        kernel = tf.reshape(kernel, [4, 2, 4, 2, in_channels, out_channels])
        kernel = tf.transpose(kernel, [0, 2, 1, 3, 4, 5])
        kernel = tf.reshape(kernel, [4, 4, 4 * in_channels, out_channels])
        paddings = [[0, 0], padding, padding, [0, 0]]
        return tf.nn.conv2d(blocks, tf.cast(kernel, x.dtype), 1, paddings)


def _kernels(
    channels: int, stride: int, is_bottleneck: bool, stride_in_1x1: bool
) -> list[tuple[int, int, int]]:
    """Returns (out_channels, kernel_size, stride) of a block's convolutions."""
    if is_bottleneck:
        first, second = (stride, 1) if stride_in_1x1 else (1, stride)
        return [(channels, 1, first), (channels, 3, second), (4 * channels, 1, 1)]
    return [(channels, 3, stride), (channels, 3, 1)]


class _Block(tf.Module):
    """A residual block: convolutions and a shortcut."""

    def __init__(
        self,
        in_channels: int,
        kernels: Sequence[tuple[int, int, int]],
        has_projection: bool,
        *,
        name: str,
        symmetric_padding: bool,
        norm_fn: layers.NormFn,
        seed: int,
    ):
        super().__init__(name)
        self.convs: list[layers.Conv] = []
        self.norms: list[layers.BatchNorm] = []
        self.shortcut: layers.Conv | None = None
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
                    symmetric_padding=symmetric_padding,
                    seed=seed,
                )
                # A block that starts as the identity helps the warm-up of large
                # batches: arXiv:1706.02677.
                gamma = 0.0 if i == len(kernels) else 1.0
                self.convs.append(conv)
                self.norms.append(
                    norm_fn(channels, name=f"norm{i}", initial_gamma=gamma)
                )
                in_channels = channels

    def __call__(self, x: tf.Tensor, *, is_training: bool) -> tf.Tensor:
        """Returns relu(convolutions(x) + shortcut(x))."""
        inner = x
        for conv, norm in zip(self.convs[:-1], self.norms[:-1], strict=True):
            inner = folding.conv_norm(conv, norm, inner, is_training=is_training)
            inner = tf.nn.relu(inner)
        branches = [(self.convs[-1], self.norms[-1], inner)]
        if self.shortcut is not None:
            branches.append((self.shortcut, self.norm_shortcut, x))
        y = folding.conv_norm_sum(branches, is_training=is_training)
        return tf.nn.relu(y if self.shortcut is not None else y + x)
