"""Keeps exponential moving averages of a network's variables.

The averages are a second set of variables, including batch normalization's statistics.
Evaluation and export restore them instead of the weights, so training never swaps
variables.
"""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import replicas


def create_averages(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Returns copies of variables, by path. Call it once, in the strategy's scope."""
    paths = [replicas.variable_path(variable) for variable in variables]
    return {
        path: replicas.make_variable(tf.convert_to_tensor(v), name=f"{path}/average")
        for path, v in zip(paths, variables, strict=True)
    }


def decay_at(step: tf.Tensor, decay: float) -> tf.Tensor:
    """Returns the decay at a step, float32 []: min(decay, (1 + step) / (10 + step)).

    The first weights are random; a small decay at first removes them soon.

    Args:
      step: int [], the number of updates before this one.
      decay: The decay that is reached in the end, in [0, 1).
    Source: tf.train.ExponentialMovingAverage.
    """
    step = tf.cast(step, tf.float32)
    return tf.minimum(decay, (1.0 + step) / (10.0 + step))


def update(
    averages: Sequence[tf.Variable],
    variables: Sequence[tf.Variable],
    step: tf.Tensor,
    *,
    decay: float = 0.9998,
) -> None:
    """Moves each average towards its variable. Call it after the optimizer.

    Args:
      averages: The averages to assign, in the order of `variables`.
      variables: The weights and statistics after the step.
      step: int [], the number of updates before this one.
      decay: The decay that is reached in the end, in [0, 1).
    """
    rest = 1.0 - decay_at(step, decay)
    for average, variable in zip(averages, variables, strict=True):
        average.assign_add(rest * (variable - average))
