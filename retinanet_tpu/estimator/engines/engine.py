"""The interface of the engines, which run the functions of replicas on devices.

`distribute` runs them with tf.distribute, `pjrt_engine` as XLA programs through PJRT.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from retinanet_tpu.estimator import train_step
from retinanet_tpu.estimator.cluster import worker_group

NOT_STARTED = -1

# batch -> (loss, tensors)
ForwardFn = Callable[[Any], tuple[tf.Tensor, Any]]


class Progress(NamedTuple):
    """The progress of a loop of steps, in global steps.

    Attributes:
      num_fetched: The number of batches that each replica received, or NOT_STARTED.
      num_done: The number of steps that all replicas have finished.
    """

    num_fetched: tuple[int, ...]
    num_done: int

    @property
    def is_waiting(self) -> bool:
        """True if a replica waits for the batch of the next step."""
        return NOT_STARTED < min(self.num_fetched) <= self.num_done

    @property
    def is_between_steps(self) -> bool:
        """True if no replica has begun the next step."""
        return self.is_waiting and max(self.num_fetched) == self.num_done


class LoopResult(NamedTuple):
    """The result of a loop of steps.

    Attributes:
      scalars: The means over the steps of the loop and all replicas, by name.
      secs: The duration of the loop.
      input_wait: The share of `secs` in which the device waited for the next batch.
      num_traces: The number of traces of the loop so far; above 1 if shapes change.
    """

    scalars: Mapping[str, float]
    secs: float
    input_wait: float
    num_traces: int


class TrainLoop(Protocol):
    """A loop of training steps."""

    def reset(self, step: int) -> None:
        """Sets the global step at which the next call begins."""

    def progress(self) -> Progress:
        """Returns the progress of a call in another thread."""

    def __call__(
        self, iterator: Iterator[Any], first_step: int, num_steps: int
    ) -> LoopResult:
        """Runs steps.

        Args:
          iterator: Yields the distributed batches.
          first_step: The global step before the first step.
          num_steps: The number of steps.
        Raises:
          DivergedError: A scalar is not finite.
          UserError: The data ended.
        """


class Forward(Protocol):
    """A forward pass on all replicas."""

    def reload(self) -> None:
        """Uses the present values of the network's variables from now on."""

    def __call__(self, batch: Any) -> tuple[float, Any]:
        """Returns the loss, and the tensors of all replicas as NumPy arrays."""


class Engine(Protocol):
    """The execution of a strategy's replicas.

    Attributes:
      workers: The processes that train together.
    """

    workers: worker_group.Workers

    def make_loop(
        self, state: train_step.TrainState, step_fn: train_step.StepFn
    ) -> TrainLoop:
        """Returns a loop of steps.

        Args:
          state: The state that the step changes.
          step_fn: (batch, global step) -> scalars by name; runs on every replica.
        """

    def make_forward(self, forward_fn: ForwardFn) -> Forward:
        """Returns a forward pass.

        Args:
          forward_fn: batch -> (loss, tensors); runs on every replica.
        """


def summarize(
    history: np.ndarray, times: np.ndarray, names: Sequence[str], first_step: int
) -> tuple[dict[str, float], float]:
    """Returns the means of the scalars of a loop, and its share of waiting for input.

    Args:
      history: float32 [steps, scalars], the scalars of each step.
      times: float64 [steps, 2], as `input_wait` expects them.
      names: The names of the scalars.
      first_step: The global step before the first step.
    Raises:
      DivergedError: A scalar is not finite.
    """
    _check_finite(history, names, first_step)
    means = dict(zip(names, history.mean(axis=0, dtype=np.float64), strict=True))
    if "learning-rate" in means:  # A setting, not a measurement: its newest value.
        means["learning-rate"] = history[-1, list(names).index("learning-rate")]
    return means, input_wait(times)


def input_wait(times: np.ndarray) -> float:
    """Returns the share of a loop in which the device waited for a batch.

    Args:
      times: float64 [steps, 2], the seconds from the start of the loop to the batch and
        to the result of each step. Batches may arrive while earlier steps run.
    """
    fed_at, done_at = times.T
    idle = fed_at - np.concatenate([[0.0], done_at[:-1]])
    return float(np.maximum(idle, 0).sum() / max(done_at[-1], 1e-9))


def data_ended(step: int) -> str:
    """Returns the message of an error: the training data ended before a step."""
    return (
        f"The training data ended before step {step}; training requires data without "
        "end: call dataset.repeat()."
    )


def _check_finite(history, names, first_step):
    bad = np.argwhere(~np.isfinite(history))
    if len(bad):
        row, column = bad[0]
        raise train_step.DivergedError(
            f"{names[column]} is {history[row, column]} at step "
            f"{first_step + row + 1}; no step of this loop was saved. Lower the "
            "learning rate, lengthen the warm-up, or clip gradients, and start again; "
            "or set RunConfig.max_rollbacks, to skip the data that it diverged on.",
            int(first_step + row + 1),
        )
