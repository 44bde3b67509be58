"""Turns the step of one replica into an XLA program, without the devices it is for."""

import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops

_PACKAGE = pathlib.Path(__file__).parents[1]
_CALLER = re.compile("(Call|While|If|Case)$")


class AheadOfTimeStrategy(tf.distribute.OneDeviceStrategy):
    """Stands for many replicas on a machine that has none of them.

    Code that runs in it sees `num_replicas` replicas, and its reductions become the
    collectives of an XLA program. It can be lowered, not executed.
    """

    def __init__(self, num_replicas: int):
        """Takes the number of replicas to stand for."""
        super().__init__("cpu:0")
        self._num_replicas = num_replicas

    @property
    def num_replicas_in_sync(self) -> int:
        """Replicas that the program is for."""
        return self._num_replicas

    def replica_context(self) -> tf.distribute.ReplicaContext:
        """Returns the context of one replica, to trace its step in."""
        return _ReplicaContext(self, replica_id_in_sync_group=0)


class _ReplicaContext(tf.distribute.ReplicaContext):
    """Reduces by XLA's own collective, which needs no device to be traced."""

    def all_reduce(self, reduce_op, value, options=None):
        del options
        count = self.num_replicas_in_sync

        def reduce_one(x):
            total = gen_xla_ops.xla_all_reduce(
                input=x,
                group_assignment=[list(range(count))],
                reduce_op="Add",
                mode="CrossReplica",
            )
            return total / count if reduce_op == tf.distribute.ReduceOp.MEAN else total

        return tf.nest.map_structure(reduce_one, value)


class Program(NamedTuple):
    """What one replica does, for XLA compilers."""

    hlo: bytes  # a serialized HloModuleProto
    graph: tf.Graph  # of the TensorFlow operations that it was made of

    def line_of(self, operation: str) -> str:
        """Returns the line of code that made an operation, "" if that is not known.

        Args:
          operation: its name, as the program's metadata have it.
        """
        return _line_of(self.graph, operation)


def lower(
    fn: Callable[..., Any], specs: Sequence[Any], strategy: AheadOfTimeStrategy
) -> Program:
    """Returns the program of what fn does on one replica.

    Args:
      fn: of any nests of tensors; may read and assign variables, which become
        parameters and results of the program.
      specs: a nest of tf.TensorSpec for each argument of fn; static shapes.
      strategy: says how many replicas there are.
    Raises:
      RuntimeError: an operation has no kernel for XLA; names it and our line of code.
    """
    flat_specs = tf.nest.flatten(list(specs))

    @tf.function(jit_compile=True, autograph=False)
    def program(*tensors):
        with strategy.replica_context():
            return fn(*tf.nest.pack_sequence_as(list(specs), list(tensors)))

    graph = program.get_concrete_function(*flat_specs).graph
    try:
        ir = program.experimental_get_compiler_ir(*flat_specs)
        return Program(ir(stage="hlo_serialized", platform_name="CPU"), graph)
    except (ValueError, tf.errors.OpError) as error:
        raise RuntimeError(_explained(str(error), graph)) from error


def _explained(message: str, graph: tf.Graph) -> str:
    """Returns TensorFlow's message as a sentence that names our line of code."""
    # TensorFlow's own list of lines leaves out what their paths have in common.
    node = re.search(r"\{\{node ([^}]+)\}\}", message)
    line = _line_of(graph, node[1]) if node else ""
    kind = re.search(r"No registered '(\w+)' OpKernel", message)
    what = f"{kind[1]} has no kernel for XLA" if kind else message.split("\n")[0]
    return f"{what}; made at {line}" if line else what


def _line_of(graph, operation):
    operations = list(_operations(graph))
    wanted = operation.removeprefix("gradient_tape/")
    while wanted:
        scope = wanted + "/"  # Of a gradient, or where XLA renamed the operation.
        for op in operations:
            if op.name == wanted or op.name.startswith(scope):
                return _line(op)
        wanted = wanted.rpartition("/")[0]
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
    """Returns the innermost line that is no library's."""
    for frame in reversed(op.traceback or ()):
        path = pathlib.Path(frame.filename)
        if frame.filename == __file__:
            continue
        if _PACKAGE in path.parents:
            return f"{path.relative_to(_PACKAGE.parent)}:{frame.lineno}"
        if "site-packages" not in path.parts and "tensorflow" not in path.parts:
            return f"{path}:{frame.lineno}"
    return ""
