r"""Estimates the time of a run on a slice, the load of its hosts, and its scaling.

  python -m retinanet_tpu.preflight --gin_file=gin_configs/coco_r50_640_6x.gin \
      --topology=v3-32 --json > v3-32.json
  python -m retinanet_tpu.plan --gin_file=gin_configs/coco_r50_640_6x.gin \
      --topology=v3-32 --preflight_json=v3-32.json [--measured=1275]

Without --preflight_json it runs preflight itself, which takes minutes and requires the
extra [preflight]. Device times are lower bounds at the vendor's peak rates.
--efficiency sets the share of them that is reached; --measured computes it from a rate
measured on this slice. Figures of hosts are those of the machine that ran preflight.
"""

import retinanet_tpu.startup.cpu

import json
import math
import subprocess
import sys
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.model import norms
from retinanet_tpu.planning import run_time, step_functions
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.run import Run
from retinanet_tpu.xla import lower, roofline

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3-8", "The slice, by Google Cloud's name."
)
_PREFLIGHT_JSON = flags.DEFINE_string(
    "preflight_json", None, "The output of preflight --json; default: run preflight."
)
_EFFICIENCY = flags.DEFINE_float(
    "efficiency", 1.0, "The share of the device's bound that is reached.", 1e-3, 1.0
)
_MEASURED = flags.DEFINE_float(
    "measured", None, "Measured images/s on this slice, in place of --efficiency.", 1e-3
)
_EVAL_IMAGES = flags.DEFINE_integer(
    "eval_images", 5000, "The number of evaluation images; COCO has 5,000.", 1
)
_EVAL_CPUS = flags.DEFINE_integer("eval_cpus", 16, "The CPUs of an evaluator.", 1)

# Schedule 1x is 22,500 steps of 64 images.
_IMAGES_OF_1X = 22500 * 64
_SCHEDULES = (1, 3, 6, 30)
# docs/benchmarks.md, "Latency": an image of ResNet-50 at 640 px takes 1.87 s of CPU
# time; the compiler counts 192 GFLOP for its evaluation.
_GFLOP_OF_CPU_SEC = 100
# The CPU time of pycocotools per image, s: 51 s for 5,000 images with 100 synthetic
# detections each, 2026-11-21. It runs on one CPU. hotcoco, which may be missing, takes
# 1 to 3 % of it.
_METRIC_SECS = 51 / 5000
_REMEDY = "run preflight --json again with the flags of this run."


class RunSize(NamedTuple):
    """The sizes of a run that are known without compiling it.

    Attributes:
      run: The run.
      state_bytes: The size of a checkpoint, bytes.
      gradient_bytes: The size of all gradients, bytes.
      num_collectives: The most collectives of a step; the compiler joins some.
    """

    run: Run
    state_bytes: int
    gradient_bytes: int
    num_collectives: int


def describe(run: Run) -> RunSize:
    """Builds the network of a run and returns its sizes.

    Args:
      run: The run; it needs no model_dir.
    """
    with run.estimator.strategy.scope():
        network = run.make_network()
        update = run.update_fn(network)
    exchanging = [
        module
        for module in network.submodules
        if isinstance(module, norms.BatchNorm)
        and module.uses_batch(True)
        and module.is_synchronized
    ]
    return RunSize(
        run=run,
        state_bytes=_num_bytes([*network.variables, *update.variables.values()]),
        gradient_bytes=_num_bytes(network.trainable_variables),
        # Moments and their gradients; all gradients; the logged scalars.
        num_collectives=2 * len(exchanging) + 2,
    )


def check(report: dict[str, Any], size: RunSize) -> None:
    """Checks that preflight's figures are those of this run on this slice.

    Args:
      report: The content of preflight --json.
      size: The sizes of the run.
    Raises:
      UserError: The figures are those of another run or slice, or a step does not fit.
    """
    train, evaluation = report["steps"]["train"], report["steps"]["eval"]
    if not (train["fits"] and evaluation["fits"]):
        raise errors.UserError(
            f"train {train['outcome']} and eval {evaluation['outcome']} on "
            f"{report['topology']}; python -m retinanet_tpu.preflight shows details."
        )
    plan = size.run.plan
    batch_size = train["images"] * train["num_devices"]
    eval_batch = evaluation["images"]
    for name, reported, expected in (
        ("--topology", report["topology"], _TOPOLOGY.value),
        ("BATCH_SIZE", batch_size, plan.batch_size),
        (
            "TrainingPlan.eval_batch_per_replica",
            eval_batch,
            plan.eval_batch_per_replica,
        ),
    ):
        if reported != expected:
            raise errors.UserError(
                f"{name} is {expected}, preflight's was {reported}; {_REMEDY}"
            )
    # Arrays in HBM fill whole tiles, so the arguments take at least this many bytes.
    batch_specs = step_functions.batch_spec(size.run, train["images"])
    least = (size.state_bytes + _num_bytes(tf.nest.flatten(batch_specs))) / 1e6
    if not 0.98 * least <= train["argument_mb"] <= 1.5 * least + 5:
        raise errors.UserError(
            f"The training step of --preflight_json takes {train['argument_mb']:,.1f} "
            f"MB, but weights, slots and batch of this run are {least:,.1f} MB: it is "
            f"of another network or IMAGE_SIZE; {_REMEDY}"
        )


