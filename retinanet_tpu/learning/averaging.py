"""The exponential moving average of all that a network has learnt.

The averages are a second set of variables, batch-norm statistics included. Evaluation
and export restore them in the place of the weights, so nothing is ever swapped during
training.
"""

from collections.abc import Sequence

import tensorflow as tf

from retinanet_tpu import replicas


def create_averages(variables: Sequence[tf.Variable]) -> dict[str, tf.Variable]:
    """Makes a copy of each variable, by its path; once, in the strategy's scope."""
    paths = [replicas.variable_path(variable) for variable in variables]
    return {
        path: replicas.make_variable(tf.convert_to_tensor(v), name=f"{path}/average")
        for path, v in zip(paths, variables, strict=True)
    }


def decay_at(step: tf.Tensor, decay: float) -> tf.Tensor:
    """Returns how much of the average stays, float32 [].

    (1 + step) / (10 + step) while that is less than `decay`: the first weights, which
    are random, are soon forgotten.
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
    """Moves each average a little towards its variable, after the step's update.

    Args:
      averages: assigned, in the order of `variables`.
      variables: weights and statistics as the step left them.
      step: int [], updates done before this one.
      decay: in [0, 1), how much stays once the training is long under way.
    """
    rest = 1.0 - decay_at(step, decay)
    for average, variable in zip(averages, variables, strict=True):
        average.assign_add(rest * (variable - average))
