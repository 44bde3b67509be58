"""The inner loop: n steps in one tf.function, on every replica alike."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from retinanet_tpu import replicas
from retinanet_tpu.estimator import checkpoints, spec

_WEIGHTS = "weights/"
_AVERAGES = "averages/"


class DivergedError(FloatingPointError):
    """A loss or a gradient is not finite; nothing of it was saved."""


class LoopResult(NamedTuple):
    """What a loop of steps tells."""

    scalars: Mapping[str, float]  # means over the steps of the loop and all replicas
    secs: float


class TrainState:
    """Everything that training changes and a checkpoint holds.

    Attributes:
      network: the tf.Module that model_fn is given.
      update: the object that turns gradients into new weights.
      step: steps trained so far.
    """

    def __init__(self, network: tf.Module, update):
        self.network = network
        self.update = update
        self.step = 0

    def variables(self) -> dict[str, tf.Variable]:
        """Returns all variables by their names in a checkpoint."""
        weights = {_WEIGHTS + replicas.path(v): v for v in self.network.variables}
        return weights | self.update.variables

    def save(self, model_dir: str) -> str:
        """Writes the checkpoint of this step; returns its path.

        Raises:
          DivergedError: a value is not finite; nothing is written.
        """
        tensors = {
            name: variable.numpy() for name, variable in self.variables().items()
        }
        bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
        if bad:
            raise DivergedError(
                f"{len(bad)} variables are not finite at step {self.step}, first "
                f"{bad[0]}; no checkpoint of them is written."
            )
        tensors["global_step"] = np.int64(self.step)
        return checkpoints.save(model_dir, self.step, tensors)

    def restore(self, path: str) -> None:
        """Takes all values from a checkpoint.

        Raises:
          ValueError: it holds other variables than this state.
        """
        tensors = checkpoints.read(path)
        self.step = int(tensors.pop("global_step"))
        assign(self.variables(), tensors, path)


def network_weights(path: str) -> dict[str, np.ndarray]:
    """Returns a checkpoint's weights for evaluation: their averages if it has them."""
    return checkpoints.read(path, _AVERAGES) or checkpoints.read(path, _WEIGHTS)


def assign(
    variables: Mapping[str, tf.Variable], tensors: Mapping[str, np.ndarray], source: str
) -> None:
    """Assigns tensors to the variables of the same names.

    Raises:
      ValueError: a name or a shape is on one side only.
    """
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != found:
        wrong = sorted(
            f"{name} is {found.get(name, 'absent')}, not {shapes.get(name, 'used')}"
            for name in shapes.keys() | found.keys()
            if shapes.get(name) != found.get(name)
        )
        raise ValueError(
            f"Checkpoint {source} belongs to another configuration; {len(wrong)} "
            f"variables differ, first: {'; '.join(wrong[:4])}. Use another --model_dir "
            "or the gin settings that wrote it (config.gin beside it)."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def make_train_loop(
    strategy: tf.distribute.Strategy,
    step_fn: Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]],
    *,
    jit_compile: bool,
) -> Callable[[Iterator, int, int], LoopResult]:
    """Returns a function that runs steps and gives the means of their scalars.

    Args:
      strategy: where the replicas run.
      step_fn: (batch, global step) -> scalars by name; runs on every replica.
      jit_compile: compile the step with XLA.
    Returns:
      (iterator, first_step, num_steps) -> LoopResult. Raises DivergedError.
    """
    names = []

    @tf.function(autograph=False, jit_compile=jit_compile or None)
    def replica_step(batch, step):
        scalars = step_fn(batch, step)
        names[:] = scalars  # The same at every trace.
        return replicas.mean_over_replicas(tf.stack([*scalars.values()]))

    @tf.function
    def loop(iterator, first_step, num_steps):
        history = tf.TensorArray(tf.float32, num_steps, element_shape=[None])
        for i in tf.range(num_steps):
            step = first_step + tf.cast(i, tf.int64)
            means = strategy.run(replica_step, args=(next(iterator), step))
            history = history.write(i, strategy.experimental_local_results(means)[0])
        return history.stack()

    def run(iterator, first_step, num_steps):
        start = time.monotonic()
        count = tf.constant(num_steps, tf.int32)
        history = loop(iterator, tf.constant(first_step, tf.int64), count).numpy()
        _check_finite(history, names, first_step)
        means = dict(zip(names, history.mean(axis=0, dtype=np.float64), strict=True))
        if "learning-rate" in means:  # A setting, not a measurement: its newest value.
            means["learning-rate"] = history[-1, names.index("learning-rate")]
        return LoopResult(means, time.monotonic() - start)

    return run


def make_step_fn(
    state: TrainState, model_fn: Callable, params_fn: Callable
) -> Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]]:
    """Returns the training step of one replica: loss, gradients, reduction, update."""

    def step_fn(batch, step):
        weights = list(state.network.trainable_variables)
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            result = call_model_fn(
                model_fn, batch, spec.ModeKeys.TRAIN, params_fn(), state.network
            )
            objective = state.update.scale(result.loss)
        gradients = tape.gradient(objective, weights)
        _check_all_used(gradients, weights)
        scalars = state.update.apply(replicas.mean_over_replicas(gradients), step)
        merged = dict(result.scalars or {"loss": result.loss}) | scalars
        return {name: tf.cast(value, tf.float32) for name, value in merged.items()}

    return step_fn


def call_model_fn(
    model_fn: Callable, batch, mode: str, params: Mapping, network: tf.Module
) -> spec.TPUEstimatorSpec:
    """Calls model_fn and checks what it returns.

    Raises:
      ValueError: the spec lacks what its mode needs.
    """
    features, labels = batch if type(batch) is tuple else (batch, None)
    result = spec.call_by_name(
        model_fn,
        features=features,
        labels=None if mode == spec.ModeKeys.PREDICT else labels,
        mode=mode,
        params=params,
        network=network,
    )
    field = "predictions" if mode == spec.ModeKeys.PREDICT else "loss"
    if getattr(result, field, None) is None:
        raise ValueError(f"model_fn returned no {field} in mode '{mode}'.")
    return result


def _check_all_used(gradients, weights):
    unused = [
        replicas.path(w) for g, w in zip(gradients, weights, strict=True) if g is None
    ]
    if unused:
        raise ValueError(f"The loss does not depend on {unused[:4]}; freeze them.")


def _check_finite(history, names, first_step):
    bad = np.argwhere(~np.isfinite(history))
    if len(bad):
        row, column = bad[0]
        raise DivergedError(
            f"{names[column]} is {history[row, column]} at step "
            f"{first_step + row + 1}; nothing of this loop was saved. Lower the "
            "learning rate, lengthen the warm-up, or clip gradients, and start again "
            "from the last checkpoint."
        )
