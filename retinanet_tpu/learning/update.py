"""Updates the weights from the gradients."""

from collections.abc import Mapping, Sequence

import tensorflow as tf

from retinanet_tpu.learning import averaging, optimizers
from retinanet_tpu.learning.loss_scale import DynamicLossScale


class WeightUpdate:
    """The weight update: loss scale, gradient clipping, optimizer and weight average.

    Each replica makes the same update, from gradients that were reduced before, so that
    the update does not depend on the number of replicas.

    Attributes:
      variables: The variables that a checkpoint must contain besides the network's, by
        name.
      learning_rate: The learning rate as a function of the step.
      statistics: The network's variables that the forward pass may assign, such as
        moving means. Empty without a loss scale, because then no step is skipped.
    """

    def __init__(
        self,
        network: tf.Module,
        *,
        # Not the protocol: gin checks the setting against these classes.
        optimizer: optimizers.SGD | optimizers.AdamW,
        max_gradient_norm: float | None = None,
        averaging_decay: float | None = None,
        loss_scale: DynamicLossScale | None = None,
    ):
        """Initializes slots and averages. Call it in the strategy's scope.

        Args:
          network: The network, with `variables` and `trainable_variables`.
          optimizer: The optimizer.
          max_gradient_norm: The largest global norm of the gradients. None does not
            clip.
          averaging_decay: The decay of the moving average of all variables, including
            those of batch normalization. The averages are evaluated and exported
            instead of the weights. None means no averages.
          loss_scale: The loss scale that float16 needs.
        """
        self._optimizer = optimizer
        self._loss_scale = loss_scale
        self.learning_rate = optimizer.learning_rate
        self._max_norm = max_gradient_norm
        self._decay = averaging_decay
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
        """Returns True if the loss is scaled, which float16 needs."""
        return self._loss_scale is not None

    def scale(self, loss: tf.Tensor) -> tf.Tensor:
        """Returns the loss to differentiate: scaled if there is a loss scale."""
        return self._loss_scale.scale(loss) if self._loss_scale else loss

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        step: tf.Tensor,
        *,
        statistics_before: Sequence[tf.Tensor] = (),
    ) -> Mapping[str, tf.Tensor]:
        """Updates all variables from the mean of the gradients over replicas.

        Args:
          gradients: The gradients of the scaled loss, in the order of the trainable
            variables.
          step: int64 [], the number of steps trained before this one.
          statistics_before: The values of `statistics` before the forward pass. A
            skipped step restores them.
        Returns:
          The scalars to log: the global norm before clipping, and the learning rate.
        """
        # The rate of the next step: the log shows it beside the step after this update.
        rate = {"learning-rate": self.learning_rate(step + 1)}
        if self._loss_scale is None:
            return {"gradient-norm": self._apply(gradients, step)} | rate
        gradients, is_finite = self._loss_scale.unscale(gradients)
        norm = tf.cond(
            is_finite,
            lambda: self._apply(gradients, step),
            # An overflow skips the step, and the scale shrinks.
            lambda: self._skip(statistics_before),
        )
        self._loss_scale.update(is_finite)
        return {"gradient-norm": norm} | rate

    def _apply(self, gradients: Sequence[tf.Tensor], step: tf.Tensor) -> tf.Tensor:
        """Updates the weights and averages, and returns the norm of the gradients."""
        gradients, norm = optimizers.clip_by_global_norm(gradients, self._max_norm)
        self._optimizer.apply(gradients, self._weights, self._slots, step)
        if self._decay:
            averages = list(self._averages.values())
            averaging.update(averages, self._averaged, step, decay=self._decay)
        return norm

    def _skip(self, statistics_before: Sequence[tf.Tensor]) -> tf.Tensor:
        """Restores the statistics, and returns a norm of 0."""
        # The forward pass with the overflow assigned them, perhaps infinity.
        for variable, value in zip(self.statistics, statistics_before, strict=False):
            variable.assign(value)
        return tf.zeros([])
