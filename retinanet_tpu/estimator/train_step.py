"""The training step of a replica, and the state that it changes."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import spec
from retinanet_tpu.estimator.model_dir import checkpoints

_WEIGHTS = "weights/"
_AVERAGES = "averages/"

# (batch, global step) -> scalars by name
StepFn = Callable[[Any, tf.Tensor], Mapping[str, tf.Tensor]]


class DivergedError(FloatingPointError):
    """A loss or a weight is not finite; it was not saved.

    Attributes:
      step: The global step after which it was seen.
    """

    def __init__(self, message: str, step: int):
        """Initializes the error.

        Args:
          message: The name of the value, and the remedy.
          step: The global step after which it was seen.
        """
        super().__init__(message)
        self.step = step


class DeviceCopy(Protocol):
    """A copy of variables in the memory of devices, which steps change there."""

    def download(self) -> None:
        """Assigns the values on the devices to the variables."""

    def discard(self) -> None:
        """Deletes the copy; the next step makes a new one from the variables."""


class TrainState:
    """The state that training changes and a checkpoint contains.

    Attributes:
      network: The network of model_fn.
      update: The object that applies gradients to the weights.
      step: The number of trained steps.
      num_skipped: The number of batches that rollbacks skipped, because the run
        diverged on them.
      device_copy: The copy of the variables that is newer than they are, if the engine
        has one.
    """

    def __init__(self, network: tf.Module, update: spec.Update):
        """Initializes the state of step 0.

        Args:
          network: The network of model_fn.
          update: The object that applies gradients to its weights.
        """
        self.network = network
        self.update = update
        self.step = 0
        self.num_skipped = 0
        self.device_copy: DeviceCopy | None = None

    @property
    def next_batch(self) -> int:
        """The index of the next batch in the order of the data."""
        return self.step + self.num_skipped

    def variables(self) -> dict[str, tf.Variable]:
        """Returns all variables by their names in a checkpoint.

        Raises:
          UserError: The network has two variables of one name.
        """
        weights = _by_path(self.network)
        return {
            **{_WEIGHTS + path: v for path, v in weights.items()},
            **self.update.variables,
        }

    def save(self, model_dir: str) -> str:
        """Writes the checkpoint of this step and returns its path.

        Raises:
          DivergedError: A value is not finite; nothing is written.
        """
        return checkpoints.save(model_dir, self.step, self.tensors())

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns the values of a checkpoint of this step, by name.

        Raises:
          DivergedError: A value is not finite.
        """
        if self.device_copy:
            self.device_copy.download()
        tensors = {
            name: variable.numpy() for name, variable in self.variables().items()
        }
        bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
        if bad:
            raise DivergedError(
                f"{len(bad)} variables are not finite at step {self.step}, first "
                f"{bad[0]}; no checkpoint is written.",
                self.step,
            )
        tensors["global_step"] = np.int64(self.step)
        tensors["num_skipped"] = np.int64(self.num_skipped)
        return tensors

    def restore(self, path: str) -> None:
        """Reads all values from a checkpoint.

        Raises:
          UserError: The checkpoint contains other variables than this state.
        """
        tensors = checkpoints.read(path)
        step = int(tensors.pop("global_step"))
        num_skipped = int(tensors.pop("num_skipped", 0))
        assign(self.variables(), tensors, path)
        if self.device_copy:
            self.device_copy.discard()
        self.step = step
        self.num_skipped = num_skipped


def network_weights(path: str) -> dict[str, np.ndarray]:
    """Returns the weights to evaluate: the averages if a checkpoint has them."""
    return checkpoints.read(path, _AVERAGES) or checkpoints.read(path, _WEIGHTS)


def load(network: tf.Module, path: str) -> None:
    """Assigns a network the weights to evaluate from a checkpoint.

    Raises:
      UserError: The checkpoint is of another network.
    """
    assign(_by_path(network), network_weights(path), path)


