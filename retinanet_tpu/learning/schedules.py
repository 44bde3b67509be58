"""Learning rates as functions of the step.

The step is a Python int or an integer tensor, 0 at the first update; the rate is a
float32 scalar. Bind all but the step (functools.partial, gin) for an optimizer.
"""

import math
from collections.abc import Callable, Sequence

import tensorflow as tf

from retinanet_tpu import errors


def constant(
    step: tf.Tensor, *, base: float, warmup_steps: int = 0, warmup_from: float = 0.0
) -> tf.Tensor:
    """Returns `base`, after a linear rise from `warmup_from`."""
    rate = tf.constant(base, tf.float32)
    return _warm_up(rate, step, base, warmup_steps, warmup_from)


def scaled(
    step: tf.Tensor, *, schedule_fn: Callable, batch_size: int, reference_batch: int
) -> tf.Tensor:
    """Returns the rate that a schedule made for another batch size means for this one.

    Args:
      step: int [].
      schedule_fn: step -> rate for reference_batch.
      batch_size: images of a step, over all replicas.
      reference_batch: images of a step that schedule_fn was made for.
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
    """Returns a rate that jumps at given steps.

    Args:
      step: int [].
      values: the rates, one more than boundaries.
      boundaries: rising steps; the step at a boundary is the first with the new rate.
      total_steps: of the run, to check that it reaches every rate; None checks nothing.
      warmup_steps: steps of a linear rise to values[0].
      warmup_from: the rate at step 0, if there is a rise.
    Raises:
      UserError: lengths that do not fit, boundaries that do not rise or lie beyond
        the run, or a warm-up beyond the first of them.
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
    marks = [warmup_steps, *boundaries]
    if list(boundaries) != sorted(set(boundaries)) or min(marks) != warmup_steps:
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
    """Returns a rate that falls along half a cosine once the warm-up is over.

    Args:
      step: int [].
      base: the highest rate, at step `warmup_steps`.
      total_steps: the step at which alpha * base is reached, which then stays.
      alpha: lowest rate / base.
      warmup_steps: steps of a linear rise to base.
      warmup_from: the rate at step 0, if there is a rise.
    Raises:
      UserError: a warm-up that leaves no step to fall.
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
    """Returns step / total within [0, 1]."""
    return tf.clip_by_value(tf.cast(step, tf.float32) / total, 0.0, 1.0)


def _warm_up(rate, step, base, warmup_steps, warmup_from) -> tf.Tensor:
    """Returns a line from `warmup_from` to `base` at first, then `rate`."""
    if not warmup_steps:
        return rate
    line = warmup_from + _fraction(step, warmup_steps) * (base - warmup_from)
    return tf.where(step < warmup_steps, line, rate)
