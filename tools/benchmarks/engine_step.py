"""Measures the training step of a run through the engine pjrt, on one device.

  python engine_step.py --programs=DIR --gin_file=RUN.gin --batch_sizes=8,16
  python engine_step.py --programs=DIR --batch_sizes=8 --device=gpu

With --gin_file it lowers the step for each batch size, without the device, and writes
the programs to DIR. Without it, it compiles and runs those programs; the last line of
the output is the measurement in JSON. Lowering needs no GPU and takes as long as
preflight's, so that it may happen on another machine.

The code is that of the engine: the program is lowered, compiled and called by the
modules that training uses, and its state stays on the device. Batches are synthetic.
Variables have random values with the mean and the deviation of those of a new network.
The batch is on the device before the measurement.
"""

import retinanet_tpu.startup.cpu

import gzip
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import flags

from retinanet_tpu import errors, structures
from retinanet_tpu.planning import step_functions
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.xla import lower

FLAGS = flags.FLAGS

_NUM_BOXES = 7  # COCO's mean. The cost of a step does not depend on it.
_HLO, _SPECS, _CONSTANTS = "step.hlo.pb.gz", "specs.json", "constants.npz"


class Variable(NamedTuple):
    """A variable of a saved program.

    Attributes:
      shape: The static shape.
      dtype: The dtype.
      mean: The mean of the values of a new network.
      deviation: Their standard deviation.
    """

    shape: tuple[int, ...]
    dtype: tf.DType
    mean: float
    deviation: float