def replica_work(report: dict[str, Any], size: RunSize) -> run_time.Work:
    """Returns the work of a replica in a training step.

    Args:
      report: The content of preflight --json.
      size: The sizes of the run.
    """
    train = report["steps"]["train"]
    return run_time.Work(
        images=train["images"],
        flops=train["gflop"] * 1e9,
        hbm_bytes=train["hbm_traffic_mb"] * 1e6,
        # The state is read and written at least once.
        fixed_bytes=min(2 * size.state_bytes, train["hbm_traffic_mb"] * 1e6),
        reduced_bytes=size.gradient_bytes,
        num_collectives=size.num_collectives,
    )


def training_lines(
    report: dict[str, Any], size: RunSize, time: run_time.StepTime, efficiency: float
) -> list[str]:
    """Returns the lines on the rates of devices and hosts, and the time of the run.

    Args:
      report: The content of preflight --json.
      size: The sizes of the run.
      time: The time of a training step.
      efficiency: The share of the device's bound that is reached.
    """
    train, max_steps = report["steps"]["train"], size.run.plan.max_steps
    num_hosts, rate = report["num_hosts"], _rate(report, time)
    lines = [
        ("device bound, images/s", f"{train['images_per_sec_at_most']:,.0f}"),
        ("  per step, ms", f"{train['ms_at_least']:.1f} ({train['bound']})"),
        ("  efficiency", f"{efficiency:.3f}"),
        ("  collectives, ms", f"{1e3 * time.exchange_secs:.1f}"),
        ("    share of the step", f"{100 * time.exchange_share:.1f} %"),
        ("devices with collectives, images/s", f"{time.images_per_sec:,.0f}"),
    ]
    if core := train.get("images_per_core_sec"):
        hosts = f"{num_hosts} x {_host_cpus()} CPUs"
        num_cpus = time.images_per_sec / num_hosts / core
        lines += [
            (f"host bound, images/s ({hosts})", f"{_host_rate(report, 'train'):,.0f}"),
            ("  per CPU", f"{core:,.0f}"),
            ("  CPUs needed of each host", f"{num_cpus:.1f}"),
        ]
    images = {f"hours for {max_steps:,} steps": max_steps * time.images}
    for times in _SCHEDULES:
        images[f"  schedule {times}x of COCO"] = times * _IMAGES_OF_1X
    hours = [(name, f"{count / rate / 3600:.2f}") for name, count in images.items()]
    return _aligned(lines + hours)


def checkpoint_lines(
    report: dict[str, Any], size: RunSize, time: run_time.StepTime
) -> list[str]:
    """Returns the lines on checkpoints and their evaluation.

    Args:
      report: The content of preflight --json.
      size: The sizes of the run.
      time: The time of a training step.
    """
    saving = run_time.saving(
        size.run.estimator.config,
        max_steps=size.run.plan.max_steps,
        steps_per_sec=_rate(report, time) / time.images,
        num_bytes=size.state_bytes,
    )
    written, kept = saving.written_bytes / 1e9, saving.kept_bytes / 1e9
    images = _EVAL_IMAGES.value
    lines = [
        ("checkpoints", f"{saving.num_saves} of {size.state_bytes / 1e6:,.0f} MB"),
        ("  interval, s", f"{saving.interval_secs:.0f}"),
        ("  GB per hour", f"{3.6e-6 * size.state_bytes / saving.interval_secs:.1f}"),
        ("  GB written, kept", f"{written:.1f}, {kept:.1f}"),
        ("to evaluate each checkpoint", "s, machines"),
    ]
    for name, rates in _evaluators(report).items():
        secs = run_time.evaluation_secs(
            images, rates=rates, metric_secs=_METRIC_SECS * images
        )
        machines = math.ceil(secs / saving.interval_secs)
        lines += [(f"  {name}", f"{secs:.0f}, {machines}")]
    return _aligned(lines)


