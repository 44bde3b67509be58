"""Measures the speed of compiled steps on a device, in turn.

  python -m retinanet_tpu.preflight --gin_file=RUN.gin --topology=v6e-1 \
      --dump_hlo=ours
  python tools/benchmarks/step.py ours/train.hlo.pb [OTHER.hlo ...] --platform=cuda

The script needs jax (pip install 'jax[cuda12]==0.10.2'; --platform=cpu needs only jax).
It imports neither TensorFlow nor this package, so that it runs as a single file on a
GPU machine with jax alone.

A program is a serialized HLO module for one replica, written by any framework. It runs
on synthetic inputs. The cost of a step must not depend on their values. This holds for
a training step, but not for a loop until convergence.

The time is that of the device: a round runs each step --steps times without waiting.
FLOP are those of the lowered program, the same on every device. Bytes are counted by
the device's compiler after its optimizations; they exclude library calls that it cannot
analyze.
"""

import argparse
import datetime
import math
import os
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

_INSTALL = "pip install 'jax[cuda12]==0.10.2' (or jax==0.10.2 for --platform=cpu)"
# The names of StableHLO and NumPy. ml_dtypes, a dependency of jax, adds bfloat16.
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "i1": "bool",
    "ui64": "uint64", "ui32": "uint32", "ui16": "uint16", "ui8": "uint8",
}  # fmt: skip


class UsageError(ValueError):
    """An error that the user can correct."""


class Argument(NamedTuple):
    """An argument of a program.

    Attributes:
      shape: The static shape.
      dtype: The dtype, a key of _DTYPES.
    """

    shape: tuple[int, ...]
    dtype: str


class Program(NamedTuple):
    """A compiled step with its inputs on the device.

    Attributes:
      executable: The executable of the device's client.
      inputs: The inputs. Each step replaces those that it updates in place.
      updates: The inputs whose memory the outputs reuse: output index -> input index.
      batch_size: The number of images in a step.
      flops: The floating-point operations of a step, as lowered.
      bytes_accessed: The memory traffic of a step in bytes; None if the compiler does
        not report it.
    """

    executable: Any
    inputs: list[Any]
    updates: dict[int, int]
    batch_size: int
    flops: float
    bytes_accessed: float | None


def infer_batch_size(arguments: Sequence[Argument]) -> int | None:
    """Returns the batch of the first argument of shape [batch, height, width, 3]."""
    for shape, _ in arguments:
        if len(shape) == 4 and shape[3] == 3:
            return shape[0]
    return None


def synthetic_input(argument: Argument, rng: np.random.Generator) -> np.ndarray:
    """Returns a valid input for any step.

    Images are random. Other integers are 0: they are counters, indexes and flags.
    Floats are small and positive, because some are variances.

    Args:
      argument: The shape and dtype.
      rng: The source of random numbers.
    """
    shape, dtype = argument
    if dtype == "ui8":
        return rng.integers(0, 256, shape, np.uint8)
    if not dtype.endswith(("f16", "f32", "f64")):
        return np.zeros(shape, _DTYPES[dtype])
    import ml_dtypes  # noqa: F401 - registers "bfloat16" with NumPy.

    values = 0.01 + 0.02 * np.abs(rng.standard_normal(shape, np.float32))
    return values.astype(_DTYPES[dtype])


def in_place_updates(header: str) -> dict[int, int]:
    """Returns the inputs whose memory the outputs reuse.

    Args:
      header: The first line of an HLO module's text, such as
        "HloModule step, input_output_alias={ {1}: (9, {}, may-alias) }".

    Returns:
      A dict: output index -> input index.
    """
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}", header.splitlines()[0])
    return {int(output or 0): int(parameter) for output, parameter in pairs}


def load(path: pathlib.Path, device: Any, batch_size: int | None = None) -> Program:
    """Compiles a program for a device and creates synthetic inputs there.

    Args:
      path: The file of a serialized HLO module.
      device: The device of jax.
      batch_size: The number of images in a step; None infers it from the shapes.

    Raises:
      UsageError: The program is for several replicas, or the batch size cannot be
        inferred.
    """
    import jax
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, hlo as jax_hlo, xla_client

    serialized = path.read_bytes()
    with mlir.make_ir_context():
        module = _without_copy_markers(_jax.mlir.hlo_to_stablehlo(serialized))
        replicas = _num_replicas(module)
        if replicas > 1:
            raise UsageError(
                f"{path} is a program for {replicas} replicas; lower it for one "
                "(preflight --topology=v6e-1 --dump_hlo=DIR)."
            )
        arguments = _arguments(module)
        batch_size = batch_size or infer_batch_size(arguments)
        if not batch_size:
            raise UsageError(
                f"No argument of {path} is [batch, height, width, 3]; set the number "
                "of images in a step with --batch_size=N."
            )
        options = xla_client.CompileOptions()
        ids = np.array([[device.id]])
        options.device_assignment = xla_client.DeviceAssignment.create(ids)
        devices = xla_client.DeviceList((device,))
        executable = device.client.compile_and_load(module, devices, options)
    rng = np.random.default_rng(0)
    lowered = jax_hlo.HloModule.from_serialized_hlo_module_proto(serialized)
    return Program(
        executable=executable,
        inputs=[jax.device_put(synthetic_input(a, rng), device) for a in arguments],
        updates=in_place_updates(lowered.to_string()),
        batch_size=batch_size,
        flops=_jax.hlo_module_cost_analysis(device.client, lowered)["flops"],
        bytes_accessed=_bytes_accessed(executable),
    )