def save(program: lower.Program, folder: pathlib.Path) -> None:
    """Writes a program, without the values of its variables.

    Args:
      program: The program.
      folder: The folder to write to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    constants = {}
    captures = []
    for index, value in enumerate(program.captures):
        if isinstance(value, tf.Variable):
            numbers = value.numpy().astype(np.float64)
            captures.append([*_to_json(value), numbers.mean(), numbers.std()])
        else:
            constants[str(index)] = value
            captures.append([*_to_json(value), 0, 0])
    np.savez(folder / _CONSTANTS, **constants)
    (folder / _HLO).write_bytes(gzip.compress(program.hlo))
    specs = {
        "arguments": [_to_json(spec) for spec in program.arguments],
        "results": [_to_json(spec) for spec in tf.nest.flatten(program.results)],
        "captures": captures,
    }
    (folder / _SPECS).write_text(json.dumps(specs))


def read(folder: pathlib.Path) -> lower.Program:
    """Returns a saved program; its captures are constants, or of the type Variable.

    Args:
      folder: The folder that `save` wrote.
    Raises:
      MissingFileError: The folder has no program.
    """
    if not (folder / _SPECS).exists():
        raise errors.MissingFileError(f"No program in {folder}; run with --gin_file.")
    specs = json.loads((folder / _SPECS).read_text())
    arguments, results = (
        [tf.TensorSpec(shape, dtype) for shape, dtype in specs[name]]
        for name in ("arguments", "results")
    )
    captures: list[Any] = [
        Variable(tuple(shape), tf.as_dtype(dtype), mean, deviation)
        for shape, dtype, mean, deviation in specs["captures"]
    ]
    with np.load(folder / _CONSTANTS) as constants:
        for name, value in constants.items():
            captures[int(name)] = value
    return lower.Program(
        hlo=gzip.decompress((folder / _HLO).read_bytes()),
        graph=None,
        arguments=arguments,
        results=results,
        captures=captures,
    )


def synthetic_batch(program: lower.Program) -> list[np.ndarray]:
    """Returns the arguments of a training step: a batch, and the number of the step.

    Args:
      program: The program of a training step.
    """
    rng = np.random.default_rng(0)
    # The order of tf.nest: the fields of the records, then the step.
    (batch, height, width, _), *_ = (spec.shape for spec in program.arguments)
    num_rows = program.arguments[len(structures.Features._fields)].shape[1]
    corners, sides = (
        rng.uniform(low, 0.5, [batch, num_rows, 2]) * [height, width]
        for low in (0.0, 0.05)
    )
    features = structures.Features(
        images=rng.integers(0, 256, [batch, height, width, 3], np.uint8),
        image_ids=np.arange(batch, dtype=np.int64),
        image_sizes=np.tile(np.int32([height, width]), [batch, 1]),
        scales=np.ones([batch, 2], np.float32),
    )
    labels = structures.Labels(
        boxes_yxyx=np.concatenate([corners, corners + sides], -1).astype(np.float32),
        classes=np.ones([batch, num_rows], np.int32),
        is_crowd=np.zeros([batch, num_rows], bool),
        num_boxes=np.full([batch], min(_NUM_BOXES, num_rows), np.int32),
    )
    return [*tf.nest.flatten((features, labels)), np.int64(0)]


def synthetic_value(value: Any, rng: np.random.Generator) -> np.ndarray:
    """Returns the value of a variable.

    A GPU needs more power, and may be slower, for random numbers than for zeros.

    Args:
      value: The Variable, or a constant, which is returned.
      rng: The source of random numbers.
    """
    if not isinstance(value, Variable):
        return value
    numbers = value.mean + value.deviation * rng.standard_normal(value.shape)
    return np.asarray(numbers).astype(value.dtype.as_numpy_dtype)


def measure(
    program: lower.Program,
    device: str,
    *,
    num_steps: int,
    num_rounds: int,
    cache_dir: str | None = None,
) -> dict[str, Any]:
    """Compiles a training step for one device and measures it.

    Args:
      program: The program.
      device: The kind of device: "cpu", "gpu" or "tpu".
      num_steps: The number of steps of a round, which do not wait for each other.
      num_rounds: The number of rounds.
      cache_dir: The directory of compiled programs; None for no cache.
    Raises:
      UserError: The device does not exist or has too little memory.
    """
    from retinanet_tpu.xla import jax_program, pjrt

    devices = pjrt.connect(device, 1, cache_dir=cache_dir)
    with pjrt.translated_errors():
        start = time.monotonic()
        lowered = jax_program.lower_for(program, devices)
        lowering_secs = time.monotonic() - start
        start = time.monotonic()
        executable = lowered.compile()
        compile_secs = time.monotonic() - start
        flops = _flops(lowered, executable)
        secs, scalars = _time_steps(program, devices, executable, num_steps, num_rounds)
    batch_size = program.arguments[0].shape[0]
    median = statistics.median(secs)
    return {
        "batch_size": batch_size,
        "device_kind": devices.kind,
        "fingerprint": lowered.fingerprint,
        "conversion_secs": round(lowering_secs, 1),
        "compile_secs": round(compile_secs, 1),
        "ms_per_step": [round(1e3 * value, 3) for value in secs],
        "images_per_sec": round(batch_size / median, 2),
        "tflop": flops / 1e12,
        "tflop_per_sec": flops / 1e12 / median,
        "memory_mb": _memory(devices, executable),
        "is_finite": bool(np.isfinite(scalars).all()),
    }


def _time_steps(
    program: lower.Program,
    devices: Any,
    executable: Any,
    num_steps: int,
    num_rounds: int,
) -> tuple[list[float], np.ndarray]:
    """Returns the mean time of a step of each round, in seconds, and the scalars."""
    rng = np.random.default_rng(0)
    values = [synthetic_value(spec, rng) for spec in program.captures]
    arguments = devices.shard([synthetic_batch(program)])
    updated = devices.replicate([values[i] for i in executable.updated])
    constant = devices.replicate([values[i] for i in executable.constant])
    del values
    secs = []
    for steps in [3, *[num_steps] * num_rounds]:  # The first round is a warm-up.
        start = time.monotonic()
        for _ in range(steps):
            results, updated = executable(arguments, updated, constant)
        (scalars,) = devices.fetch(results)
        secs.append((time.monotonic() - start) / steps)
    return secs[1:], scalars


def _flops(lowered: Any, executable: Any) -> float:
    """Returns the FLOP of a step, as XLA counts them before optimizations.

    After them, the convolutions of a GPU are calls of a library, which it cannot count.
    """
    cost = lowered.stage.cost_analysis() or executable.cost()
    return float(cost["flops"])


def _memory(devices: Any, executable: Any) -> dict[str, float]:
    """Returns the compiler's sizes in MB, and the runtime's peak if it counts it."""
    memory = executable.memory()
    sizes = {
        "arguments": memory.argument_size_in_bytes,
        "results": memory.output_size_in_bytes - memory.alias_size_in_bytes,
        "temporaries": memory.temp_size_in_bytes,
    }
    counters = devices.mesh.devices.flat[0].memory_stats() or {}
    if "peak_bytes_in_use" in counters:
        sizes["peak"] = counters["peak_bytes_in_use"]
    return {name: round(size / 1e6, 3) for name, size in sizes.items()}


def _to_json(value: Any) -> tuple[list[int], str]:
    return list(value.shape), tf.as_dtype(value.dtype).name


def lower_steps(batch_sizes: Sequence[int], folder: pathlib.Path) -> None:
    """Lowers the training step of the run of --gin_file and writes the programs.

    Args:
      batch_sizes: The numbers of images.
      folder: The folder of the programs.
    """
    cli.parse_files()
    strategy = lower.AheadOfTimeStrategy(1)
    run = configurables.make_run(None, strategy_fn=lambda: strategy)
    step = step_functions.build(run)["train"]
    for batch_size in batch_sizes:
        start = time.monotonic()
        program = lower.lower(step.fn, step.specs_fn(batch_size), strategy)
        save(program, program_folder(folder, batch_size))
        secs = time.monotonic() - start
        print(f"lowered a batch of {batch_size} in {secs:.0f} s", flush=True)


def program_folder(folder: pathlib.Path, batch_size: int) -> pathlib.Path:
    """Returns the folder of a program.

    Args:
      folder: The folder of all programs.
      batch_size: The number of images of a step.
    """
    return folder / f"batch_{batch_size}"


def main() -> None:
    """Runs the command."""
    tf.config.set_visible_devices([], "GPU")  # PJRT needs their memory.
    folder = pathlib.Path(FLAGS.programs)
    batch_sizes = [int(text) for text in FLAGS.batch_sizes]
    if cli.GIN_FILE.value:
        lower_steps(batch_sizes, folder)
        return
    for batch_size in batch_sizes:
        try:
            result = measure(
                read(program_folder(folder, batch_size)),
                FLAGS.device,
                num_steps=FLAGS.steps,
                num_rounds=FLAGS.rounds,
                cache_dir=FLAGS.compilation_cache or None,
            )
        except errors.UserError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            result = {"batch_size": batch_size, "out_of_memory": str(error)[:500]}
        print(json.dumps(result), flush=True)


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string("programs", None, "Folder of the programs.", required=True)
    flags.DEFINE_list("batch_sizes", ["8"], "Numbers of images of a step.")
    flags.DEFINE_enum("device", "gpu", ["cpu", "gpu", "tpu"], "Kind of device.")
    flags.DEFINE_integer("steps", 20, "Number of steps of a round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 5, "Number of rounds.", lower_bound=1)
    flags.DEFINE_string(
        "compilation_cache", "", "Directory of compiled programs; empty for none."
    )


if __name__ == "__main__":
    define_flags()
    guard.run(main)
