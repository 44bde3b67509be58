"""Converts programs of TensorFlow for jax's compiler, by jax's public interfaces.

A program becomes a `jax.export.Exported`, which `jax.shard_map` runs on every device.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import tensorflow as tf
from jax import export
from jax.extend import mlir as jax_mlir
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir
from jax.sharding import NamedSharding

from retinanet_tpu.xla import lower, pjrt

# jax's names of platforms for programs, by its names of platforms for devices.
_EXPORT_PLATFORMS = {"gpu": "cuda"}


class Executable:
    """A compiled program.

    Attributes:
      updated: The indices of the captures that the program assigns.
      constant: The indices of the other captures.
    """

    def __init__(self, compiled: Any, updated: Sequence[int], constant: Sequence[int]):
        """Initializes the executable.

        Args:
          compiled: The jax.stages.Compiled.
          updated: The indices of the captures that the program assigns.
          constant: The indices of the other captures.
        """
        self.updated = tuple(updated)
        self.constant = tuple(constant)
        self._compiled = compiled

    def __call__(
        self,
        arguments: Sequence[jax.Array],
        updated: Sequence[jax.Array],
        constant: Sequence[jax.Array],
    ) -> tuple[list[jax.Array], list[jax.Array]]:
        """Starts the program on all devices, and does not wait for it.

        Args:
          arguments: The arguments, from `Devices.shard`.
          updated: The captures that the program assigns; their memory is reused, so
            that these arrays cannot be used again.
          constant: The other captures.
        Returns:
          The results, and the new values of `updated`. The parts of the replicas are
          joined along the first axis; scalars are those of the first replica.
        """
        with pjrt.translated_errors():
            return self._compiled(list(arguments), list(updated), list(constant))

    def memory(self) -> Any:
        """Returns the compiler's jax.stages.CompiledMemoryStats of one device."""
        return self._compiled.memory_analysis()

    def cost(self) -> Mapping[str, float]:
        """Returns the compiler's "flops" and "bytes accessed" of one device."""
        return self._compiled.cost_analysis()

    def text(self) -> str:
        """Returns the optimized HLO module as text."""
        return _without_callers(self._compiled.as_text())


class Lowered(NamedTuple):
    """A program for a group of devices, ready to be compiled.

    Attributes:
      stage: The jax.stages.Lowered.
      updated: The indices of the captures that the program assigns.
      constant: The indices of the other captures.
      fingerprint: The hash of the program without names of files and operations: 16
        hexadecimal digits. It depends on the number of replicas, but not on the kind
        of devices.
    """

    stage: Any
    updated: tuple[int, ...]
    constant: tuple[int, ...]
    fingerprint: str

    def compile(self) -> Executable:
        """Compiles the program, or reads it from the cache of compiled programs.

        Raises:
          RuntimeError: The program does not compile.
        """
        return Executable(self.stage.compile(), self.updated, self.constant)

    def hlo_text(self) -> str:
        """Returns the program as it is passed to the compiler, as HLO."""
        return _without_callers(self.stage.as_text(dialect="hlo", debug_info=True))


class _Module(NamedTuple):
    """A StableHLO module.

    Attributes:
      artifact: The module in StableHLO's portable format.
      fingerprint: The hash of its text.
      assigned: The parameter that each of the last results replaces.
    """

    artifact: bytes
    fingerprint: str
    assigned: list[int]


def lower_for(program: lower.Program, devices: pjrt.Devices) -> Lowered:
    """Returns a program for a group of devices.

    Args:
      program: The program, for as many replicas as there are devices.
      devices: The devices.
    """
    module = _module(program.hlo)
    num_arguments = len(program.arguments)
    arguments = [_shape_of(spec) for spec in program.arguments]
    captures = [_shape_of(value) for value in program.captures]
    results = [_shape_of(spec) for spec in tf.nest.flatten(program.results)]
    updated = tuple(parameter - num_arguments for parameter in module.assigned)
    constant = tuple(sorted(set(range(len(captures))) - set(updated)))
    exported = _exported(
        module.artifact,
        [*arguments, *captures],
        [*results, *(captures[i] for i in updated)],
        _EXPORT_PLATFORMS.get(devices.platform, devices.platform),
    )

    def replica(arguments, updated_values, constant_values):
        values = dict(zip(updated, updated_values, strict=True))
        values |= zip(constant, constant_values, strict=True)
        outputs = exported.call(*arguments, *(values[i] for i in range(len(captures))))
        return outputs[: len(results)], outputs[len(results) :]

    specs = [pjrt.SHARDED if a.shape else pjrt.REPLICATED for a in arguments]
    result_specs = [pjrt.SHARDED if r.shape else pjrt.REPLICATED for r in results]
    step = jax.jit(
        jax.shard_map(
            replica,
            mesh=devices.mesh,
            in_specs=(specs, pjrt.REPLICATED, pjrt.REPLICATED),
            out_specs=(result_specs, pjrt.REPLICATED),
            check_vma=False,  # Replicas stay equal because they compute the same.
        ),
        in_shardings=(
            [NamedSharding(devices.mesh, spec) for spec in specs],
            devices.replicated,
            devices.replicated,
        ),
        donate_argnums=1,
    )
    stage = step.lower(
        [_global_shape(a, devices.count) for a in arguments],
        [captures[i] for i in updated],
        [captures[i] for i in constant],
    )
    return Lowered(stage, updated, constant, module.fingerprint)


