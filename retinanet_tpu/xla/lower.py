"""Turns the step of one replica into an XLA program, without the devices it is for."""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf
from tensorflow.compiler.tf2xla.ops import gen_xla_ops


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


def to_hlo(
    fn: Callable[..., Any], specs: Sequence[Any], strategy: AheadOfTimeStrategy
) -> bytes:
    """Returns the serialized HLO module of what fn does on one replica.

    Args:
      fn: of any nests of tensors; may read and assign variables, which become
        parameters and results of the program.
      specs: a nest of tf.TensorSpec for each argument of fn; static shapes.
      strategy: says how many replicas there are.
    """
    flat_specs = tf.nest.flatten(list(specs))

    @tf.function(jit_compile=True, autograph=False)
    def program(*tensors):
        with strategy.replica_context():
            return fn(*tf.nest.pack_sequence_as(list(specs), list(tensors)))

    ir = program.experimental_get_compiler_ir(*flat_specs)
    return ir(stage="hlo_serialized", platform_name="CPU")
