"""Normalizations of a convolution's output."""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.model import moments

# Returns E[x - center] and E[(x - center)^2] over the batch of this replica, from
# center; all float32 [C].
MomentsFn = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]


class BatchNorm(tf.Module):
    """Batch normalization over the batch of all replicas.

    The moving variance averages the biased variance, which also normalizes, so that it
    does not depend on how a batch is split. A frozen layer, which has an untrainable
    gamma, always normalizes by its moving statistics and does not update them.

    Source: arXiv:1502.03167; moments of all replicas as in MegDet, arXiv:1711.07240.
    """

    def __init__(
        self,
        num_channels: int,
        *,
        name: str,
        momentum: float = 0.997,
        epsilon: float = 1e-4,
        is_synchronized: bool = True,
        initial_gamma: float = 1.0,
    ):
        """Initializes gamma, beta and the moving statistics.

        Args:
          num_channels: The number of channels of the input.
          name: The last part of the layer's path.
          momentum: The decay of the moving statistics.
          epsilon: The number added to the variance.
          is_synchronized: Whether the moments are those of all replicas. If not, each
            replica has its own, and a checkpoint contains the moving statistics of
            the first one.
          initial_gamma: The first value of gamma.
        """
        super().__init__(name)
        self.momentum = momentum
        self.epsilon = epsilon
        self.is_synchronized = is_synchronized

        def make(value: float, name: str, trainable: bool) -> tf.Variable:
            values = np.full(num_channels, value, np.float32)
            return replicas.make_variable(values, name=name, trainable=trainable)

        with self.name_scope:
            self.gamma = make(initial_gamma, "gamma", True)
            self.beta = make(0, "beta", True)
            self.moving_mean = make(0, "moving_mean", False)
            self.moving_variance = make(1, "moving_variance", False)

    @tf.Module.with_name_scope
    def __call__(
        self, x: tf.Tensor, *, is_training: bool, bias: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns x + bias normalized, in x's dtype. Training updates the statistics.

        Args:
          x: float [..., C].
          is_training: Whether to normalize by the batch's moments.
          bias: float32 [C], the bias of the layer before. None means 0.
        """
        # XLA fuses the cast: in memory x keeps its dtype.
        x32 = tf.cast(x, tf.float32)
        if self.uses_batch(is_training) and replicas.runs_cpu_kernels():
            return tf.cast(self._run_cpu_kernel(x32, bias), x.dtype)
        scale, shift = self.affine(
            lambda center: moments.about(center, x32), is_training, bias
        )
        return tf.cast(x32 * scale + shift, x.dtype)

    def uses_batch(self, is_training: bool) -> bool:
        """Returns True for the batch's moments, False for the moving statistics."""
        return is_training and self.gamma.trainable

    def affine(
        self, moments_fn: MomentsFn, is_training: bool, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale and shift, float32 [C]. Training updates the statistics.

        Args:
          moments_fn: Returns the moments of the layer's input without the bias.
          is_training: Whether to normalize by the batch's moments.
          bias: float32 [C], see `__call__`. The batch's mean contains it, so it cancels
            and its gradient is 0. Added to the shift, not to x, it costs nothing.
        """
        if self.uses_batch(is_training):
            center = self.moving_mean if bias is None else self.moving_mean - bias
            center = tf.stop_gradient(center)
            mean, mean_square = moments_fn(center)
            if self.is_synchronized:
                both = replicas.cross_replica_mean(tf.stack([mean, mean_square]))
                mean, mean_square = tf.unstack(both)
            variance = tf.maximum(mean_square - tf.square(mean), 0)
            mean += center if bias is None else center + bias
            self._move_statistics(mean, variance)
        else:
            mean, variance = self.moving_mean, self.moving_variance
        scale = self.gamma * tf.math.rsqrt(variance + self.epsilon)
        mean = mean if bias is None else mean - bias
        return scale, self.beta - mean * scale

    def _run_cpu_kernel(self, x32: tf.Tensor, bias: tf.Tensor | None) -> tf.Tensor:
        """Normalizes by the moments of x in one pass, and its gradient in one.

        Without XLA, which fuses operations, each operation of `affine` reads and writes
        an array of the size of x.
        """
        num_channels = x32.shape[-1]
        # The mean contains the bias, which cancels: its gradient is 0, not None.
        beta = self.beta if bias is None else self.beta + 0.0 * bias
        results = tf.raw_ops.FusedBatchNormV3(
            x=x32 if x32.shape.rank == 4 else tf.reshape(x32, [-1, 1, 1, num_channels]),
            scale=self.gamma,
            offset=beta,
            mean=tf.zeros([0]),
            variance=tf.zeros([0]),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(x32) // num_channels, tf.float32)
        mean = results.batch_mean if bias is None else results.batch_mean + bias
        # The kernel divides by count - 1.
        biased = results.batch_variance * tf.maximum(count - 1, 1) / count
        self._move_statistics(mean, biased)
        return tf.reshape(results.y, tf.shape(x32))

    def _move_statistics(self, mean: tf.Tensor, variance: tf.Tensor) -> None:
        """Moves the moving statistics towards those of a batch."""
        for statistic, value in (
            (self.moving_mean, mean),
            (self.moving_variance, variance),
        ):
            statistic.assign_sub((1 - self.momentum) * (statistic - value))


class NoNorm(tf.Module):
    """A layer in the place of a normalization that only adds the bias.

    Detectors of others have necks and heads without normalization.
    """

    def __init__(self, num_channels: int, *, name: str, initial_gamma: float = 1.0):
        """Makes no variables.

        Args:
          num_channels: Unused.
          name: The last part of the layer's path.
          initial_gamma: Unused.
        """
        super().__init__(name)

    def __call__(
        self, x: tf.Tensor, *, is_training: bool, bias: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Returns x + bias, in x's dtype.

        Args:
          x: float [..., C].
          is_training: Unused.
          bias: float32 [C], the bias of the layer before. None means 0.
        """
        return x if bias is None else x + tf.cast(bias, x.dtype)

    def uses_batch(self, is_training: bool) -> bool:
        """Returns False, because there are no moments."""
        return False

    def affine(
        self, moments_fn: MomentsFn, is_training: bool, bias: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scale 1 and the bias as shift; see `BatchNorm.affine`."""
        return tf.ones([]), tf.zeros([]) if bias is None else tf.identity(bias)


Norm = BatchNorm | NoNorm
# The parts of a network get this function as norm_fn and call it with
# (num_channels, name=) or (num_channels, name=, initial_gamma=).
NormFn = Callable[..., Norm]
