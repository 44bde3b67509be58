"""Balanced features: adds the mean of all levels to every level of a pyramid."""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import errors
from retinanet_tpu.model import norms, retinanet
from retinanet_tpu.model.necks import fpn


class BalancedFeatures(tf.Module):
    """A neck that adds the mean of all levels to every level of another neck.

    The mean is that of all levels, resized to one of them. Finer levels are max pooled,
    and pixels of coarser ones are repeated. The layer has no weights, so the paths of
    the variables are those of the other neck.

    Source: Libra R-CNN, arXiv:1904.02701, section 3.2, without its refinement.
    """

    def __init__(
        self,
        channels: dict[int, int],
        *,
        neck_fn: retinanet.NeckFn = fpn.FPN,
        level: int = 4,
        norm_fn: norms.NormFn = norms.BatchNorm,
        seed: int = 0,
    ):
        """Initializes the other neck.

        Args:
          channels: The numbers of channels of the backbone's features, by level.
          neck_fn: Returns the other neck.
          level: The level of the mean. The default is the second one of P3 to P7.
          norm_fn: Returns a normalization from (num_channels, name=).
          seed: The seed of the kernels.
        Raises:
          UserError: The other neck does not have the level.
        """
        super().__init__("balanced")
        self.neck = neck_fn(channels, norm_fn=norm_fn, seed=seed)
        self.levels = self.neck.levels
        self.num_channels = self.neck.num_channels
        if level not in self.levels:
            raise errors.UserError(
                f"BalancedFeatures.level {level} is not one of the neck's levels"
                f" {list(self.levels)}."
            )
        self.index = self.levels.index(level)

    def __call__(
        self, features: dict[int, tf.Tensor], *, is_training: bool
    ) -> tuple[tf.Tensor, ...]:
        """Returns the pyramid, finest level first.

        Args:
          features: The features of the backbone, by level.
          is_training: Whether to normalize by the batch's moments.
        Returns:
          float [B, ceil(H / 2^l), ceil(W / 2^l), num_channels] for each level l.
        """
        pyramid = self.neck(features, is_training=is_training)
        sizes = [x.shape[1:3] for x in pyramid]
        resized = [_resize(x, i, self.index, sizes) for i, x in enumerate(pyramid)]
        total = resized[0]
        for x in resized[1:]:
            total += x
        mean = total * (1 / len(pyramid))
        return tuple(
            x + _resize(mean, self.index, i, sizes) for i, x in enumerate(pyramid)
        )


def _resize(
    x: tf.Tensor, source: int, target: int, sizes: Sequence[tuple[int, int]]
) -> tf.Tensor:
    """Returns features of one level with the size of another."""
    for i in reversed(range(target, source)):
        x = fpn.upsample(x, sizes[i])
    for _ in range(source, target):
        x = tf.nn.max_pool2d(x, 2, 2, "SAME")
    return x
