"""How gradients move weights.

Every replica holds its own copy of each variable and applies the same reduced gradient
to it, so the copies stay equal and an update needs no word between replicas. Variables
therefore come from `replicas.make_variable`; gradients are reduced before `apply`.
"""

import re
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors, replicas

Schedule = Callable[[tf.Tensor], tf.Tensor]


class SGD:
    """Stochastic gradient descent with momentum: v = m v - lr g; w = w + v."""

    def __init__(
        self, learning_rate: Schedule, *, momentum: float = 0.9, nesterov: bool = False
    ):
        """Keeps the settings; the state lives in slots.

        Args:
          learning_rate: function of the step.
          momentum: how much of the last movement goes on, in [0, 1).
          nesterov: look ahead, w = w + m v - lr g with the new v.
        """
        self.learning_rate = learning_rate
        self._momentum = momentum
        self._nesterov = nesterov

    def create_slots(self, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
        """Makes the velocities, "<path>/momentum"; once, in the strategy's scope."""
        return _make_slots(variables, ["momentum"])

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        slots: dict[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Moves the variables once.

        Args:
          gradients: one for each variable, the same on every replica.
          variables: those that `create_slots` saw, or some of them.
          slots: what `create_slots` returned; assigned too.
          step: int [], updates done so far.
        """
        rate = self.learning_rate(step)
        for gradient, variable in zip(gradients, variables, strict=True):
            slot = slots[f"{replicas.variable_path(variable)}/momentum"]
            push = rate * tf.cast(gradient, tf.float32)
            velocity = self._momentum * slot - push
            slot.assign(velocity)
            if self._nesterov:
                velocity = self._momentum * velocity - push
            variable.assign_add(velocity)


class AdamW:
    """Adam with weight decay apart from the gradient.

    Source: arXiv:1412.6980, algorithm 1, with epsilon as in its section 2;
    arXiv:1711.05101, algorithm 2.
    """

    def __init__(
        self,
        learning_rate: Schedule,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float = 0.004,
        decayed: str = "kernel$",
    ):
        """Keeps the settings; the state lives in slots.

        Args:
          learning_rate: function of the step.
          beta_1: how much of the mean gradient stays, in [0, 1).
          beta_2: how much of the mean squared gradient stays, in [0, 1).
          epsilon: added to the root of the squared mean; Keras's default.
          weight_decay: w shrinks by learning rate * weight_decay a step; Keras's
            default.
          decayed: regular expression found in the paths that shrink. Biases and batch
            norm have nothing to gain from being small.
        """
        self.learning_rate = learning_rate
        self._betas = beta_1, beta_2
        self._epsilon = epsilon
        self._weight_decay = weight_decay
        self._decayed = re.compile(decayed)

    def create_slots(self, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
        """Makes "<path>/momentum" and ".../velocity"; once, in the strategy's scope."""
        return _make_slots(variables, ["momentum", "velocity"])

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        slots: dict[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Moves the variables once.

        Args:
          gradients: one for each variable, the same on every replica.
          variables: those that `create_slots` saw, or some of them.
          slots: what `create_slots` returned; assigned too.
          step: int [], updates done so far.
        """
        rate = self.learning_rate(step)
        count = tf.cast(step, tf.float32) + 1.0
        beta_1, beta_2 = self._betas
        adam_rate = rate * tf.sqrt(1.0 - beta_2**count) / (1.0 - beta_1**count)
        for gradient, variable in zip(gradients, variables, strict=True):
            name = replicas.variable_path(variable)
            gradient = tf.cast(gradient, tf.float32)
            momentum, velocity = slots[f"{name}/momentum"], slots[f"{name}/velocity"]
            mean = momentum + (gradient - momentum) * (1.0 - beta_1)
            square = velocity + (gradient**2 - velocity) * (1.0 - beta_2)
            momentum.assign(mean)
            velocity.assign(square)
            shrunk = tf.convert_to_tensor(variable)
            if self._decayed.search(name):
                shrunk -= rate * self._weight_decay * shrunk
            variable.assign(
                shrunk - adam_rate * mean / (tf.sqrt(square) + self._epsilon)
            )


def clip_by_global_norm(
    gradients: Sequence[tf.Tensor], max_norm: float | None
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Shrinks all gradients by one factor if together they are longer than `max_norm`.

    Args:
      gradients: of any float dtype, reduced over replicas.
      max_norm: above 0, or None to only measure.
    Returns:
      The gradients, and their norm before shrinking, float32 [].
    Raises:
      UserError: max_norm is 0 or less.
    """
    if max_norm is not None and max_norm <= 0:
        raise errors.UserError(f"max_norm must be above 0, or None, got {max_norm}.")
    halves = [tf.nn.l2_loss(tf.cast(gradient, tf.float32)) for gradient in gradients]
    norm = tf.sqrt(2.0 * tf.add_n(halves))
    if max_norm is None:
        return list(gradients), norm
    factor = max_norm / tf.maximum(norm, max_norm)
    return [gradient * tf.cast(factor, gradient.dtype) for gradient in gradients], norm


def _make_slots(variables, names) -> dict[str, tf.Variable]:
    """Makes zeros for each variable and name."""
    paths = [replicas.variable_path(variable) for variable in variables]
    twice = sorted({p for p in paths if paths.count(p) > 1})
    if twice:
        raise errors.UserError(
            f"Variables need names of their own, used twice: {twice}."
        )
    return {
        f"{p}/{name}": replicas.make_variable(
            tf.zeros(variable.shape), name=f"{p}/{name}"
        )
        for p, variable in zip(paths, variables, strict=True)
        for name in names
    }
