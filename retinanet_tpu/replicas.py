"""Communication between the replicas of a step, and the variables that they share."""

import contextvars
import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import tensorflow as tf

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Tensors = TypeVar("Tensors")  # A tensor or a list of tensors.

_traces_for_cpu = contextvars.ContextVar("_traces_for_cpu", default=False)


def cross_replica_mean(values: Tensors) -> Tensors:
    """Returns the mean of each tensor over all replicas.

    All replicas get the same values. The function is differentiable: the gradient of a
    mean over replicas is the mean of the gradients.

    Args:
      values: A tensor or a list of tensors. A list is reduced in one collective
        operation.
    Returns:
      The means, in the same structure. With one replica, `values` themselves.
    """
    context = tf.distribute.get_replica_context()
    if context is None or context.num_replicas_in_sync == 1:
        return values

    @tf.custom_gradient
    def mean(*tensors):
        # custom_gradient searches the graph behind its outputs for variables. Without
        # stop_gradient it would search the graphs of all other replicas, once for each
        # collective. Tracing a tiny network on 8 logical CPUs took 235 s without it
        # and takes 38 s with it.
        stopped = [tf.stop_gradient(tensor) for tensor in tensors]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, stopped)
        return means, lambda *upstream: mean(*upstream)

    means = tf.nest.flatten(mean(*tf.nest.flatten(values)))
    return tf.nest.pack_sequence_as(values, means)


def num_replicas() -> int:
    """Returns the number of replicas that run the step together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def trace_for_cpu(fn: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """Returns fn; while it is traced, code may choose kernels of TensorFlow's CPU.

    Args:
      fn: A function that one replica will run on a CPU, without XLA.
    """

    @functools.wraps(fn)
    def run(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        token = _traces_for_cpu.set(True)
        try:
            return fn(*args, **kwargs)
        finally:
            _traces_for_cpu.reset(token)

    return run


def runs_cpu_kernels() -> bool:
    """Returns whether what is traced will run on a CPU, without XLA, in one replica."""
    return _traces_for_cpu.get()


def make_variable(
    initial_value: tf.types.experimental.TensorLike,
    *,
    name: str,
    trainable: bool = False,
) -> tf.Variable:
    """Makes a variable that each replica assigns to without communication.

    The replicas remain equal because all of them make the same update from the same
    reduced values.

    Args:
      initial_value: An array of any shape.
      name: The last part of the variable's path; the enclosing name scopes are the
        others.
      trainable: Whether gradients update the variable. tf.Variable gets it explicitly,
        because its own default for ON_READ is False.
    """
    return tf.Variable(
        initial_value,
        name=name,
        trainable=trainable,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
    )


def variable_path(variable: tf.Variable) -> str:
    """Returns the path of a variable in its network, such as fpn/output3/kernel."""
    return variable.name.partition(":")[0]


def resource(variable: tf.Variable) -> tf.Tensor:
    """Returns the resource of a variable, for `tf.raw_ops` that assign it.

    The function that is traced then lists the variable, as after a read.

    Args:
      variable: A variable of this replica.
    """
    graph = tf.compat.v1.get_default_graph()
    if hasattr(graph, "watch_variable"):  # Not outside of functions.
        graph.watch_variable(variable)
    return variable.handle