def assign(
    variables: Mapping[str, tf.Variable], tensors: Mapping[str, np.ndarray], source: str
) -> None:
    """Assigns tensors to the variables of the same names.

    Args:
      variables: The variables by name.
      tensors: The values by name.
      source: The path of the checkpoint, for the message.
    Raises:
      UserError: The names or the shapes differ.
    """
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    given = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != given:
        wrong = sorted(
            f"{name} is {given.get(name, 'absent')}, not {shapes.get(name, 'used')}"
            for name in shapes.keys() | given.keys()
            if shapes.get(name) != given.get(name)
        )
        raise errors.UserError(
            f"Checkpoint {source} belongs to another configuration; {len(wrong)} "
            f"variables differ, first: {'; '.join(wrong[:4])}. Use another --model_dir "
            "or the gin settings that wrote it (config.gin beside it)."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def _by_path(network):
    by_path = {replicas.variable_path(v): v for v in network.variables}
    if len(by_path) < len(network.variables):
        paths = [replicas.variable_path(v) for v in network.variables]
        repeated = sorted(p for p in by_path if paths.count(p) > 1)
        raise errors.UserError(
            f"Several variables of the network are named {', '.join(repeated[:4])}; a "
            "checkpoint requires unique names. Create them under name scopes."
        )
    return by_path


class ReplicaStep:
    """The function that every replica runs: a step, and the means of its scalars.

    The loop over steps carries tensors only, so the names of the scalars are kept here.

    Attributes:
      scalar_names: The names of the scalars in the order of `run`'s result. Empty until
        `run` is traced; every trace has the same names.
    """

    def __init__(self, step_fn: StepFn):
        """Initializes the function.

        Args:
          step_fn: (batch, global step) -> scalars by name.
        """
        self._step_fn = step_fn
        self.scalar_names: tuple[str, ...] = ()

    def run(self, batch: Any, step: tf.Tensor) -> tf.Tensor:
        """Runs one step on a replica.

        Args:
          batch: The batch of the replica.
          step: int64, the number of steps trained before this one.
        Returns:
          float32 [number of scalars]: The means of the scalars over replicas.
        """
        scalars = self._step_fn(batch, step)
        self.scalar_names = tuple(scalars)
        return replicas.cross_replica_mean(tf.stack([*scalars.values()]))


def make_step_fn(
    state: TrainState,
    model_fn: spec.ModelFn,
    params_fn: spec.ParamsFn,
    *,
    deterministic: bool = False,
) -> StepFn:
    """Returns the training step of one replica: loss, gradients, reduction, update.

    Args:
      state: The state that the step changes. If its update has `statistics`, the
        variables that the forward pass may assign, `apply` also gets their values
        before the forward pass, to restore them if it skips the step.
      model_fn: The model_fn of the estimator.
      params_fn: Returns the params of model_fn.
      deterministic: Whether to add the gradients of a weight that is used several
        times, such as those of the heads, in a fixed order. This also requires
        strategy.make_deterministic.
    """

    def step_fn(batch, step):
        weights = list(state.network.trainable_variables)
        # Read before the forward pass assigns them.
        statistics = [v.read_value() for v in getattr(state.update, "statistics", ())]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            result = call_model_fn(
                model_fn,
                batch,
                spec.ModeKeys.TRAIN,
                params=params_fn(),
                network=state.network,
                step=step,
            )
            objective = state.update.scale(result.loss)
        gradients = (
            _ordered_gradients(objective, weights)
            if deterministic
            else tape.gradient(objective, weights)
        )
        _check_all_used(gradients, weights)
        gradients = replicas.cross_replica_mean(gradients)
        restorable = {"statistics_before": statistics} if statistics else {}
        # While a loop waits for a batch, between two steps, no variable may change.
        with tf.control_dependencies([result.loss]):
            update_scalars = state.update.apply(gradients, step, **restorable)
        scalars = dict(result.scalars or {})
        if not any(value is result.loss for value in scalars.values()):
            # Reported scalars are checked for finite values, so the loss must be one.
            scalars.setdefault("loss", result.loss)
        scalars |= update_scalars
        return {name: tf.cast(value, tf.float32) for name, value in scalars.items()}

    return step_fn


def call_model_fn(
    model_fn: spec.ModelFn,
    batch: Any,
    mode: str,
    *,
    params: Mapping[str, Any],
    network: tf.Module,
    step: tf.Tensor | None = None,
) -> spec.TPUEstimatorSpec:
    """Calls model_fn and checks its result.

    Args:
      model_fn: The model_fn of the estimator.
      batch: (features, labels), or features.
      mode: One of spec.ModeKeys.
      params: The params of model_fn.
      network: The network of model_fn.
      step: int64, the number of steps before this one, for a model_fn with the argument
        `step`. None unless training.
    Raises:
      UserError: The result has no loss, or no predictions in the mode PREDICT.
    """
    features, labels = batch if type(batch) is tuple else (batch, None)
    result = spec.call_by_name(
        model_fn,
        features=features,
        labels=None if mode == spec.ModeKeys.PREDICT else labels,
        mode=mode,
        params=params,
        network=network,
        step=step,
    )
    field = "predictions" if mode == spec.ModeKeys.PREDICT else "loss"
    if getattr(result, field, None) is None:
        raise errors.UserError(f"model_fn returned no {field} in mode '{mode}'.")
    return result


def _ordered_gradients(objective, weights):
    """Returns gradients whose terms are added two at a time; a tape adds all at once.

    TensorFlow's CPU runtime adds more than two terms in the order in which they are
    computed, which differs between runs.
    """
    tree = tf.AggregationMethod.EXPERIMENTAL_TREE
    return tf.gradients(objective, weights, aggregation_method=tree)


def _check_all_used(gradients, weights):
    unused = [
        replicas.variable_path(w)
        for g, w in zip(gradients, weights, strict=True)
        if g is None
    ]
    if unused:
        raise errors.UserError(
            f"The loss does not depend on the weights {unused[:4]}; freeze them."
        )