def scaling_lines(rows: list[run_time.Scaled], title: str) -> list[str]:
    """Returns the table of a run's scaling over slices.

    Args:
      rows: The slices, by rising number of devices.
      title: The title of the table.
    """
    head = f"{title:<26}{'per device':>12}{'images/s':>11}{'collectives':>13}"
    lines = [f"{head}{'efficiency':>12}"]
    for row in rows:
        lines.append(
            f"  {row.name:<24}{row.time.images // row.num_devices:>12}"
            f"{row.time.images_per_sec:>11,.0f}{100 * row.time.exchange_share:>11.1f} %"
            f"{100 * row.efficiency:>10.1f} %"
        )
    for share in (0.9, 0.5):
        last = run_time.last_at_least(rows, share)
        range_text = f"up to {last.name}" if last else "on no slice"
        lines.append(f"  {100 * share:.0f} % or more: {range_text}")
    return lines


def read_report() -> dict[str, Any]:
    """Returns the content of preflight --json, from the file or by running preflight.

    Raises:
      MissingFileError: There is no such file.
      UserError: The file is not the output of preflight --json, or preflight failed.
    """
    path = _PREFLIGHT_JSON.value
    text = files.read_if_there(path) if path else _run_preflight()
    if text is None:
        raise errors.MissingFileError(
            f"No {path}; preflight --json > {path} writes it."
        )
    try:
        report = json.loads(text)
        report["steps"]["train"], report["steps"]["eval"]
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{path} is not the output of" if path else "See above the error of"
        raise errors.UserError(f"{reason} preflight --json.") from error
    return report


def main() -> None:
    """Runs the command."""
    target = roofline.accelerator(_TOPOLOGY.value)
    cli.parse_files()
    strategy = lower.AheadOfTimeStrategy(target.num_devices)
    run = configurables.make_run(None, strategy_fn=lambda: strategy)
    size = describe(run)
    report = read_report()
    check(report, size)
    work, batch_size = replica_work(report, size), run.plan.batch_size
    efficiency = _EFFICIENCY.value
    if _MEASURED.value:
        efficiency = run_time.reached_efficiency(work, target, _MEASURED.value)
    time = run_time.step_time(work, target, efficiency=efficiency)
    topology = _TOPOLOGY.value
    lines = [f"{topology}: {target.num_devices} devices, {batch_size} images per step"]
    lines += training_lines(report, size, time, efficiency)
    lines += checkpoint_lines(report, size, time)
    same_per_device = run_time.scaled(work, target, efficiency=efficiency)
    lines += scaling_lines(same_per_device, f"{work.images} images per device")
    same_in_total = run_time.scaled(
        work,
        target,
        efficiency=efficiency,
        batch_size=batch_size,
        max_images=_max_images(report["steps"]["train"]),
    )
    lines += scaling_lines(same_in_total, f"{batch_size} images in total")
    print("\n".join(lines))


def _run_preflight() -> str:
    logging.info("plan | running preflight, which takes minutes")
    command = [sys.executable, "-m", "retinanet_tpu.preflight", "--json"]
    command += [f"--topology={_TOPOLOGY.value}"]
    command += [f"--gin_file={path}" for path in cli.GIN_FILE.value]
    command += [f"--gin_param={setting}" for setting in cli.GIN_PARAM.value]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout


def _max_images(train: Mapping[str, Any]) -> float:
    """Returns the most images of a device; temporaries grow in proportion."""
    free_mb = (train["hbm_gib_there"] - train["hbm_gib"]) * 2**30 / 1e6
    return train["images"] * (1 + free_mb / train["temporary_mb"])


def _evaluators(report: Mapping[str, Any]) -> dict[str, list[float]]:
    """Returns the rates of the concurrent stages of evaluators, images/s."""
    step, num_hosts = report["steps"]["eval"], report["num_hosts"]
    count = report["num_devices"] // num_hosts
    cpu_rate = _GFLOP_OF_CPU_SEC / (step["gflop"] / step["images"])
    device_rate = count * step["images_per_sec_at_most"] / step["num_devices"]
    return {
        f"{_EVAL_CPUS.value} CPUs": [_EVAL_CPUS.value * cpu_rate],
        f"host, {count} devices": [device_rate, _host_rate(report, "eval") / num_hosts],
    }


def _rate(report: Mapping[str, Any], time: run_time.StepTime) -> float:
    """Returns the rate of training, images/s: the lower one of devices and hosts."""
    return min(time.images_per_sec, _host_rate(report, "train"))


def _host_rate(report: Mapping[str, Any], name: str) -> float:
    core = report["steps"][name].get("images_per_core_sec")
    return report["num_hosts"] * _host_cpus() * core if core else math.inf


def _host_cpus() -> int:
    target = roofline.accelerator(_TOPOLOGY.value)
    return roofline.HOST_CPUS[roofline.generation(target)]


def _num_bytes(tensors: Iterable[tf.Variable | tf.TensorSpec]) -> int:
    return sum(t.shape.num_elements() * t.dtype.size for t in tensors)


def _aligned(lines: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{label:<40}{value:>18}" for label, value in lines]


if __name__ == "__main__":
    guard.run(main)
