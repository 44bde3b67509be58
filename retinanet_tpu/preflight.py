r"""Compiles a run's steps for a TPU, without one: memory, speed, compile errors.

  python -m retinanet_tpu.preflight --gin_file=gin_configs/coco_r50_640_3x.gin \
      --topology=v3-32 [--batch_size=512] [--find_batch_size] [--dump_hlo=DIR] [--json]

Requires no TPU and no data, but the extra [preflight]. The exit code is 0 only if all
steps compile and fit: training and evaluation, cross-replica collectives included, and
the exported signature on one image. Times are lower bounds: the vendor's peak rates, no
waiting for other devices, one iteration of a loop of unknown length.
"""

import retinanet_tpu.startup.cpu

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors, log_progress
from retinanet_tpu.planning import host_throughput, step_functions
from retinanet_tpu.planning.report import (
    DOES_NOT_COMPILE,
    DOES_NOT_FIT,
    FITS,
    Cost,
    HostLoad,
    Report,
    StepReport,
    table,
)
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.run import Run
from retinanet_tpu.xla import compiler, lower, roofline, traffic

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3-8", "The slice, by Google Cloud's name."
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size",
    None,
    "The number of images of a training step; default: that of the run.",
    lower_bound=1,
)
_FIND_BATCH_SIZE = flags.DEFINE_bool(
    "find_batch_size",
    False,
    "Find the largest batch that fits: of training, and of steps that do not fit.",
)
_HOST_RATE = flags.DEFINE_bool(
    "host_rate", True, "Measure this machine's input pipeline, for some seconds."
)
_DUMP_HLO = flags.DEFINE_string(
    "dump_hlo", None, "The directory to write the programs to."
)
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the table.")

_NUM_MOVES = 10  # The number of largest moves that the JSON contains.


def main() -> None:
    """Runs the command."""
    compiler.check_installed()
    target = roofline.accelerator(_TOPOLOGY.value)
    cli.parse_files(*_overrides(target))
    run = configurables.make_run(
        None, strategy_fn=lambda: lower.AheadOfTimeStrategy(target.num_devices)
    )
    rates = _host_rates(run) if _HOST_RATE.value else {}
    steps = {
        name: _step_report(name, step, target, rates)
        for name, step in step_functions.build(run).items()
    }
    report = Report(_TOPOLOGY.value, target.num_devices, target.num_hosts, steps)
    print(json.dumps(report.to_json()) if _JSON.value else table(report))
    sys.exit(not all(step.fits for step in steps.values()))


def _step_report(
    name: str,
    step: step_functions.ReplicaFn,
    target: roofline.Accelerator,
    rates: Mapping[str, float],
) -> StepReport:
    """Returns the report of a step, with the load of a host and the largest batch."""
    report = examine(name, step, step.images, target, dump_dir=_DUMP_HLO.value)
    if report.cost and step.num_replicas > 1:
        needed = report.cost.images_per_sec_at_most / target.num_hosts
        report = dataclasses.replace(report, host=HostLoad(needed, rates.get(name)))
    if _FIND_BATCH_SIZE.value and _is_searched(name, report):
        fits_fn = _fits_fn(name, step, target, {step.images: report.fits})
        images = largest_batch(fits_fn, step.images)
        report = dataclasses.replace(report, largest_batch=images * step.num_replicas)
    return report


def examine(
    name: str,
    step: step_functions.ReplicaFn,
    images: int,
    target: roofline.Accelerator,
    *,
    dump_dir: str | None = None,
) -> StepReport:
    """Compiles a step and returns its cost on each device of a slice.

    Args:
      name: The name of the step, for the log and for files.
      step: The step.
      images: The number of images of a device.
      target: The slice.
      dump_dir: The directory to write the lowered and the optimized program to, or
        None.
    """
    strategy = lower.AheadOfTimeStrategy(step.num_replicas)
    event = f"preflight | {name} | {images} images per device"
    refused = StepReport(
        images=images,
        num_devices=step.num_replicas,
        setting=step.setting,
        outcome=DOES_NOT_COMPILE,
    )
    try:
        with log_progress.logged(f"{event} | tracing"):
            program = lower.lower(step.fn, step.specs_fn(images), strategy)
    except RuntimeError as error:
        return dataclasses.replace(refused, error=str(error))
    _dump(dump_dir, f"{name}.hlo.pb", program.hlo)
    try:
        with log_progress.logged(f"{event} | compiling"):
            compiled = compiler.for_tpu(program, target.topology)
    except compiler.CompileError as error:
        return _with_failure(refused, error, program)
    _dump(dump_dir, f"{name}.tpu.txt", compiled.text)
    return _with_cost(refused, compiled, program, target)


