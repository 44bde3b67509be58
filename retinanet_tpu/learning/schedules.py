"""Computes learning rates as functions of the step.

The step is a Python int or an integer tensor, 0 at the first update. The rate is a
float32 scalar. An optimizer needs a function of the step alone: bind the other
arguments with functools.partial or gin.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors

# step, int [] -> learning rate, float32 [].
ScheduleFn = Callable[[tf.Tensor], tf.Tensor]


def constant(
    step: tf.Tensor, *, base: float, warmup_steps: int = 0, warmup_from: float = 0.0
) -> tf.Tensor:
    """Returns a constant rate, after a linear warm-up.

    Args:
      step: int [].
      base: The rate after the warm-up.
      warmup_steps: The number of steps of a linear rise to base.
      warmup_from: The rate at step 0 if there is a warm-up.
    """
    rate = tf.constant(base, tf.float32)
    return _warm_up(rate, step, base, warmup_steps, warmup_from)


def scaled(
    step: tf.Tensor, *, schedule_fn: ScheduleFn, batch_size: int, reference_batch: int
) -> tf.Tensor:
    """Returns a schedule's rate, scaled to another batch size.

    Args:
      step: int [].
      schedule_fn: The schedule for the reference batch size.
      batch_size: The number of images in a step, over all replicas.
      reference_batch: The batch size that schedule_fn was designed for.
    Source: the linear scaling rule, arXiv:1706.02677, section 2.1.
    """
    return schedule_fn(step) * (batch_size / reference_batch)


def piecewise(
    step: tf.Tensor,
    *,
    values: Sequence[float],
    boundaries: Sequence[int],
    total_steps: int | None = None,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
) -> tf.Tensor:
    """Returns a rate that changes at given steps.

    Args:
      step: int [].
      values: The rates, one more than boundaries.
      boundaries: The first steps of the second and later rates, in ascending order.
      total_steps: The number of steps of the run, to check that it reaches every rate.
        None does not check.
      warmup_steps: The number of steps of a linear rise to values[0].
      warmup_from: The rate at step 0 if there is a warm-up.
    Raises:
      UserError: The numbers of values and boundaries do not match. Or the boundaries
        do not ascend, or are not between the end of the warm-up and that of the run.
    """
    if len(values) != len(boundaries) + 1:
        raise errors.UserError(
            f"piecewise needs one value more than boundaries, got {len(values)} values "
            f"and {len(boundaries)} boundaries."
        )
    if total_steps is not None and max(boundaries, default=0) >= total_steps:
        raise errors.UserError(
            f"piecewise never reaches its last rate: boundary {boundaries[-1]}, "
            f"end of the run {total_steps}. Set piecewise.boundaries beside MAX_STEPS."
        )
    is_ascending = list(boundaries) == sorted(set(boundaries))
    if not is_ascending or min([warmup_steps, *boundaries]) != warmup_steps:
        raise errors.UserError(
            "piecewise needs rising boundaries, none before the end of the warm-up; "
            f"got boundaries {list(boundaries)} and warmup_steps {warmup_steps}."
        )
    rate = tf.constant(values[0], tf.float32)
    for boundary, value in zip(boundaries, values[1:], strict=True):
        rate = tf.where(step >= boundary, value, rate)
    return _warm_up(rate, step, values[0], warmup_steps, warmup_from)


def cosine(
    step: tf.Tensor,
    *,
    base: float,
    total_steps: int,
    alpha: float = 0.0,
    warmup_steps: int = 0,
    warmup_from: float = 0.0,
) -> tf.Tensor:
    """Returns a rate that falls along half a cosine after the warm-up.

    Args:
      step: int [].
      base: The highest rate, at step `warmup_steps`.
      total_steps: The step from which on the rate is alpha * base.
      alpha: The lowest rate / base.
      warmup_steps: The number of steps of a linear rise to base.
      warmup_from: The rate at step 0 if there is a warm-up.
    Raises:
      UserError: The warm-up is not shorter than the run.
    Source: SGDR, arXiv:1608.03983, equation 5, without restarts.
    """
    if not warmup_steps < total_steps:
        raise errors.UserError(
            f"cosine needs warmup_steps below total_steps, got {warmup_steps} and "
            f"{total_steps}."
        )
    progress = _fraction(step - warmup_steps, total_steps - warmup_steps)
    rate = base * (alpha + (1 - alpha) * 0.5 * (1 + tf.cos(math.pi * progress)))
    return _warm_up(rate, step, base, warmup_steps, warmup_from)


def _fraction(step: tf.Tensor, total: int) -> tf.Tensor:
    """Returns step / total, limited to [0, 1]."""
    return tf.clip_by_value(tf.cast(step, tf.float32) / total, 0.0, 1.0)


def _warm_up(
    rate: tf.Tensor,
    step: tf.Tensor,
    base: float,
    warmup_steps: int,
    warmup_from: float,
) -> tf.Tensor:
    """Returns a linear rise from `warmup_from` to `base`, then `rate`."""
    if not warmup_steps:
        return rate
    line = warmup_from + _fraction(step, warmup_steps) * (base - warmup_from)
    return tf.where(step < warmup_steps, line, rate)
