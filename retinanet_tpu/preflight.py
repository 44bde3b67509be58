r"""Compiles a run's steps for a TPU without one: do they compile, fit, and how fast?

  python -m retinanet_tpu.preflight --gin_file=gin_configs/coco_r50_640_3x.gin \
      --topology=v3-32 [--batch_size=512] [--find_batch_size] [--dump_hlo=DIR] [--json]

Needs no TPU and no data, but the extra [preflight]. The exit code is 0 only if all of
the steps compile and fit: training and evaluation, exchanges between replicas included,
and the exported signature on one image. Times are lower bounds: the vendor's peak
rates, no waiting for other devices, one pass of a loop of unknown length.
"""

import retinanet_tpu.startup.cpu

import contextlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.planning import host_throughput, report as report_lib, step_functions
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.xla import compiler, lower, roofline, traffic

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3-8", "A slice, as Google Cloud names it."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", None, "Images of a training step, not the run's.", lower_bound=1
)
_FIND_BATCH_SIZE = flags.DEFINE_bool(
    "find_batch_size",
    False,
    "Find the largest batch that fits: of training, and of steps that do not fit.",
)
_HOST_RATE = flags.DEFINE_bool(
    "host_rate", True, "Measure this machine's input pipeline, for some seconds."
)
_DUMP_HLO = flags.DEFINE_string("dump_hlo", None, "Directory to write the programs to.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the table.")

_MOST_MOVES = 10  # to list
_HEARTBEAT_SECS = 30


def main() -> None:
    """Runs the command."""
    compiler.check_installed()
    target = roofline.accelerator(_TOPOLOGY.value)
    cli.parse_files(*_overrides(target))
    run = configurables.make_run(
        None, strategy_fn=lambda: lower.AheadOfTimeStrategy(target.num_devices)
    )
    rates = _host_rates(run) if _HOST_RATE.value else {}
    report = {
        "topology": _TOPOLOGY.value,
        "num_devices": target.num_devices,
        "num_hosts": target.num_hosts,
        "steps": {},
    }
    for name, step in step_functions.build(run).items():
        found = examine(name, step, step.images, target, dump_dir=_DUMP_HLO.value)
        if "images_per_sec_at_most" in found and step.num_replicas > 1:
            wanted = found["images_per_sec_at_most"] / target.num_hosts
            found["images_per_sec_of_host"] = wanted
            found["images_per_core_sec"] = rates.get(name)
        if _is_searched(name, step, found):
            fits_fn = _fits_fn(name, step, target, {step.images: found["fits"]})
            largest = largest_batch(fits_fn, step.images)
            found["largest_batch"] = largest * step.num_replicas
        report["steps"][name] = found
    print(json.dumps(report) if _JSON.value else report_lib.table(report))
    sys.exit(not all(step["fits"] for step in report["steps"].values()))


def examine(
    name: str,
    step: step_functions.ReplicaFn,
    images: int,
    target: roofline.Accelerator,
    dump_dir: str | None = None,
) -> dict[str, Any]:
    """Returns what a step costs on each device of a slice.

    Args:
      name: of the step, for the log and for files.
      step: to lower and compile.
      images: of a device.
      target: the slice.
      dump_dir: to write the program to, as it was lowered and as it was optimized.
    """
    found = {"images": images, "num_devices": step.num_replicas}
    found |= {"setting": step.setting, "fits": False}
    strategy = lower.AheadOfTimeStrategy(step.num_replicas)
    what = f"preflight | {name} | {images} images a device"
    try:
        with _logged(f"{what} | tracing"):
            program = lower.lower(step.fn, step.specs_fn(images), strategy)
    except RuntimeError as error:
        return found | {"outcome": report_lib.DOES_NOT_COMPILE, "error": str(error)}
    _dump(dump_dir, f"{name}.hlo.pb", program.hlo)
    try:
        with _logged(f"{what} | compiling"):
            compiled = compiler.for_tpu(program.hlo, target.topology, step.num_replicas)
    except compiler.CompileError as error:
        return found | _failure(error, program)
    _dump(dump_dir, f"{name}.tpu.txt", compiled.text)
    return found | _cost(found, compiled, program, target)


