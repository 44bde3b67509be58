"""Scales the loss so that float16 gradients neither underflow nor overflow."""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import errors, replicas


class DynamicLossScale:
    """A factor of the loss that grows until gradients overflow, then shrinks.

    Source: Mixed Precision Training, arXiv:1710.03740, section 3.2; the schedule of
    tf.keras's LossScaleOptimizer.
    """

    def __init__(
        self,
        *,
        initial: float = 2.0**15,
        growth_interval: int = 2000,
        factor: float = 2.0,
    ):
        """Initializes the variables. Call it once, in the strategy's scope.

        Args:
          initial: The first scale, >= 1.
          growth_interval: The number of consecutive finite steps after which the scale
            grows.
          factor: The factor by which the scale grows and shrinks, above 1.
        Raises:
          UserError: A setting is out of its range.
        """
        if initial < 1 or growth_interval < 1 or factor <= 1:
            raise errors.UserError(
                "DynamicLossScale needs initial >= 1, growth_interval >= 1 and "
                f"factor > 1; got {initial}, {growth_interval}, {factor}."
            )
        self._growth_interval = growth_interval
        self._factor = factor
        self._scale = replicas.make_variable(
            tf.constant(initial, tf.float32), name="loss_scale/scale"
        )
        self._num_finite = replicas.make_variable(
            tf.constant(0, tf.int64), name="loss_scale/num_finite"
        )

    @property
    def variables(self) -> dict[str, tf.Variable]:
        """Returns the state for a checkpoint, by path."""
        return {replicas.variable_path(v): v for v in (self._scale, self._num_finite)}

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the scaled loss, float32 []."""
        return tf.cast(loss, tf.float32) * self._scale

    def unscale(
        self, gradients: Sequence[tf.Tensor]
    ) -> tuple[list[tf.Tensor], tf.Tensor]:
        """Returns the unscaled gradients, float32, and whether all are finite, bool [].

        Args:
          gradients: The gradients of the scaled loss, already reduced over replicas, so
            that all replicas get the same result.
        """
        inverse = 1.0 / self._scale
        gradients = [tf.cast(gradient, tf.float32) * inverse for gradient in gradients]
        is_finite = [
            tf.reduce_all(tf.math.is_finite(gradient)) for gradient in gradients
        ]
        return gradients, tf.reduce_all(tf.stack(is_finite))

    def update(self, is_finite: tf.Tensor) -> None:
        """Updates the scale after a step. The caller skips a step that is not finite.

        Args:
          is_finite: bool [], whether all gradients were finite, as `unscale` returns.
        """
        is_due = is_finite & (self._num_finite + 1 >= self._growth_interval)
        larger = self._scale * self._factor
        larger = tf.where(tf.math.is_finite(larger), larger, self._scale)
        smaller = tf.maximum(self._scale / self._factor, 1.0)
        scale = tf.where(is_due, larger, tf.where(is_finite, self._scale, smaller))
        num_finite = tf.where(is_finite & ~is_due, self._num_finite + 1, 0)
        self._scale.assign(scale)
        self._num_finite.assign(num_finite)
