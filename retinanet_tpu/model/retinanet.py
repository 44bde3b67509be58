"""RetinaNet: from images to predictions."""

from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors, replicas, structures
from retinanet_tpu.model import fpn, heads, layers
from retinanet_tpu.model.backbones import resnet

_COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


def normalize(
    images: tf.Tensor,
    *,
    mean_rgb: Sequence[float] = (0.485, 0.456, 0.406),
    stddev_rgb: Sequence[float] = (0.229, 0.224, 0.225),
) -> tf.Tensor:
    """Returns float32 (images / 255 - mean_rgb) / stddev_rgb.

    Args:
      images: uint8 or float [..., 3], RGB in 0..255.
      mean_rgb: mean of the images that trained the backbone, in 0..1.
      stddev_rgb: their standard deviation, in 0..1.
    Source: the defaults are ImageNet's.
    """
    scale = [1 / (255 * stddev) for stddev in stddev_rgb]
    shift = [-mean / stddev for mean, stddev in zip(mean_rgb, stddev_rgb, strict=True)]
    return tf.cast(images, tf.float32) * scale + shift


class RetinaNet(tf.Module):
    """A one-stage detector: backbone, feature pyramid, heads.

    Source: arXiv:1708.02002.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_anchors: int = 9,
        backbone_fn: Callable = resnet.ResNet,
        fpn_fn: Callable = fpn.FPN,
        heads_fn: Callable = heads.Heads,
        norm_fn: Callable = layers.BatchNorm,
        normalize_fn: Callable = normalize,
        compute_dtype: str = "float32",
        frozen: Sequence[str] = (),
        seed: int = 0,
    ):
        """Builds the network; eagerly, inside the scope of the strategy.

        Args:
          num_classes: classes to tell apart, background not counted.
          num_anchors: anchors of a cell, as many as the anchors' scales x ratios.
          backbone_fn: makes the backbone from (norm_fn=, seed=).
          fpn_fn: makes the pyramid from (channels by level, norm_fn=, seed=).
          heads_fn: makes the heads from (channels, levels, num_classes=,
            num_anchors=, norm_fn=, seed=).
          norm_fn: makes every normalization, from (num_channels, name=, ...).
          normalize_fn: from pixels in 0..255 to what the backbone expects.
          compute_dtype: of activations: float32, bfloat16 or float16. Variables and
            moments are float32.
          frozen: patterns of paths that stay as they are, see `layers.frozen`.
          seed: of all kernels.
        Raises:
          UserError: compute_dtype is none of the three, or a pattern matches nothing.
        """
        super().__init__("retinanet")
        if compute_dtype not in _COMPUTE_DTYPES:
            raise errors.UserError(
                f"compute_dtype {compute_dtype!r} not in {_COMPUTE_DTYPES}."
            )
        self.compute_dtype = compute_dtype
        self.frozen = tuple(frozen)
        self.normalize_fn = normalize_fn
        make = {"norm_fn": norm_fn, "seed": seed}
        with layers.frozen(frozen):
            self.backbone = backbone_fn(**make)
            self.fpn = fpn_fn(self.backbone.channels, **make)
            self.heads = heads_fn(
                self.fpn.num_channels,
                self.fpn.levels,
                num_classes=num_classes,
                num_anchors=num_anchors,
                **make,
            )

    @property
    def weights(self) -> tuple[tf.Variable, ...]:
        """What training moves by gradients were nothing frozen."""
        return tuple(
            variable
            for variable in self.variables
            if "/moving_" not in replicas.variable_path(variable)
        )

    def kernels(self) -> list[tf.Variable]:
        """Returns the kernels that are not frozen: those that decay."""
        return [
            variable
            for variable in self.trainable_variables
            if replicas.variable_path(variable).endswith("/kernel")
        ]

    def __call__(
        self, images: tf.Tensor, *, is_training: bool
    ) -> structures.Predictions:
        """Returns the predictions at every anchor.

        In training they have compute_dtype, else float32.

        Args:
          images: uint8 or float32 [B, H, W, 3], RGB in 0..255; H and W static.
          is_training: whether to normalize by the batch's moments.
        """
        x = tf.cast(self.normalize_fn(images), self.compute_dtype)
        features = self.backbone(x, is_training=is_training)
        pyramid = self.fpn(features, is_training=is_training)
        return self.heads(pyramid, is_training=is_training)
