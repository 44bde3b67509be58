"""What happens to the weights once the gradients are known."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from retinanet_tpu.learning import averaging, loss_scale as loss_scale_lib, optimizers


class WeightUpdate:
    """Scales the loss, clips gradients, applies the optimizer, averages the weights.

    All of it happens alike on every replica, after the gradients were reduced, so that
    the update does not depend on how many replicas there are.

    Attributes:
      variables: all that a checkpoint must hold beside the network, by name.
      learning_rate: step -> rate.
      statistics: The network's variables that the forward pass may assign, such as
        moving means. Empty without a loss scale, for then no step is skipped.
    """

    def __init__(
        self,
        network: tf.Module,
        *,
        optimizer: optimizers.SGD | optimizers.AdamW,
        max_gradient_norm: float | None = None,
        averaging_decay: float | None = None,
        loss_scale: loss_scale_lib.DynamicLossScale | None = None,
    ):
        """Makes slots and averages; call it inside the strategy's scope.

        Args:
          network: has `variables` and `trainable_variables`.
          optimizer: see learning/optimizers.py.
          max_gradient_norm: bound of the global norm; None does not clip.
          averaging_decay: of the moving average of all variables, batch norm's
            included, that is evaluated and exported instead of the weights; None for
            no average.
          loss_scale: for float16.
        """
        self._optimizer, self._loss_scale = optimizer, loss_scale
        self.learning_rate = optimizer.learning_rate
        self._max_norm, self._decay = max_gradient_norm, averaging_decay
        self._weights = list(network.trainable_variables)
        trained = {variable.ref() for variable in self._weights}
        others = [v for v in network.variables if v.ref() not in trained]
        self.statistics = others if loss_scale else []
        self._slots = optimizer.create_slots(self._weights)
        self._averaged = list(network.variables) if averaging_decay else []
        self._averages = averaging.create_averages(self._averaged)
        self.variables = {f"slots/{name}": v for name, v in self._slots.items()}
        self.variables |= {f"averages/{name}": v for name, v in self._averages.items()}
        if loss_scale:
            self.variables |= loss_scale.variables

    @property
    def has_loss_scale(self) -> bool:
        """Whether the loss is scaled, as float16 needs it."""
        return self._loss_scale is not None

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate, scaled up where float16 needs it."""
        return self._loss_scale.scale(loss) if self._loss_scale else loss

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        step: tf.Tensor,
        *,
        statistics_before: Sequence[tf.Tensor] = (),
    ) -> Mapping[str, tf.Tensor]:
        """Updates all variables from the gradients' mean over replicas.

        Args:
          gradients: of the scaled loss, parallel to the trainable variables.
          step: int64, steps trained before this one.
          statistics_before: The values of `statistics` before the forward pass. A
            skipped step restores them.
        Returns:
          Scalars to log: the global norm before clipping, and the learning rate.
        """
        # The rate of the step to come, as the global step beside it in the log says.
        rate = {"learning-rate": self.learning_rate(step + 1)}
        if self._loss_scale is None:
            return {"gradient-norm": self._apply(gradients, step)} | rate
        gradients, is_finite = self._loss_scale.unscale(gradients)
        norm = tf.cond(
            is_finite,
            lambda: self._apply(gradients, step),
            # An overflow skips the step; the scale goes down.
            lambda: self._skip(statistics_before),
        )
        self._loss_scale.update(is_finite)
        return {"gradient-norm": norm} | rate

    def _apply(self, gradients, step):
        gradients, norm = optimizers.clip_by_global_norm(gradients, self._max_norm)
        self._optimizer.apply(gradients, self._weights, self._slots, step)
        if self._averages:
            averages = list(self._averages.values())
            averaging.update(averages, self._averaged, step, decay=self._decay)
        return norm

    def _skip(self, statistics_before):
        # The forward pass that overflowed has moved them, perhaps to infinity.
        for variable, value in zip(self.statistics, statistics_before, strict=False):
            variable.assign(value)
        return tf.zeros([])
