"""Optimizers: update rules of the weights.

Every replica has its own copy of each variable and applies the same reduced gradient to
it. So the copies stay equal, and an update needs no communication between replicas.
Variables must be made by `replicas.make_variable`, and gradients must be reduced before
`apply`.
"""

import re
import types
from collections.abc import Mapping, Sequence
from typing import Protocol

import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.learning import schedules


class Optimizer(Protocol):
    """An update rule that keeps its state in slots, variables beside the weights.

    Attributes:
      learning_rate: The learning rate as a function of the step.
    """

    learning_rate: schedules.ScheduleFn

    def create_slots(self, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
        """Returns the slots by path. Call it once, in the strategy's scope.

        Args:
          variables: The variables that are to be updated.
        Raises:
          UserError: Two variables have the same path.
        """
        ...

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        slots: Mapping[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Updates the variables and slots once.

        Args:
          gradients: The gradient of each variable, equal on all replicas.
          variables: The variables to update, some or all of those with slots.
          slots: The slots that `create_slots` returned.
          step: int [], the number of updates before this one.
        """
        ...


class SGD(Optimizer):
    """Stochastic gradient descent with momentum: v = m v - lr g; w = w + v."""

    def __init__(
        self,
        learning_rate: schedules.ScheduleFn,
        *,
        momentum: float = 0.9,
        nesterov: bool = False,
        rate_factors: Mapping[str, float] = types.MappingProxyType({}),
    ):
        """Initializes the optimizer; its state is in the slots.

        Args:
          learning_rate: The learning rate as a function of the step.
          momentum: The factor of the last velocity, in [0, 1).
          nesterov: Whether to use Nesterov's momentum: w = w + m v - lr g with the new
            v.
          rate_factors: Factors of the learning rate, see `rate_factor`.
        """
        self.learning_rate = learning_rate
        self._momentum = momentum
        self._nesterov = nesterov
        self._rate_factors = rate_factors

    def create_slots(self, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
        """Returns the velocities as "<path>/momentum", see `Optimizer`."""
        _check_patterns(self._rate_factors, variables)
        return _make_slots(variables, ["momentum"])

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        slots: Mapping[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Updates the variables once, see `Optimizer.apply`."""
        rate = self.learning_rate(step)
        for gradient, variable in zip(gradients, variables, strict=True):
            name = replicas.variable_path(variable)
            # One operation, as in AdamW.
            tf.raw_ops.ResourceApplyKerasMomentum(
                var=replicas.resource(variable),
                accum=replicas.resource(slots[f"{name}/momentum"]),
                lr=rate * rate_factor(name, self._rate_factors),
                grad=tf.cast(gradient, tf.float32),
                momentum=self._momentum,
                use_nesterov=self._nesterov,
            )


class AdamW(Optimizer):
    """Adam with weight decay that is separate from the gradient.

    Source: arXiv:1412.6980, algorithm 1, with epsilon as in its section 2;
    arXiv:1711.05101, algorithm 2.
    """

    def __init__(
        self,
        learning_rate: schedules.ScheduleFn,
        *,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float = 0.004,
        decayed: str = "kernel$",
        rate_factors: Mapping[str, float] = types.MappingProxyType({}),
    ):
        """Initializes the optimizer; its state is in the slots.

        Args:
          learning_rate: The learning rate as a function of the step.
          beta_1: The decay of the mean gradient, in [0, 1).
          beta_2: The decay of the mean squared gradient, in [0, 1).
          epsilon: The number added to the root of the mean square. The default is
            Keras's.
          weight_decay: The part of a weight, times the learning rate, that is
            subtracted at each step. The default is Keras's.
          decayed: The regular expression that is searched for in the paths of variables
            to find those that decay. Decay does not help biases and batch
            normalization.
          rate_factors: Factors of the learning rate, and so of the decay, see
            `rate_factor`.
        """
        self.learning_rate = learning_rate
        self._betas = (beta_1, beta_2)
        self._epsilon = epsilon
        self._weight_decay = weight_decay
        self._decayed = re.compile(decayed)
        self._rate_factors = rate_factors

    def create_slots(self, variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
        """Returns the moments as "<path>/momentum" and "<path>/velocity"."""
        _check_patterns(self._rate_factors, variables)
        return _make_slots(variables, ["momentum", "velocity"])

    def apply(
        self,
        gradients: Sequence[tf.Tensor],
        variables: Sequence[tf.Variable],
        slots: Mapping[str, tf.Variable],
        step: tf.Tensor,
    ) -> None:
        """Updates the variables once, see `Optimizer.apply`."""
        count = tf.cast(step, tf.float32) + 1.0
        # Shared by all variables, because tracing takes a millisecond per operation.
        betas = {
            "beta1_power": self._betas[0] ** count,
            "beta2_power": self._betas[1] ** count,
            "beta1": tf.constant(self._betas[0]),
            "beta2": tf.constant(self._betas[1]),
            "epsilon": tf.constant(self._epsilon),
        }
        paths = [replicas.variable_path(variable) for variable in variables]
        factors = [rate_factor(path, self._rate_factors) for path in paths]
        rate = self.learning_rate(step)
        rates = {factor: factor * rate for factor in set(factors)}
        decays = {factor: rates[factor] * self._weight_decay for factor in rates}
        for gradient, variable, path, factor in zip(
            gradients, variables, paths, factors, strict=True
        ):
            if self._weight_decay and self._decayed.search(path):
                variable.assign_sub(decays[factor] * variable)
            # One operation: a CPU reads and writes each array once, not ten times.
            tf.raw_ops.ResourceApplyAdam(
                var=replicas.resource(variable),
                m=replicas.resource(slots[f"{path}/momentum"]),
                v=replicas.resource(slots[f"{path}/velocity"]),
                lr=rates[factor],
                grad=tf.cast(gradient, tf.float32),
                **betas,
            )


def rate_factor(path: str, factors: Mapping[str, float]) -> float:
    """Returns the factor of a variable's learning rate, 1 if no pattern is found.

    A pretrained backbone learns at a lower rate with {"^backbone/": 0.1}.

    Args:
      path: The path of the variable.
      factors: Factors by the regular expression that is searched for in the path. The
        first one that is found applies.
    """
    found = (x for pattern, x in factors.items() if re.search(pattern, path))
    return next(found, 1.0)


def _check_patterns(
    factors: Mapping[str, float], variables: Sequence[tf.Variable]
) -> None:
    """Raises an error for a pattern that is invalid or that no path contains."""
    paths = [replicas.variable_path(variable) for variable in variables]
    for pattern in factors:
        try:
            re.compile(pattern)
        except re.error as error:
            raise errors.UserError(
                f"rate_factors has {pattern!r}, which is no regular expression: "
                f"{error}."
            ) from error
        if not any(re.search(pattern, path) for path in paths):
            raise errors.UserError(
                f"rate_factors has the pattern {pattern!r}, which is in no path of a "
                f"trained variable, such as {paths[0] if paths else 'none'}."
            )


def clip_by_global_norm(
    gradients: Sequence[tf.Tensor], max_norm: float | None
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Scales all gradients by one factor so that their global norm is <= `max_norm`.

    Args:
      gradients: The gradients, of any float dtype, reduced over replicas.
      max_norm: The largest norm, above 0. None only measures.
    Returns:
      The gradients, and their norm before scaling, float32 [].
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


def _make_slots(
    variables: Sequence[tf.Variable], names: Sequence[str]
) -> dict[str, tf.Variable]:
    """Returns variables of zeros as "<path>/<name>"."""
    paths = [replicas.variable_path(variable) for variable in variables]
    duplicates = sorted({p for p in paths if paths.count(p) > 1})
    if duplicates:
        raise errors.UserError(
            f"The names of variables must be unique; used twice: {duplicates}."
        )
    return {
        f"{p}/{name}": replicas.make_variable(
            tf.zeros(variable.shape), name=f"{p}/{name}"
        )
        for p, variable in zip(paths, variables, strict=True)
        for name in names
    }
