"""Compiles a program with the TPU compiler, on a machine without a TPU."""

import os
import re
from types import ModuleType
from typing import NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.xla import loop_flops, lower

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
      flops: The number of floating point operations, with all iterations of loops.
      bytes_accessed: The bytes accessed in all memories, as XLA counts them: one
        iteration of each loop.
      text: The optimized HLO module as text.
      fingerprint: The hash of the program; see `jax_program.Lowered`.
    """

    argument_bytes: int
    result_bytes: int
    temporary_bytes: int
    code_bytes: int
    flops: float
    bytes_accessed: float
    text: str
    fingerprint: str = ""


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


def for_tpu(program: lower.Program, topology: str) -> Compiled:
    """Compiles a program for the replicas on the first devices of a topology.

    Args:
      program: The program, from `lower.lower`.
      topology: The topology, such as "v3:2x2x1".
    Raises:
      MissingPackageError: jax or libtpu is not installed.
      OutOfMemoryError: The compiler reports that the program does not fit.
      CompileError: The program does not compile; contains the compiler's message.
    """
    pjrt, jax_program = _modules()
    devices = pjrt.topology(topology, program.num_replicas)
    lowered = jax_program.lower_for(program, devices)
    try:
        executable = lowered.compile()
    except RuntimeError as error:
        message = str(error)
        # Running out of on-chip memory is a failure of the compiler, not of the size.
        if "RESOURCE_EXHAUSTED" in message and "hbm" in message.lower():
            raise OutOfMemoryError(message) from error
        operation = _operation_in(message, lowered.hlo_text())
        raise CompileError(message, operation) from error
    memory, cost, text = executable.memory(), executable.cost(), executable.text()
    return Compiled(
        argument_bytes=memory.argument_size_in_bytes,
        result_bytes=memory.output_size_in_bytes - memory.alias_size_in_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        flops=cost["flops"] + loop_flops.uncounted(text),
        bytes_accessed=cost["bytes accessed"],
        text=text,
        fingerprint=lowered.fingerprint,
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


def _operation_in(message: str, hlo: str) -> str:
    """Returns the operation whose instruction or custom call a message contains."""
    words = set(re.findall(r"[\w.\-]+", message))
    for line in hlo.splitlines():
        # Names with a number, such as add.12; others may be plain English words.
        names = re.findall(r'^\s+(?:ROOT )?%?(\w\S*\.\d+) =|call_target="(\w+)"', line)
        operation = re.search(r'op_name="([^"]*)"', line)
        if operation and words & {name for pair in names for name in pair if name}:
            return operation[1]
    return ""


def _modules() -> tuple[ModuleType, ModuleType]:
    """Imports jax and libtpu, so that all other modules work without them."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import libtpu  # noqa: F401 - only to detect early that it is missing.

        from retinanet_tpu.xla import jax_program, pjrt
    except ImportError as error:
        raise errors.MissingPackageError(
            f"The TPU compiler is missing ({error}): {INSTALL}, in an environment "
            "without tensorflow-tpu, which needs another libtpu"
        ) from error
    return pjrt, jax_program