def largest_batch(fits_fn: Callable[[int], bool], start: int) -> int:
    """Returns the largest number of images that fits a device, or 0.

    Args:
      fits_fn: A function of a number of images; False for all above one that is too
        large.
      start: The first number to try, at least 1; it is doubled until it is too large.
    """
    low, high = 0, start
    while fits_fn(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits_fn(middle) else (low, middle)
    return low


def _overrides(target: roofline.Accelerator) -> list[str]:
    """Returns the gin settings of --batch_size."""
    batch_size = _BATCH_SIZE.value
    if batch_size is None:
        return []
    rest = batch_size % target.num_devices
    if rest:
        below = batch_size - rest
        above = below + target.num_devices
        choice = f"{below} or {above}" if below else f"{above}"
        raise errors.UserError(
            f"--batch_size is {batch_size}, which the {target.num_devices} devices of "
            f"{_TOPOLOGY.value} cannot share equally; try {choice}."
        )
    return [f"BATCH_SIZE = {batch_size}"]


def _host_rates(run: Run) -> dict[str, float]:
    with log_progress.logged("preflight | measuring the input pipeline"):
        return host_throughput.images_per_core_sec(run)


def _is_searched(name: str, report: StepReport) -> bool:
    is_too_large = report.outcome == DOES_NOT_FIT and bool(report.setting)
    return is_too_large or (name == "train" and report.fits)


def _fits_fn(
    name: str,
    step: step_functions.ReplicaFn,
    target: roofline.Accelerator,
    known: Mapping[int, bool],
) -> Callable[[int], bool]:
    """Returns a function that compiles the step, unless the result is known."""

    def fits(images: int) -> bool:
        if images in known:
            return known[images]
        report = examine(name, step, images, target)
        event = f"preflight | {name} | {images} images per device"
        logging.info("%s | %s", event, report.outcome)
        return report.fits

    return fits


def _with_cost(
    report: StepReport,
    compiled: compiler.Compiled,
    program: lower.Program,
    target: roofline.Accelerator,
) -> StepReport:
    """Returns the report of a step that compiles."""
    moves = traffic.moves(compiled.text)
    hbm_traffic = sum(move.num_bytes for move in moves)
    bound = roofline.roofline(compiled.flops, hbm_traffic, target.device)
    needed = compiled.argument_bytes + compiled.result_bytes
    needed += compiled.temporary_bytes + compiled.code_bytes
    missing = needed - target.device.hbm_bytes
    cost = Cost(
        hbm_gib=needed / 2**30,
        hbm_gib_there=target.device.hbm_bytes / 2**30,
        argument_mb=compiled.argument_bytes / 1e6,
        result_mb=compiled.result_bytes / 1e6,
        temporary_mb=compiled.temporary_bytes / 1e6,
        code_mb=compiled.code_bytes / 1e6,
        gflop=compiled.flops / 1e9,
        accessed_mb=compiled.bytes_accessed / 1e6,
        hbm_traffic_mb=hbm_traffic / 1e6,
        on_chip_traffic_mb=sum(move.on_chip_bytes for move in moves) / 1e6,
        ms_at_least=bound.secs * 1e3,
        bound=bound.bound,
        images_per_sec_at_most=report.images * report.num_devices / bound.secs,
        largest_moves=[
            move._asdict() | {"line": program.line_of(move.source)}
            for move in moves[:_NUM_MOVES]
        ],
    )
    return dataclasses.replace(
        report,
        outcome=DOES_NOT_FIT if missing > 0 else FITS,
        fingerprint=compiled.fingerprint,
        missing_gib=max(missing, 0) / 2**30,
        cost=cost,
    )


def _with_failure(
    report: StepReport, error: compiler.CompileError, program: lower.Program
) -> StepReport:
    """Returns the report of a step that the compiler refuses."""
    first_line = str(error).split("\n")[0]
    if isinstance(error, compiler.OutOfMemoryError):
        missing = error.missing_bytes and error.missing_bytes / 2**30
        return dataclasses.replace(
            report, outcome=DOES_NOT_FIT, missing_gib=missing, error=first_line
        )
    line = program.line_of(error.operation)
    made_at = f"; {error.operation} was made at {line}" if line else ""
    return dataclasses.replace(report, error=first_line + made_at)


def _dump(directory: str | None, name: str, content: bytes | str) -> None:
    if directory:
        tf.io.gfile.makedirs(directory)
        mode = "wb" if isinstance(content, bytes) else "w"
        with tf.io.gfile.GFile(f"{directory}/{name}", mode) as file:
            file.write(content)


if __name__ == "__main__":
    guard.run(main)