def largest_batch(fits_fn: Callable[[int], bool], start: int) -> int:
    """Returns the most images that fit a device, 0 if not even one does.

    Args:
      fits_fn: whether so many do; false for all numbers above one that does not fit.
      start: where to begin doubling; at least 1.
    """
    low, high = 0, start
    while fits_fn(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_fn(middle) else (low, middle)
    return low


def _overrides(target):
    """Returns the gin bindings that --batch_size stands for."""
    wanted = _BATCH_SIZE.value
    if wanted is None:
        return []
    rest = wanted % target.num_devices
    if rest:
        below, above = wanted - rest, wanted - rest + target.num_devices
        choice = f"{below} or {above}" if below else f"{above}"
        raise errors.UserError(
            f"--batch_size is {wanted}, which the {target.num_devices} devices of "
            f"{_TOPOLOGY.value} cannot share out equally; try {choice}."
        )
    return [f"BATCH_SIZE = {wanted}"]


def _host_rates(run):
    with _logged("preflight | measuring the input pipeline"):
        return host_throughput.images_per_core_sec(run)


def _is_searched(name, step, found):
    is_too_large = found["outcome"] == report_lib.DOES_NOT_FIT and step.setting
    return _FIND_BATCH_SIZE.value and (
        is_too_large or (name == "train" and found["fits"])
    )


def _fits_fn(name, step, target, known):
    """Returns a function that compiles, unless the number of images is known."""

    def fits(images):
        if images in known:
            return known[images]
        found = examine(name, step, images, target)
        what = f"{images} images a device"
        logging.info("preflight | %s | %s | %s", name, what, found["outcome"])
        return found["fits"]

    return fits


def _cost(found, compiled, program, target):
    """Returns the part of the report on a step that compiles."""
    moves = traffic.moves(compiled.text)
    hbm_traffic = sum(move.num_bytes for move in moves)
    bound = roofline.roofline(compiled.flops, hbm_traffic, target.device)
    needed = compiled.argument_bytes + compiled.result_bytes
    needed += compiled.temporary_bytes + compiled.code_bytes
    missing = needed - target.device.hbm_bytes
    return {
        "outcome": report_lib.DOES_NOT_FIT if missing > 0 else report_lib.FITS,
        "fits": missing <= 0,
        "missing_gib": max(missing, 0) / 2**30,
        "hbm_gib": needed / 2**30,
        "hbm_gib_there": target.device.hbm_bytes / 2**30,
        "argument_mb": compiled.argument_bytes / 1e6,
        "result_mb": compiled.result_bytes / 1e6,
        "temporary_mb": compiled.temporary_bytes / 1e6,
        "code_mb": compiled.code_bytes / 1e6,
        "gflop": compiled.flops / 1e9,
        "accessed_mb": compiled.bytes_accessed / 1e6,
        "hbm_traffic_mb": hbm_traffic / 1e6,
        "on_chip_traffic_mb": sum(move.on_chip_bytes for move in moves) / 1e6,
        "ms_at_least": bound.secs * 1e3,
        "bound": bound.bound,
        "images_per_sec_at_most": found["images"] * found["num_devices"] / bound.secs,
        "largest_moves": [
            move._asdict() | {"line": program.line_of(move.source)}
            for move in moves[:_MOST_MOVES]
        ],
    }


def _failure(error, program):
    """Returns the part of the report on a step that the compiler refuses."""
    first_line = str(error).split("\n")[0]
    if isinstance(error, compiler.OutOfMemoryError):
        missing = error.missing_bytes and error.missing_bytes / 2**30
        return {
            "outcome": report_lib.DOES_NOT_FIT,
            "missing_gib": missing,
            "error": first_line,
        }
    line = program.line_of(error.operation)
    made_at = f"; {error.operation} was made at {line}" if line else ""
    return {"outcome": report_lib.DOES_NOT_COMPILE, "error": first_line + made_at}


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    """Logs what begins, that it goes on, and how long it took."""
    start, is_done = time.monotonic(), threading.Event()

    def beat():
        while not is_done.wait(_HEARTBEAT_SECS):
            logging.info("%s | %d s so far", what, time.monotonic() - start)

    logging.info("%s", what)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_done.set()
        thread.join()
        logging.info("%s | took %.0f s", what, time.monotonic() - start)


def _dump(directory, name, content):
    if directory:
        tf.io.gfile.makedirs(directory)
        mode = "wb" if isinstance(content, bytes) else "w"
        with tf.io.gfile.GFile(f"{directory}/{name}", mode) as file:
            file.write(content)


if __name__ == "__main__":
    guard.run(main)