def secs_per_step(program: Program, num_steps: int) -> float:
    """Returns the mean time of a step in seconds.

    Args:
      program: The program; its updated inputs are replaced.
      num_steps: The number of steps to run.
    """
    start = time.perf_counter()
    for _ in range(num_steps):
        outputs = program.executable.execute_sharded(program.inputs)
        arrays = [a for (a,) in outputs.disassemble_into_single_device_arrays()]
        for output, parameter in program.updates.items():
            program.inputs[parameter] = arrays[output]
    for array in arrays:
        array.block_until_ready()
    return (time.perf_counter() - start) / num_steps


def table(programs: Mapping[str, Program], secs: Mapping[str, Sequence[float]]) -> str:
    """Returns the measurements as Markdown: medians and (lowest to highest).

    Args:
      programs: The programs by name.
      secs: The times of a step by name, one per round.
    """
    rows = [
        "| program | images | ms/step | images/s | TFLOP | TFLOP/s | GB | GB/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, program in programs.items():
        median = statistics.median(secs[name])
        low, high = min(secs[name]) * 1e3, max(secs[name]) * 1e3
        gigabytes = math.nan
        if program.bytes_accessed is not None:
            gigabytes = program.bytes_accessed / 1e9
        teraflop = program.flops / 1e12
        cells = [
            name,
            f"{program.batch_size}",
            f"{median * 1e3:.2f} ({low:.2f} to {high:.2f})",
            f"{program.batch_size / median:,.1f}",
            f"{teraflop:.4g}",
            f"{teraflop / median:.4g}",
            f"{gigabytes:.4g}",
            f"{gigabytes / median:.4g}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _without_copy_markers(stable_hlo: bytes) -> Any:
    """Returns the module without TensorFlow's copy markers, which no backend needs.

    `xla/compiler.py` contains the same code. It is repeated here, because this script
    must not import the package; see the top of the file.
    """
    from jax._src.lib.mlir import ir

    module = ir.Module.parse(stable_hlo)
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            copies = [o.operation for o in block if o.operation.name == "mhlo.copy"]
            for copy in copies:
                copy.results[0].replace_all_uses_with(copy.operands[0])
                copy.erase()
    return module


def _num_replicas(module: Any) -> int:
    """Returns the size of the largest replica group of the collectives."""
    from jax._src.lib.mlir import ir

    sizes = [1]

    def visit(operation: Any) -> Any:
        if "replica_groups" in operation.attributes:
            groups = ir.DenseIntElementsAttr(operation.attributes["replica_groups"])
            sizes.append(ir.RankedTensorType(groups.type).shape[-1])
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return max(sizes)


def _arguments(module: Any) -> list[Argument]:
    from jax._src.lib.mlir import ir

    main = next(f for f in module.body.operations if f.name.value == "main")
    types = [ir.RankedTensorType(t) for t in main.type.inputs]
    return [Argument(tuple(t.shape), str(t.element_type)) for t in types]


def _bytes_accessed(executable: Any) -> float | None:
    try:
        return executable.cost_analysis().get("bytes accessed")
    except RuntimeError:  # Not every backend supports the analysis.
        return None


def _device(platform: str | None) -> Any:
    if platform:
        os.environ["JAX_PLATFORMS"] = platform
    try:
        import jax
        from jax.extend import backend
    except ImportError as error:
        raise UsageError(f"jax is missing ({error}): {_INSTALL}") from error
    jax.config.update("jax_enable_x64", True)  # Else int64 inputs become int32.
    try:
        return backend.get_backend(platform).local_devices()[0]
    except RuntimeError as error:
        raise UsageError(f"No device of --platform={platform}: {error}") from error


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "programs",
        nargs="+",
        type=pathlib.Path,
        help="Serialized HLO modules.",
    )
    parser.add_argument(
        "--platform", help="Platform of jax: cpu, cuda or tpu; default: jax's choice."
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="Number of measurements of each program."
    )
    parser.add_argument(
        "--steps", type=int, default=10, help="Number of steps in a measurement."
    )
    parser.add_argument(
        "--warm_up_steps",
        type=int,
        default=3,
        help="Number of steps of each program before the measurements.",
    )
    parser.add_argument(
        "--batch_size",
        type=int,
        help="Number of images in a step; default: inferred from the shapes.",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = _flags(arguments)
    try:
        device = _device(flags.platform)
        programs = {str(p): load(p, device, flags.batch_size) for p in flags.programs}
    except (UsageError, OSError) as error:
        sys.exit(f"error: {error}")
    secs: dict[str, list[float]] = {name: [] for name in programs}
    for program in programs.values():
        secs_per_step(program, flags.warm_up_steps)
    for _ in range(flags.rounds):
        for name, program in programs.items():
            secs[name].append(secs_per_step(program, flags.steps))
    import jax

    today = datetime.date.today().isoformat()
    print(f"{today}, {device.platform}: {device.device_kind}, jax {jax.__version__}\n")
    print(table(programs, secs))


if __name__ == "__main__":
    main()
