"""ResNet v1.5 and ResNeXt, backbones."""

import itertools
from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import activations, folding, norms
from retinanet_tpu.model.backbones import residual_block, stem_conv

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
    weights require the layers that they were trained with, see `model/pretrained`.
    ResNeXt-50 32x4d is depth 50 with 32 groups of width 4.

    Source: arXiv:1512.03385; the stride as in v1.5 of public implementations; groups
    from ResNeXt, arXiv:1611.05431; other activations and stochastic depth from
    RetinaNet-RS, arXiv:2107.00057, section 3.
    """

    def __init__(
        self,
        *,
        depth: int = 50,
        width: int = 64,
        num_groups: int = 1,
        group_width: int = 64,
        stride_in_1x1: bool = False,
        symmetric_padding: bool = True,
        symmetric_pool_padding: bool = False,
        identity_first_shortcut: bool = False,
        activation_fn: activations.ActivationFn = activations.relu,
        drop_rate: float = 0.0,
        frozen_image_by_image: bool = False,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the layers.

        Args:
          depth: The depth: 10, 18 or 34 (basic blocks), or 14, 26, 50, 101, 152 or 200
            (bottlenecks).
          width: The number of channels of the stem. Stage s has 2^(s - 2) times as
            many.
          num_groups: The number of groups of channels in the 3x3 convolution of a
            bottleneck.
          group_width: The number of channels of each group in stage 2 if width is 64.
            It is proportional to width, and doubles with every stage.
          stride_in_1x1: Whether a bottleneck strides in its first 1x1 convolution, as
            in v1, instead of its 3x3 convolution.
          symmetric_padding: Whether convolutions with a stride pad all four sides, as
            in PyTorch. Otherwise they pad like TensorFlow's SAME; see `layers.Conv`.
          symmetric_pool_padding: Whether the stem's pool pads all four sides, as in
            Keras and PyTorch. Otherwise it pads an even side only below or right.
          identity_first_shortcut: Whether the first shortcut of a stage that changes
            no shape is the identity instead of a projection. This is stage 2 of basic
            blocks.
          activation_fn: The activation of all layers. Published weights require ReLU.
          drop_rate: The probability of stochastic depth in the last block; it rises
            linearly from 0 at the stem.
          frozen_image_by_image: Whether training runs the frozen first layers in a
            loop over the images. It moves fewer bytes on TPU v4, v5e and v6e, which
            keep the maps of one image on the chip, and more on v3 and v5p.
          norm_fn: Returns a normalization from (num_channels, name=, initial_gamma=).
          seed: The seed of the kernels.
        Raises:
          UserError: The depth is none of these, or has no bottlenecks and there are
            groups.
        """
        super().__init__("backbone")
        stage_blocks, is_bottleneck = _checked_stages(depth, num_groups, group_width)
        self.stride_in_1x1 = stride_in_1x1
        self.symmetric_pool_padding = symmetric_pool_padding
        self.identity_first_shortcut = identity_first_shortcut
        self.frozen_image_by_image = frozen_image_by_image
        self.activation_fn = activation_fn
        self.stages: list[list[residual_block.ResidualBlock]] = []
        with self.name_scope:
            with tf.name_scope("stem"):
                self.stem_conv = stem_conv.StemConv(
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
            index = 0  # The number of blocks before this one.
            for stage, num_blocks in enumerate(stage_blocks, start=2):
                channels = width * 2 ** (stage - 2)
                stride = 1 if stage == 2 else 2
                if is_bottleneck:
                    groups = num_groups, channels * group_width // 64
                    first = _bottleneck(channels, stride, *groups, stride_in_1x1)
                    others = _bottleneck(channels, 1, *groups, stride_in_1x1)
                else:
                    first, others = _basic(channels, stride), _basic(channels, 1)
                out_channels = first[-1].channels
                is_same = stride == 1 and in_channels == out_channels
                has_projection = not (identity_first_shortcut and is_same)
                with tf.name_scope(f"stage{stage}"):
                    blocks = [
                        residual_block.ResidualBlock(
                            in_channels if i == 1 else out_channels,
                            first if i == 1 else others,
                            name=f"block{i}",
                            has_projection=has_projection and i == 1,
                            symmetric_padding=symmetric_padding,
                            activation_fn=activation_fn,
                            drop_rate=drop_rate * (index + i) / sum(stage_blocks),
                            index=index + i,
                            # A block that starts as the identity helps the warm-up of
                            # large batches: arXiv:1706.02677.
                            last_gamma=0.0,
                            norm_fn=norm_fn,
                            seed=seed,
                        )
                        for i in range(1, num_blocks + 1)
                    ]
                self.stages.append(blocks)
                in_channels = out_channels
                index += num_blocks

    @property
    def channels(self) -> dict[int, int]:
        """Returns the numbers of channels of the features, by level."""
        outputs = [blocks[-1].out_channels for blocks in self.stages]
        return dict(enumerate(outputs, start=2))

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> dict[int, tf.Tensor]:
        """Returns the features of levels 2 to 5.

        Args:
          x: float [B, H, W, 3], normalized.
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None drops nothing.
        Returns:
          [B, ceil(H / 2^l), ceil(W / 2^l), channels[l]] by level l, in x's dtype.
        """
        levels = range(1, 2 + len(self.stages))
        frozen = self._frozen_levels() if is_training else []
        features = {}
        if self.frozen_image_by_image and frozen:
            features = self._run_image_by_image(x, frozen, seeds)
            x, levels = features[frozen[-1]], levels[len(frozen) :]
        features |= self._run(x, levels, is_training, seeds)
        return {level: features[level] for level in self.channels}

    def _run(
        self,
        x: tf.Tensor,
        levels: Sequence[int],
        is_training: bool,
        seeds: tf.Tensor | None = None,
    ) -> dict[int, tf.Tensor]:
        """Returns the features of consecutive levels; level 1 is the pooled stem."""
        features = {}
        for level in levels:
            if level == 1:
                x = self._run_stem(x, is_training)
            else:
                for block in self.stages[level - 2]:
                    x = block(x, is_training=is_training, seeds=seeds)
            features[level] = x
        return features

    def _run_image_by_image(
        self, x: tf.Tensor, levels: Sequence[int], seeds: tf.Tensor | None
    ) -> dict[int, tf.Tensor]:
        """Returns the same as `_run` in training, from a loop over the images.

        The maps of one image fit into the on-chip memory of some TPUs, those of a
        batch do not. There is no backward pass that needs them.
        """

        def run_one(inputs: list[tf.Tensor]) -> dict[int, tf.Tensor]:
            image, *seed = [tensor[None] for tensor in inputs]
            features = self._run(image, levels, True, *seed)
            return {level: y[0] for level, y in features.items()}

        channels = {1: self.stem_conv.kernel.shape[-1], **self.channels}
        specs = {}
        for level in levels:
            stride = 2 ** max(2, level)
            height, width = (-(-side // stride) for side in x.shape[1:3])
            specs[level] = tf.TensorSpec([height, width, channels[level]], x.dtype)
        inputs = [x] if seeds is None else [x, seeds]
        return tf.map_fn(run_one, inputs, fn_output_signature=specs)

    def _run_stem(self, x: tf.Tensor, is_training: bool) -> tf.Tensor:
        x = folding.conv_norm(
            self.stem_conv, self.stem_norm, x, is_training=is_training
        )
        x = self.activation_fn(x)
        if self.symmetric_pool_padding:
            # Not a padded pool, which XLA does not have. After a ReLU zeros never
            # exceed the maximum; after a SiLU they may, by less than 0.28.
            x = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        padding = "VALID" if self.symmetric_pool_padding else "SAME"
        return tf.nn.max_pool2d(x, 3, 2, padding)

    def _frozen_levels(self) -> list[int]:
        """Returns the first levels, up to the first one with a trainable variable."""
        stem = [self.stem_conv, self.stem_norm]
        modules = dict(enumerate([stem, *self.stages], start=1))

        def is_frozen(level: int) -> bool:
            return not any(module.trainable_variables for module in modules[level])

        return list(itertools.takewhile(is_frozen, modules))


def _checked_stages(
    depth: int, num_groups: int, group_width: int
) -> tuple[tuple[int, ...], bool]:
    """Returns the numbers of blocks, and whether they are bottlenecks."""
    if depth not in DEPTHS:
        raise errors.UserError(f"ResNet depth {depth} is not one of {sorted(DEPTHS)}.")
    stage_blocks, is_bottleneck = DEPTHS[depth]
    if (num_groups, group_width) != (1, 64) and not is_bottleneck:
        raise errors.UserError(
            f"ResNet.num_groups is {num_groups} and group_width {group_width}, but"
            f" ResNet-{depth} has no bottlenecks; set 1 and 64, or a depth of 14,"
            " 26 or at least 50."
        )
    return stage_blocks, is_bottleneck


def _basic(channels: int, stride: int) -> list[residual_block.Kernel]:
    """Returns the convolutions of a basic block."""
    kernel = residual_block.Kernel
    return [kernel(channels, 3, stride), kernel(channels, 3)]


def _bottleneck(
    channels: int, stride: int, num_groups: int, group_width: int, stride_in_1x1: bool
) -> list[residual_block.Kernel]:
    """Returns the convolutions of a bottleneck."""
    kernel = residual_block.Kernel
    first, second = (stride, 1) if stride_in_1x1 else (1, stride)
    inner = num_groups * group_width
    return [
        kernel(inner, 1, first),
        kernel(inner, 3, second, num_groups),
        kernel(4 * channels, 1),
    ]
