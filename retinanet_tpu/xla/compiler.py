"""Compiles a program with the TPU compiler, on a machine without a TPU.

The only module that imports jax and libtpu. Both are pinned (extra [preflight]), since
the module uses private functions of jax.
"""

import os
import re
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from retinanet_tpu import errors

if TYPE_CHECKING:
    from jax._src.lib.mlir import ir

INSTALL = "pip install -e '.[preflight]'"
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "": 1}
_SIZE = r"([\d.]+)([KMGT]?)i?B?"
# libtpu reads these variables on a TPU VM. Without them it searches a metadata server,
# holds a lock file that admits one process, and prints warnings.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "true",
    "TPU_ACCELERATOR_TYPE": "v3-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
}


class Compiled(NamedTuple):
    """A compiled program for one device.

    Attributes:
      argument_bytes: The size of the arguments.
      result_bytes: The size of the results that do not replace arguments.
      temporary_bytes: The size of the temporary buffers.
      code_bytes: The size of the code.
      flops: The number of floating point operations.
      bytes_accessed: The bytes accessed in all memories, as XLA counts them.
      text: The optimized HLO module as text.
    """

    argument_bytes: int
    result_bytes: int
    temporary_bytes: int
    code_bytes: int
    flops: float
    bytes_accessed: float
    text: str


class CompileError(RuntimeError):
    """The compiler refused a program.

    Attributes:
      operation: The name of the TensorFlow operation that failed; "" if unknown.
    """

    def __init__(self, message: str, operation: str = ""):
        """Initializes the error.

        Args:
          message: The compiler's message.
          operation: The name of the TensorFlow operation that failed; "" if unknown.
        """
        super().__init__(message)
        self.operation = operation


class OutOfMemoryError(CompileError):
    """A program needs more memory than the device has.

    Attributes:
      missing_bytes: The memory that is missing, bytes; None if unknown.
    """

    def __init__(self, message: str):
        """Initializes the error from the compiler's message."""
        super().__init__(message)
        self.missing_bytes = missing_bytes(message)


def check_installed() -> None:
    """Checks that jax and libtpu can be imported.

    Raises:
      MissingPackageError: One cannot; contains the command that installs it.
    """
    _modules()


def for_tpu(hlo: bytes, topology: str, num_replicas: int) -> Compiled:
    """Compiles an HLO module for replicas on the devices of a topology.

    Args:
      hlo: The serialized module, as `lower.lower` returns it.
      topology: The topology, such as "v3:2x2x1".
      num_replicas: The number of devices that run the program together.
    Raises:
      MissingPackageError: jax or libtpu is not installed.
      OutOfMemoryError: The compiler reports that the program does not fit.
      CompileError: The program does not compile; contains the compiler's message.
    """
    _, xla_client, topologies, mlir = _modules()
    # libtpu assumes hosts of four chips; only these topologies have fewer.
    bounds = {"chips_per_host_bounds": (1, 1, 1)} if topology.endswith(":1x1") else {}
    devices = topologies.get_topology_desc(
        platform="tpu", topology_name=topology, **bounds
    ).devices[:num_replicas]
    options = xla_client.CompileOptions()
    options.num_replicas, options.num_partitions = num_replicas, 1
    ids = np.array([[device.id] for device in devices])
    options.device_assignment = xla_client.DeviceAssignment.create(ids)
    try:
        with mlir.make_ir_context():
            executable = devices[0].client.compile(
                _stable_hlo(hlo), xla_client.DeviceList(tuple(devices)), options
            )
    except RuntimeError as error:
        message = str(error)
        # Running out of on-chip memory is a failure of the compiler, not of the size.
        if "RESOURCE_EXHAUSTED" in message and "hbm" in message.lower():
            raise OutOfMemoryError(message) from error
        raise CompileError(message, _operation_in(message, hlo)) from error
    memory, cost = executable.get_compiled_memory_stats(), executable.cost_analysis()
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        result_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost["flops"],
        bytes_accessed=cost["bytes accessed"],
        text=executable.hlo_modules()[0].to_string(),
    )


def missing_bytes(message: str) -> float | None:
    """Returns the missing memory in a compiler's message, bytes; None if unknown.

    Args:
      message: The message, such as "Used 20.1G of 15.48G hbm. Exceeded hbm capacity by
        4.6G.".
    """
    if match := re.search(rf"[Ee]xceeded .{{0,40}}by {_SIZE}", message):
        return _num_bytes(*match.groups())
    pairs = (
        rf"[Uu]sed {_SIZE} of {_SIZE}",
        rf"\({_SIZE}\) exceeds available \w+ \({_SIZE}\)",
    )
    for pair in pairs:
        if match := re.search(pair, message):
            needed, needed_unit, capacity, capacity_unit = match.groups()
            missing = _num_bytes(needed, needed_unit)
            return missing - _num_bytes(capacity, capacity_unit)
    return None


def _num_bytes(number: str, unit: str) -> float:
    return float(number.rstrip(".")) * _UNITS[unit]


def _operation_in(message: str, hlo: bytes) -> str:
    """Returns the operation whose instruction or custom call a message contains."""
    from jax._src.lib import hlo as jax_hlo

    words = set(re.findall(r"[\w.\-]+", message))
    module = jax_hlo.HloModule.from_serialized_hlo_module_proto(hlo)
    for line in module.to_string().splitlines():
        # Names with a number, such as add.12; others may be plain English words.
        names = re.findall(r'^\s+(?:ROOT )?%?(\w\S*\.\d+) =|call_target="(\w+)"', line)
        operation = re.search(r'op_name="([^"]*)"', line)
        if operation and words & {name for pair in names for name in pair if name}:
            return operation[1]
    return ""


def _modules() -> tuple[ModuleType, ModuleType, ModuleType, ModuleType]:
    """Imports the modules of jax, so that all other modules work without it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401 - only to detect early that it is missing.
        from jax._src.interpreters import mlir
        from jax._src.lib import _jax, xla_client
        from jax.experimental import topologies
    except ImportError as error:
        raise errors.MissingPackageError(
            f"The TPU compiler is missing ({error}): {INSTALL}, in an environment "
            "without tensorflow-tpu, which needs another libtpu"
        ) from error
    return _jax, xla_client, topologies, mlir


def _stable_hlo(hlo: bytes) -> "ir.Module":
    """Returns the MLIR module without mhlo.copy operations, which libtpu refuses.

    tools/benchmarks/step.py repeats this code: it runs with jax alone, on machines
    without TensorFlow and without this package.
    """
    from jax._src.lib.mlir import ir

    module = ir.Module.parse(_modules()[0].mlir.hlo_to_stablehlo(hlo))
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            copies = [op.operation for op in block if op.operation.name == "mhlo.copy"]
            for copy in copies:
                copy.results[0].replace_all_uses_with(copy.operands[0])
                copy.erase()
    return module
