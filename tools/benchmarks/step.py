"""Runs compiled steps on a device in turn and says how fast they are.

  python -m retinanet_tpu.preflight --gin_file=RUN.gin --topology=v6e-1 \
      --dump_hlo=ours
  python tools/benchmarks/step.py ours/train.hlo.pb [OTHER.hlo ...] --platform=cuda

Needs jax (pip install 'jax[cuda12]==0.10.2'; --platform=cpu needs only jax), and
neither TensorFlow nor this package. A program is a serialized HLO module for one
replica, of whoever's step; it is fed made-up inputs. What a step costs must not hang on
them: a training step's cost does not, that of a loop until convergence may.

Time is that of the device: a round runs the step --steps times without waiting, and
every program has its turn in every round. FLOP are the program's as it was lowered,
the same on every device; bytes are what the device's compiler counts after its
optimizations, and leave out library calls where it cannot see into them.
"""

import retinanet_tpu.startup.cpu

import argparse
import datetime
import math
import os
import pathlib
import re
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from retinanet_tpu import errors
from retinanet_tpu.startup import guard

_INSTALL = "pip install 'jax[cuda12]==0.10.2' (or jax==0.10.2 for --platform=cpu)"
# As StableHLO writes them; ml_dtypes, which comes with jax, adds bfloat16 to NumPy.
_DTYPES = {
    "f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16",
    "i64": "int64", "i32": "int32", "i16": "int16", "i8": "int8", "i1": "bool",
    "ui64": "uint64", "ui32": "uint32", "ui16": "uint16", "ui8": "uint8",
}  # fmt: skip


class Argument(NamedTuple):
    """What a program wants to be given."""

    shape: tuple[int, ...]
    dtype: str  # a key of _DTYPES


class Program(NamedTuple):
    """A compiled step with its inputs on the device."""

    executable: Any
    inputs: list[Any]  # changes: what the step updates in place is what it left there
    updates: dict[int, int]  # output -> the input whose memory it takes
    images: int
    flops: float
    bytes_accessed: float | None  # None where the compiler does not say


def num_images(arguments: Sequence[Argument]) -> int | None:
    """Returns the batch of the first argument of shape [batch, height, width, 3]."""
    for shape, _ in arguments:
        if len(shape) == 4 and shape[3] == 3:
            return shape[0]
    return None


def made_up(argument: Argument, rng: np.random.Generator) -> np.ndarray:
    """Returns an input that no step chokes on.

    Images are random. Other integers, which count, index and say true or false, are
    0. Floats, among which are weights and variances, are small and positive.
    """
    shape, dtype = argument
    if dtype == "ui8":
        return rng.integers(0, 256, shape, np.uint8)
    if not dtype.endswith(("f16", "f32", "f64")):
        return np.zeros(shape, _DTYPES[dtype])
    import ml_dtypes  # noqa: F401 - makes "bfloat16" known to NumPy.

    values = 0.01 + 0.02 * np.abs(rng.standard_normal(shape, np.float32))
    return values.astype(_DTYPES[dtype])


def in_place_updates(header: str) -> dict[int, int]:
    """Returns which output takes the memory of which input.

    Args:
      header: of the text of an HLO module, such as
        "HloModule step, input_output_alias={ {1}: (9, {}, may-alias) }".
    """
    found = re.findall(r"\{(\d*)\}: \((\d+), \{\}", header.splitlines()[0])
    return {int(output or 0): int(given) for output, given in found}


def load(path: pathlib.Path, device: Any, images: int | None = None) -> Program:
    """Compiles a program for a device and puts made-up inputs there.

    Args:
      path: a serialized HLO module.
      device: of jax.
      images: of one step; None takes them from the shape of the images.

    Raises:
      UserError: the program is for several replicas, or does not say how many images.
    """
    import jax
    from jax._src.interpreters import mlir
    from jax._src.lib import _jax, hlo as jax_hlo, xla_client

    serialized = path.read_bytes()
    with mlir.make_ir_context():
        module = _without_copy_markers(_jax.mlir.hlo_to_stablehlo(serialized))
        replicas = _num_replicas(module)
        if replicas > 1:
            raise errors.UserError(
                f"{path} is a program for {replicas} replicas; lower it for one "
                "(preflight --topology=v6e-1 --dump_hlo=DIR)."
            )
        arguments = _arguments(module)
        images = images or num_images(arguments)
        if not images:
            raise errors.UserError(
                f"No argument of {path} is [batch, height, width, 3]; say how many "
                "images a step takes: --images=N."
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
        inputs=[jax.device_put(made_up(a, rng), device) for a in arguments],
        updates=in_place_updates(lowered.to_string()),
        images=images,
        flops=_jax.hlo_module_cost_analysis(device.client, lowered)["flops"],
        bytes_accessed=_bytes_accessed(executable),
    )