def _module(hlo: bytes) -> _Module:
    """Returns a module that jax can call, from HLO for replicas.

    TensorFlow's `mhlo.copy` operations are removed, which compilers refuse. Reductions
    over replicas become reductions over devices, as `jax.lax.psum` makes them.
    """
    with mlir.make_ir_context(), ir.Location.unknown():
        module = ir.Module.parse(jax_mlir.hlo_to_stablehlo(hlo))
        operations: dict[str, list[Any]] = {
            "func.call": [],
            "mhlo.copy": [],
            "stablehlo.all_reduce": [],
        }

        def visit(operation):
            operations.setdefault(operation.name, []).append(operation)
            return ir.WalkResult.ADVANCE

        module.operation.walk(visit)
        for copy in operations["mhlo.copy"]:
            copy.results[0].replace_all_uses_with(copy.operands[0])
            copy.erase()
        for number, reduction in enumerate(operations["stablehlo.all_reduce"], 1):
            reduction.attributes["channel_handle"] = ir.Attribute.parse(
                f"#stablehlo.channel_handle<handle = {number}, type = 1>"
            )
            reduction.attributes["use_global_device_ids"] = ir.UnitAttr.get()
        assigned = _assigned(module)
        for name in _names(module.operation.attributes):
            if name.startswith("mhlo."):
                del module.operation.attributes[name]
        module.operation.attributes["sym_name"] = ir.StringAttr.get("step")
        _rename_functions(module, operations["func.call"])
        text = module.operation.get_asm(enable_debug_info=False)
        artifact = stablehlo.serialize_portable_artifact(
            module, stablehlo.get_current_version()
        )
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return _Module(artifact, digest, assigned)


def _rename_functions(module: ir.Module, calls: Sequence[ir.Operation]) -> None:
    """Renames all functions but `main` by their order in the module.

    TensorFlow's names contain counters of the process, which would change the
    fingerprint and the key in the cache of compiled programs.

    Args:
      module: The module.
      calls: Its operations `func.call`.
    """
    # A network has a thousand functions, so the module is not searched for each one.
    names = {"main": "main"}
    for number, function in enumerate(list(module.body.operations)):
        name = ir.StringAttr(function.attributes["sym_name"]).value
        if name != "main":
            names[name] = f"function_{number}"
            ir.SymbolTable.set_symbol_name(function, names[name])
    for call in calls:
        old = ir.FlatSymbolRefAttr(call.attributes["callee"]).value
        call.attributes["callee"] = ir.FlatSymbolRefAttr.get(names[old])
    module.operation.verify()  # Refers to no other function.


def _assigned(module: ir.Module) -> list[int]:
    """Returns the parameter that each assigned result replaces, in their order."""
    attributes = module.operation.attributes
    name = "mhlo.input_output_alias"
    if name not in attributes:
        return []
    parameters = {}
    for entry in attributes[name]:
        entry = ir.DictAttr(entry)
        result = list(ir.DenseI64ArrayAttr(entry["output_index"]))
        alias = ir.DictAttr(entry["alias"])
        parameter = int(ir.IntegerAttr(alias["parameter_number"]))
        parameters[result[0] if result else 0] = parameter
    return [parameters[result] for result in sorted(parameters)]


def _without_callers(hlo: str) -> str:
    """Returns HLO text whose operations have the names that TensorFlow gave them."""
    return re.sub(r'op_name="jit\(\w+\)/shard_map/call_exported/', 'op_name="', hlo)


def _names(attributes: Any) -> list[str]:
    return [a if isinstance(a, str) else a.name for a in attributes]


def _exported(
    artifact: bytes,
    arguments: Sequence[jax.ShapeDtypeStruct],
    results: Sequence[jax.ShapeDtypeStruct],
    platform: str,
) -> export.Exported:
    """Returns a function that calls a module.

    jax has no constructor for it. So a function of the same types is exported, and its
    module is replaced.
    """

    def same_types(*_):
        return [jnp.zeros(r.shape, r.dtype) for r in results]

    function = jax.jit(same_types, keep_unused=True)
    exported = export.export(function, platforms=[platform])(*arguments)
    return dataclasses.replace(
        exported, mlir_module_serialized=artifact, fun_name="step"
    )


def _shape_of(value: Any) -> jax.ShapeDtypeStruct:
    dtype = value.dtype
    if isinstance(dtype, tf.DType):
        dtype = dtype.as_numpy_dtype
    return jax.ShapeDtypeStruct(tuple(value.shape), dtype)


def _global_shape(share: jax.ShapeDtypeStruct, count: int) -> jax.ShapeDtypeStruct:
    if not share.shape:
        return share
    shape = (share.shape[0] * count, *share.shape[1:])
    return jax.ShapeDtypeStruct(shape, share.dtype)
