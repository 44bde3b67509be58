"""Compiles a program with the TPU compiler, on a machine without a TPU.

The only module that knows jax and libtpu. Both are pinned (extra [preflight]): what it
uses of jax is not public.
"""

import os
from typing import NamedTuple

import numpy as np

INSTALL = "pip install -e '.[preflight]'"


class Compiled(NamedTuple):
    """What the compiler says of a program for one device."""

    argument_bytes: int
    temporary_bytes: int
    code_bytes: int
    flops: float
    bytes_accessed: float
    text: str  # the optimised program


def for_tpu(hlo: bytes, topology: str, num_replicas: int) -> Compiled:
    """Compiles an HLO module for replicas on the devices of a topology.

    Args:
      hlo: serialized, as `lower.to_hlo` returns it.
      topology: such as "v3:2x2x1".
      num_replicas: devices that run the program together.
    Raises:
      ImportError: jax or libtpu is not there; says what to install.
      RuntimeError: the program does not compile or does not fit; the compiler's words.
    """
    _, xla_client, topologies, mlir = _modules()
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology
    ).devices[:num_replicas]
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = num_replicas, 1
    ids = np.array([[device.id] for device in devices])
    options.device_assignment = xla_client.DeviceAssignment.create(ids)
    with mlir.make_ir_context():
        executable = devices[0].client.compile(
            _stable_hlo(hlo), xla_client.DeviceList(tuple(devices)), options
        )
    memory, cost = executable.get_compiled_memory_stats(), executable.cost_analysis()
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        text=executable.hlo_modules()[0].to_string(),
    )


def _modules():
    """Imports jax's parts; here, so that all else works without them."""
    os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # Else libtpu looks for a metadata server.
    os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "true"  # Else a lock file admits one.
    try:
        import libtpu  # noqa: F401 - only to be told early that it is missing.
        from jax._src.interpreters import mlir
        from jax._src.lib import _jax, xla_client
        from jax.experimental import topologies
    except ImportError as error:
        raise ImportError(
            f"The TPU compiler is missing ({error}): {INSTALL}"
        ) from error
    return _jax, xla_client, topologies, mlir


def _stable_hlo(hlo: bytes):
    """Returns the module without TensorFlow's copy markers, which libtpu refuses."""
    from jax._src.lib.mlir import ir

    module = ir.Module.parse(_modules()[0].mlir.hlo_to_stablehlo(hlo))
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            copies = [o.operation for o in block if o.operation.name == "mhlo.copy"]
            for copy in copies:
                copy.results[0].replace_all_uses_with(copy.operands[0])
                copy.erase()
    return module
