"""Lowers the step of one replica to an XLA program, without its target devices."""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

_PACKAGE = pathlib.Path(__file__).parents[1]
_CALLER = re.compile("(Call|While|If|Case)$")


class AheadOfTimeStrategy(tf.distribute.OneDeviceStrategy):
    """A strategy of many replicas for tracing on a machine without their devices.

    Reductions become the collectives of an XLA program. The traced code can be lowered,
    not executed.
    """

    def __init__(self, num_replicas: int):
        """Initializes the strategy.

        Args:
          num_replicas: The number of replicas of the program.
        """
        super().__init__("cpu:0")
        self._num_replicas = num_replicas

    @property
    def num_replicas_in_sync(self) -> int:
        """Returns the number of replicas of the program."""
        return self._num_replicas

    def replica_context(self) -> tf.distribute.ReplicaContext:
        """Returns the context in which the step of one replica is traced."""
        return _ReplicaContext(self, replica_id_in_sync_group=0)


class _ReplicaContext(tf.distribute.ReplicaContext):
    """A replica context that reduces by XLA's collective, traceable on any device."""

    def all_reduce(
        self, reduce_op: tf.distribute.ReduceOp, value: Any, options: Any = None
    ) -> Any:
        """Returns the sum or mean over all replicas of each tensor of a nest."""
        del options
        count = self.num_replicas_in_sync

        def reduce_one(x: tf.Tensor) -> tf.Tensor:
            total = gen_xla_ops.xla_all_reduce(
                input=x,
                group_assignment=[list(range(count))],
                reduce_op="Add",
                mode="CrossReplica",
            )
            return total / count if reduce_op == tf.distribute.ReduceOp.MEAN else total

        return tf.nest.map_structure(reduce_one, value)


class Program(NamedTuple):
    """The XLA program of one replica.

    Its parameters are the arguments, then the captures. Its results are the results of
    the function, then the new values of the captures that it assigns.

    Attributes:
      hlo: The serialized HloModuleProto.
      graph: The TensorFlow graph that was lowered.
      num_replicas: The number of replicas that run the program together.
      arguments: The specs of the arguments, flat.
      results: The results of the function: a nest of tf.TensorSpec.
      captures: The variables and the constants that the function reads: tf.Variable or
        np.ndarray.
    """

    hlo: bytes
    graph: tf.Graph
    num_replicas: int = 1
    arguments: Sequence[tf.TensorSpec] = ()
    results: Any = ()
    captures: Sequence[Any] = ()

    def line_of(self, operation: str) -> str:
        """Returns the line of code that created an operation, or "" if unknown.

        Args:
          operation: The name of the operation in the program's metadata.
        """
        return _line_of(self.graph, operation)


def lower(
    fn: Callable[..., Any], specs: Sequence[Any], strategy: AheadOfTimeStrategy
) -> Program:
    """Lowers a function of one replica to an XLA program.

    Args:
      fn: The function; its arguments are nests of tensors. The variables that it reads
        and assigns become parameters and results of the program.
      specs: A nest of tf.TensorSpec with static shapes for each argument of fn.
      strategy: The strategy, with the number of replicas.
    Raises:
      RuntimeError: An operation has no kernel for XLA; contains the operation and the
        line of code.
    """
    flat_specs = tf.nest.flatten(list(specs))

    @tf.function(jit_compile=True, autograph=False)
    def program(*tensors: tf.Tensor) -> Any:
        with strategy.replica_context():
            return fn(*tf.nest.pack_sequence_as(list(specs), list(tensors)))

    concrete = program.get_concrete_function(*flat_specs)
    try:
        ir = program.experimental_get_compiler_ir(*flat_specs)
        # The platform only selects TensorFlow's kernels; the program is for any device.
        hlo = ir(stage="hlo_serialized", platform_name="CPU")
    except (ValueError, tf.errors.OpError) as error:
        raise RuntimeError(_explained(str(error), concrete.graph)) from error
    return Program(
        hlo,
        concrete.graph,
        num_replicas=strategy.num_replicas_in_sync,
        arguments=flat_specs,
        results=concrete.structured_outputs,
        captures=_captures(concrete),
    )


def _captures(concrete: tf.types.experimental.ConcreteFunction) -> list[Any]:
    """Returns the variables and the values of the constants that a function reads."""
    by_handle = {id(variable.handle): variable for variable in concrete.variables}
    return [
        by_handle[id(tensor)] if id(tensor) in by_handle else tensor.numpy()
        for tensor in concrete.captured_inputs
    ]


def _explained(message: str, graph: tf.Graph) -> str:
    """Returns TensorFlow's message in one sentence, with the line of code."""
    # TensorFlow's own list of lines omits the common prefix of their paths.
    node = re.search(r"\{\{node ([^}]+)\}\}", message)
    line = _line_of(graph, node[1]) if node else ""
    kind = re.search(r"No registered '(\w+)' OpKernel", message)
    reason = f"{kind[1]} has no kernel for XLA" if kind else message.split("\n")[0]
    return f"{reason}; made at {line}" if line else reason


def _line_of(graph: tf.Graph, operation: str) -> str:
    operations = list(_operations(graph))
    name = operation.removeprefix("gradient_tape/")
    while name:
        # An enclosing scope matches gradients, and operations that XLA renamed.
        scope = name + "/"
        for op in operations:
            if op.name == name or op.name.startswith(scope):
                return _line(op)
        name = name.rpartition("/")[0]
    return ""


def _operations(graph: tf.Graph) -> Iterator[tf.Operation]:
    """Yields the operations of a graph and of the functions that it calls."""
    for op in graph.get_operations():
        yield op
        if not _CALLER.search(op.type):
            continue  # Copying the attributes of all operations takes seconds.
        for value in op.node_def.attr.values():
            for function in (value.func, *value.list.func):
                if function.name:
                    yield from _operations(graph._get_function(function.name).graph)


def _line(op: tf.Operation) -> str:
    """Returns the innermost line of the traceback outside of libraries."""
    for frame in reversed(op.traceback or ()):
        path = pathlib.Path(frame.filename)
        if frame.filename == __file__:
            continue
        if _PACKAGE in path.parents:
            return f"{path.relative_to(_PACKAGE.parent)}:{frame.lineno}"
        if "site-packages" not in path.parts and "tensorflow" not in path.parts:
            return f"{path}:{frame.lineno}"
    return ""
