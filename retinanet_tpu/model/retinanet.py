"""The RetinaNet network: returns predictions from images."""

from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf

from retinanet_tpu import errors, replicas, structures
from retinanet_tpu.boxes.box_coder import AnchorOffsets, BoxCoder
from retinanet_tpu.model import (
    heads,
    layers,
    norms,
    quantization,
    variable_paths,
)
from retinanet_tpu.model.backbones import resnet
from retinanet_tpu.model.necks import fpn

_COMPUTE_DTYPES = ("float32", "bfloat16", "float16")


class Backbone(Protocol):
    """A tf.Module named "backbone" that returns features of images, such as a ResNet.

    Attributes:
      channels: The numbers of channels of the features, by level.
    """

    @property
    def channels(self) -> dict[int, int]:
        """Returns the numbers of channels of the features, by level."""
        ...

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, seeds: tf.Tensor | None = None
    ) -> dict[int, tf.Tensor]:
        """Returns the features by level l, [B, ceil(H / 2^l), ceil(W / 2^l), C_l].

        Args:
          x: float [B, H, W, 3], normalized.
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None in inference.
        """
        ...


class Neck(Protocol):
    """A tf.Module that returns the pyramid of features, such as an FPN.

    Attributes:
      levels: The levels of the pyramid, finest first.
      num_channels: The number of channels of every level.
    """

    levels: tuple[int, ...]
    num_channels: int

    def __call__(
        self, features: dict[int, tf.Tensor], *, is_training: bool
    ) -> tuple[tf.Tensor, ...]:
        """Returns the pyramid, [B, ceil(H / 2^l), ceil(W / 2^l), num_channels] each.

        Args:
          features: The features of the backbone, by level.
          is_training: Whether to normalize by the batch's moments.
        """
        ...


# Called with (norm_fn=, seed=).
BackboneFn = Callable[..., Backbone]
# Called with (the backbone's channels, norm_fn=, seed=).
NeckFn = Callable[..., Neck]
# Called with (in_channels, levels, num_classes=, num_anchors=, box_coder=, norm_fn=,
# seed=).
HeadsFn = Callable[..., heads.Heads]


def normalize(
    images: tf.Tensor,
    *,
    mean_rgb: Sequence[float] = (0.485, 0.456, 0.406),
    stddev_rgb: Sequence[float] = (0.229, 0.224, 0.225),
) -> tf.Tensor:
    """Returns float32 (images / 255 - mean_rgb) / stddev_rgb.

    Args:
      images: uint8 or float [..., 3], RGB in 0..255.
      mean_rgb: The mean of the images that trained the backbone, in 0..1.
      stddev_rgb: The standard deviation of these images, in 0..1.
    Source: The defaults are ImageNet's.
    """
    scale = [1 / (255 * stddev) for stddev in stddev_rgb]
    shift = [-mean / stddev for mean, stddev in zip(mean_rgb, stddev_rgb, strict=True)]
    return tf.cast(images, tf.float32) * scale + shift


class RetinaNet(tf.Module):
    """A one-stage detector: a backbone, a feature pyramid and heads.

    Source: arXiv:1708.02002.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_anchors: int = 9,
        box_coder: BoxCoder = AnchorOffsets(),
        backbone_fn: BackboneFn = resnet.ResNet,
        neck_fn: NeckFn = fpn.FPN,
        heads_fn: HeadsFn = heads.Heads,
        norm_fn: norms.NormFn = norms.BatchNorm,
        normalize_fn: layers.NormalizeFn = normalize,
        compute_dtype: str = "float32",
        frozen: Sequence[str] = (),
        quantize_fn: quantization.QuantizeFn | None = None,
        seed: int = 0,
    ):
        """Initializes the network. Call it eagerly, in the strategy's scope.

        Args:
          num_classes: The number of classes, without background.
          num_anchors: The number of anchors in a cell, which is the number of scales
            times that of aspect ratios.
          box_coder: The representation of a box relative to its anchor.
          backbone_fn: Returns the backbone.
          neck_fn: Returns the neck, which makes the feature pyramid.
          heads_fn: Returns the heads.
          norm_fn: Returns a normalization.
          normalize_fn: Returns the backbone's input from pixels in 0..255.
          compute_dtype: The dtype of activations: float32, bfloat16 or float16.
            Variables and moments are float32.
          frozen: The patterns of paths that are not trained, see
            `variable_paths.frozen`.
          quantize_fn: Returns the quantization of the network, which then computes as
            its int8 export does. None computes in compute_dtype.
          seed: The seed of all kernels.
        Raises:
          UserError: compute_dtype is none of the three, or is not float32 in a
            quantized network; or a pattern matches no variable.
        """
        super().__init__("retinanet")
        if compute_dtype not in _COMPUTE_DTYPES:
            raise errors.UserError(
                f"compute_dtype {compute_dtype!r} not in {_COMPUTE_DTYPES}."
            )
        if quantize_fn and compute_dtype != "float32":
            raise errors.UserError(
                f"COMPUTE_DTYPE is {compute_dtype!r}; quantization-aware training "
                "(RetinaNet.quantize_fn) requires 'float32'."
            )
        self.compute_dtype = compute_dtype
        self.frozen = tuple(frozen)
        self.normalize_fn = normalize_fn
        with variable_paths.frozen(frozen):
            self.backbone = backbone_fn(norm_fn=norm_fn, seed=seed)
            self.neck = neck_fn(self.backbone.channels, norm_fn=norm_fn, seed=seed)
            self.heads = heads_fn(
                self.neck.num_channels,
                self.neck.levels,
                num_classes=num_classes,
                num_anchors=num_anchors,
                box_coder=box_coder,
                norm_fn=norm_fn,
                seed=seed,
            )
        self.quantization: quantization.FakeQuantization | None = None
        if quantize_fn:
            side = 2 ** max(self.neck.levels)
            input_spec = tf.TensorSpec([1, side, side, 3])
            self.quantization = quantize_fn(self._infer, input_spec)

    @property
    def weights(self) -> tuple[tf.Variable, ...]:
        """Returns all weights that would be trainable if nothing were frozen."""
        return tuple(
            variable
            for variable in self.variables
            if "/moving_" not in replicas.variable_path(variable)
        )

    def kernels(self) -> list[tf.Variable]:
        """Returns the kernels that are not frozen, which the L2 loss contains."""
        return [
            variable
            for variable in self.trainable_variables
            if replicas.variable_path(variable).endswith("/kernel")
        ]

    def __call__(
        self,
        images: tf.Tensor,
        *,
        is_training: bool,
        seeds: tf.Tensor | None = None,
    ) -> structures.Predictions:
        """Returns the predictions at every anchor.

        Their dtype is compute_dtype in training, else float32.

        Args:
          images: uint8 or float32 [B, H, W, 3], RGB in 0..255. H and W are static.
          is_training: Whether to normalize by the batch's moments.
          seeds: uint32 [B], the seeds of `stochastic_depth`; None keeps all layers.
            A quantized network keeps all layers too.
        """
        x = tf.cast(self.normalize_fn(images), self.compute_dtype)
        if self.quantization:
            return self.quantization(self._infer, x, is_training=is_training)
        features = self.backbone(x, is_training=is_training, seeds=seeds)
        pyramid = self.neck(features, is_training=is_training)
        return self.heads(pyramid, is_training=is_training)

    def _infer(self, x: tf.Tensor) -> structures.Predictions:
        """Returns the predictions of inference from normalized images."""
        features = self.backbone(x, is_training=False)
        return self.heads(self.neck(features, is_training=False), is_training=False)
