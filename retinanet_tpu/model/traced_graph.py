"""A function as a graph of operations, which can be run again one by one."""

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import tensorflow as tf


class TracedGraph:
    """The operations of a function of one tensor, in an order in which they can run.

    Attributes:
      operations: All operations except the inputs.
      inputs: The values of the inputs, by the names of their tensors: the argument,
        constants, or the variables themselves.
      outputs: The tensors that the function returns, flat.
    """

    def __init__(self, fn: Callable[[tf.Tensor], Any], x: tf.Tensor | tf.TensorSpec):
        """Traces the function. In a replica context, variables are the replica's.

        Args:
          fn: The function. It assigns no variable.
          x: The argument, or its spec with a static shape.
        """
        spec = tf.TensorSpec(x.shape, x.dtype)
        traced = tf.function(fn, autograph=False).get_concrete_function(spec)
        variables = {id(variable.handle): variable for variable in traced.variables}
        argument, *captures = traced.inputs
        self.inputs: dict[str, Any] = {argument.name: x}
        for tensor, value in zip(captures, traced.captured_inputs, strict=True):
            self.inputs[tensor.name] = variables.get(id(value), value)
        self.operations = [
            op
            for op in traced.graph.get_operations()
            if op.type not in ("Placeholder", "NoOp")
        ]
        self._structure = traced.structured_outputs
        self.outputs: list[tf.Tensor] = tf.nest.flatten(self._structure)

    def pack(self, outputs: Sequence[tf.Tensor]) -> Any:
        """Returns outputs in the structure of the function's result."""
        return tf.nest.pack_sequence_as(self._structure, list(outputs))


def run(op: tf.Operation, inputs: Sequence[Any]) -> list[tf.Tensor]:
    """Runs an operation on other inputs, in the current graph; returns its outputs.

    Args:
      op: The operation. If it reads a variable, the input is the variable.
      inputs: The inputs, in the order of the operation's.
    """
    if op.type == "ReadVariableOp":
        return [inputs[0].read_value()]
    if op.type == "Const":
        value = tf.make_ndarray(op.get_attr("value"))
        return [tf.constant(value, op.outputs[0].dtype)]
    parameters = _parameters(op.type)
    # tf.raw_ops renames inputs of a few operations, such as Mean; it keeps their order.
    known = {argument.name for argument in op.op_def.input_arg}
    known |= {attribute.name for attribute in op.op_def.attr}
    renamed = iter([name for name in parameters if name not in known])
    arguments = {
        name if name in parameters else next(renamed): value
        for name, value in _named_inputs(op, list(inputs))
    }
    for attribute in op.op_def.attr:
        if attribute.name in parameters:
            arguments[attribute.name] = op.get_attr(attribute.name)
    outputs = getattr(tf.raw_ops, op.type)(**arguments | {"name": op.name})
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


def _named_inputs(op: tf.Operation, inputs: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yields the names of the inputs with their tensors or lists of tensors."""
    for argument in op.op_def.input_arg:
        if argument.number_attr or argument.type_list_attr:
            number = op.get_attr(argument.number_attr or argument.type_list_attr)
            number = number if argument.number_attr else len(number)
            yield argument.name, [inputs.pop(0) for _ in range(number)]
        else:
            yield argument.name, inputs.pop(0)


@functools.cache
def _parameters(op_type: str) -> tuple[str, ...]:
    """Returns the names of the parameters of tf.raw_ops, without `name`."""
    signature = inspect.signature(getattr(tf.raw_ops, op_type))
    return tuple(name for name in signature.parameters if name != "name")
