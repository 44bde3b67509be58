"""The training step of a replica, and all that it changes."""

from collections.abc import Callable, Mapping

import numpy as np
import tensorflow as tf

from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import spec
from retinanet_tpu.estimator.model_dir import checkpoints

_WEIGHTS = "weights/"
_AVERAGES = "averages/"


class DivergedError(FloatingPointError):
    """A loss or a weight is not finite; nothing of it was saved.

    Attributes:
      step: the global step after which it was seen.
    """

    def __init__(self, message: str, step: int):
        super().__init__(message)
        self.step = step


class TrainState:
    """Everything that training changes and a checkpoint holds.

    Attributes:
      network: the tf.Module that model_fn is given.
      update: the object that turns gradients into new weights.
      step: steps trained so far.
      num_skipped: batches that were passed over, to go around those it diverged on.
    """

    def __init__(self, network: tf.Module, update):
        self.network = network
        self.update = update
        self.step = 0
        self.num_skipped = 0

    @property
    def next_batch(self) -> int:
        """The place in the data's order of the batch to train on next."""
        return self.step + self.num_skipped

    def variables(self) -> dict[str, tf.Variable]:
        """Returns all variables by their names in a checkpoint.

        Raises:
          UserError: the network has two of one name.
        """
        weights = _by_path(self.network)
        return {_WEIGHTS + p: v for p, v in weights.items()} | self.update.variables

    def save(self, model_dir: str) -> str:
        """Writes the checkpoint of this step; returns its path.

        Raises:
          DivergedError: a value is not finite; nothing is written.
        """
        return checkpoints.save(model_dir, self.step, self.tensors())

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns what a checkpoint of this step holds, by name.

        Raises:
          DivergedError: a value is not finite.
        """
        tensors = {
            name: variable.numpy() for name, variable in self.variables().items()
        }
        bad = [name for name, value in tensors.items() if not np.isfinite(value).all()]
        if bad:
            raise DivergedError(
                f"{len(bad)} variables are not finite at step {self.step}, first "
                f"{bad[0]}; no checkpoint of them is written.",
                self.step,
            )
        tensors["global_step"] = np.int64(self.step)
        tensors["num_skipped"] = np.int64(self.num_skipped)
        return tensors

    def restore(self, path: str) -> None:
        """Takes all values from a checkpoint.

        Raises:
          UserError: it holds other variables than this state.
        """
        tensors = checkpoints.read(path)
        step = int(tensors.pop("global_step"))
        num_skipped = int(tensors.pop("num_skipped", 0))
        assign(self.variables(), tensors, path)
        self.step, self.num_skipped = step, num_skipped


def network_weights(path: str) -> dict[str, np.ndarray]:
    """Returns a checkpoint's weights for evaluation: their averages if it has them."""
    return checkpoints.read(path, _AVERAGES) or checkpoints.read(path, _WEIGHTS)


def load(network: tf.Module, path: str) -> None:
    """Gives a network the weights for evaluation that a checkpoint holds.

    Raises:
      UserError: it is of another network.
    """
    assign(_by_path(network), network_weights(path), path)


def assign(
    variables: Mapping[str, tf.Variable], tensors: Mapping[str, np.ndarray], source: str
) -> None:
    """Assigns tensors to the variables of the same names.

    Raises:
      UserError: a name or a shape is on one side only.
    """
    shapes = {name: tuple(v.shape) for name, v in variables.items()}
    found = {name: tuple(t.shape) for name, t in tensors.items()}
    if shapes != found:
        wrong = sorted(
            f"{name} is {found.get(name, 'absent')}, not {shapes.get(name, 'used')}"
            for name in shapes.keys() | found.keys()
            if shapes.get(name) != found.get(name)
        )
        raise errors.UserError(
            f"Checkpoint {source} belongs to another configuration; {len(wrong)} "
            f"variables differ, first: {'; '.join(wrong[:4])}. Use another --model_dir "
            "or the gin settings that wrote it (config.gin beside it)."
        )
    for name, variable in variables.items():
        variable.assign(tensors[name])


def _by_path(network):
    found = {replicas.variable_path(v): v for v in network.variables}
    if len(found) < len(network.variables):
        paths = [replicas.variable_path(v) for v in network.variables]
        twice = sorted(p for p in found if paths.count(p) > 1)
        raise errors.UserError(
            f"Several variables of the network are named {', '.join(twice[:4])}, and a "
            "checkpoint has one place for each name; make them under name scopes."
        )
    return found


def make_replica_fn(step_fn: Callable, names: list[str]) -> Callable:
    """Returns what every replica runs: a step, and the means of its scalars.

    Args:
      step_fn: (batch, global step) -> scalars by name.
      names: gets the scalars' names when the function is traced.
    """

    def replica_step(batch, step):
        scalars = step_fn(batch, step)
        names[:] = scalars  # The same at every trace.
        return replicas.cross_replica_mean(tf.stack([*scalars.values()]))

    return replica_step


def make_step_fn(
    state: TrainState,
    model_fn: Callable,
    params_fn: Callable,
    *,
    deterministic: bool = False,
) -> Callable[[tf.Tensor, tf.Tensor], Mapping[str, tf.Tensor]]:
    """Returns the training step of one replica: loss, gradients, reduction, update.

    Args:
      state: what it changes.
      model_fn: of the estimator.
      params_fn: gives the params of model_fn.
      deterministic: add the gradients of a weight that is used several times, as
        heads are, in a fixed order; it also needs strategy.make_deterministic.
    """

    def step_fn(batch, step):
        weights = list(state.network.trainable_variables)
        # Before the forward pass moves them, for a skipped step to restore.
        statistics = [v.read_value() for v in getattr(state.update, "statistics", ())]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(weights)
            result = call_model_fn(
                model_fn, batch, spec.ModeKeys.TRAIN, params_fn(), state.network
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
        # Between two steps, while a batch is awaited, no variable changes.
        with tf.control_dependencies([result.loss]):
            moved = state.update.apply(gradients, step, **restorable)
        scalars = dict(result.scalars or {})
        if not any(value is result.loss for value in scalars.values()):
            # All that is reported is held to be finite.
            scalars.setdefault("loss", result.loss)
        scalars |= moved
        return {name: tf.cast(value, tf.float32) for name, value in scalars.items()}

    return step_fn


def call_model_fn(
    model_fn: Callable, batch, mode: str, params: Mapping, network: tf.Module
) -> spec.TPUEstimatorSpec:
    """Calls model_fn and checks what it returns.

    Raises:
      UserError: the spec lacks what its mode needs.
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
        raise errors.UserError(f"model_fn returned no {field} in mode '{mode}'.")
    return result


def _ordered_gradients(objective, weights):
    """Returns gradients whose terms are added two at a time; a tape adds all at once.

    Of more than two, TensorFlow's CPU runtime adds first what is ready first.
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
            f"The loss does not depend on {unused[:4]}; freeze them."
        )
