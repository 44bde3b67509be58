"""Group normalization."""

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.model import norms


class GroupNorm(tf.Module):
    """Normalization of each image by the moments of groups of its channels.

    It is for necks and heads. `folding` requires moments of the batch, so a ResNet
    cannot have it.

    Source: arXiv:1803.08494.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        name: str,
        num_groups: int = 32,
        epsilon: float = 1e-5,
        initial_gamma: float = 1.0,
    ):
        """Initializes gamma and beta.

        Args:
          num_channels: The number of channels of the input.
          name: The last part of the layer's path.
          num_groups: The number of groups; num_channels is a multiple of it.
          epsilon: The number added to the variance.
          initial_gamma: The first value of gamma.
        Raises:
          UserError: num_channels is not a multiple of num_groups.
        """
        super().__init__(name)
        if num_channels % num_groups:
            raise errors.UserError(
                f"GroupNorm has {num_channels} channels, which is no multiple of its "
                f"{num_groups} groups; set GroupNorm.num_groups."
            )
        self.num_groups = num_groups
        self.epsilon = epsilon
        with self.name_scope:
            gamma = np.full(num_channels, initial_gamma, np.float32)
            self.gamma = replicas.make_variable(gamma, name="gamma", trainable=True)
            beta = np.zeros(num_channels, np.float32)
            self.beta = replicas.make_variable(beta, name="beta", trainable=True)

    @tf.Module.with_name_scope
    def __call__(
        self, x: tf.Tensor, *, is_training: bool, bias: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns x + bias normalized, in x's dtype.

        Args:
          x: float [B, H, W, C], with static H, W and C.
          is_training: Unused.
          bias: float32 [C], the bias of the layer before. None means 0.
        """
        x32 = tf.cast(x, tf.float32)
        if bias is not None:
            x32 += bias
        _, height, width, num_channels = x.shape
        size = num_channels // self.num_groups
        groups = tf.reshape(x32, [-1, height * width, self.num_groups, size])
        mean = tf.reduce_mean(groups, [1, 3], keepdims=True)
        variance = tf.reduce_mean(
            tf.math.squared_difference(groups, mean), [1, 3], keepdims=True
        )
        groups = (groups - mean) * tf.math.rsqrt(variance + self.epsilon)
        y = tf.reshape(groups, [-1, height, width, num_channels])
        return tf.cast(y * self.gamma + self.beta, x.dtype)

    def uses_batch(self, is_training: bool) -> bool:
        """Returns False, because the moments are those of an image."""
        return False

    def affine(
        self,
        moments_fn: norms.MomentsFn,
        is_training: bool,
        bias: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Raises UserError, because scale and shift differ between images."""
        raise errors.UserError(
            "GroupNorm cannot be folded into a convolution, which a ResNet requires; "
            "set FPN.own_norm_fn or Heads.own_norm_fn, not RetinaNet.norm_fn."
        )