def secs_per_step(program: Program, num_steps: int) -> float:
    """Runs a program some times and returns the seconds that one took."""
    start = time.perf_counter()
    for _ in range(num_steps):
        outputs = program.executable.execute_sharded(program.inputs)
        arrays = [a for (a,) in outputs.disassemble_into_single_device_arrays()]
        for output, given in program.updates.items():
            program.inputs[given] = arrays[output]
    for array in arrays:
        array.block_until_ready()
    return (time.perf_counter() - start) / num_steps


def table(programs: Mapping[str, Program], secs: Mapping[str, Sequence[float]]) -> str:
    """Returns the measurements as Markdown: medians, and (lowest to highest).

    Args:
      programs: by name; of each, images, flops and bytes_accessed matter.
      secs: of one step, by name, round by round.
    """
    rows = [
        "| program | images | ms a step | images/s | TFLOP | TFLOP/s | GB | GB/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, program in programs.items():
        middle = statistics.median(secs[name])
        low, high = min(secs[name]) * 1e3, max(secs[name]) * 1e3
        gigabytes = math.nan
        if program.bytes_accessed is not None:
            gigabytes = program.bytes_accessed / 1e9
        teraflop = program.flops / 1e12
        cells = [
            name,
            f"{program.images}",
            f"{middle * 1e3:.2f} ({low:.2f} to {high:.2f})",
            f"{program.images / middle:,.1f}",
            f"{teraflop:.4g}",
            f"{teraflop / middle:.4g}",
            f"{gigabytes:.4g}",
            f"{gigabytes / middle:.4g}",
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _without_copy_markers(stable_hlo):
    """Returns the module without what TensorFlow alone puts in and no backend needs."""
    from jax._src.lib.mlir import ir

    module = ir.Module.parse(stable_hlo)
    for function in module.body.operations:
        for block in function.regions[0].blocks:
            copies = [o.operation for o in block if o.operation.name == "mhlo.copy"]
            for copy in copies:
                copy.results[0].replace_all_uses_with(copy.operands[0])
                copy.erase()
    return module


def _num_replicas(module):
    """Returns the size of the largest group that reduces together."""
    from jax._src.lib.mlir import ir

    sizes = [1]

    def visit(operation):
        if "replica_groups" in operation.attributes:
            groups = ir.DenseIntElementsAttr(operation.attributes["replica_groups"])
            sizes.append(ir.RankedTensorType(groups.type).shape[-1])
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return max(sizes)


def _arguments(module):
    from jax._src.lib.mlir import ir

    main = next(f for f in module.body.operations if f.name.value == "main")
    types = [ir.RankedTensorType(t) for t in main.type.inputs]
    return [Argument(tuple(t.shape), str(t.element_type)) for t in types]


def _bytes_accessed(executable):
    try:
        return executable.cost_analysis().get("bytes accessed")
    except RuntimeError:  # Not every backend has the analysis.
        return None


def _device(platform):
    if platform:
        os.environ["JAX_PLATFORMS"] = platform
    try:
        import jax
        from jax.extend import backend
    except ImportError as error:
        raise errors.UserError(f"jax is missing ({error}): {_INSTALL}") from error
    jax.config.update("jax_enable_x64", True)  # Else int64 inputs shrink to int32.
    try:
        return backend.get_backend(platform).local_devices()[0]
    except RuntimeError as error:
        raise errors.UserError(
            f"No device of --platform={platform}: {error}"
        ) from error


def _flags(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("programs", nargs="+", type=pathlib.Path)
    parser.add_argument("--platform", help="cpu, cuda or tpu; default: jax's choice")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="of each, in a round")
    parser.add_argument("--warm_up_steps", type=int, default=3)
    parser.add_argument("--images", type=int, help="of a step; default: by the shapes")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = _flags(arguments)
    with guard.explained():
        device = _device(flags.platform)
        programs = {str(p): load(p, device, flags.images) for p in flags.programs}
    secs = {name: [] for name in programs}
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
