r"""Says how long a run takes on a slice, what it asks around it, and how it scales.

  python -m retinanet_tpu.preflight --gin_file=gin_configs/coco_r50_640_6x.gin \
      --topology=v3-32 --json > v3-32.json
  python -m retinanet_tpu.plan --gin_file=gin_configs/coco_r50_640_6x.gin \
      --topology=v3-32 --preflight_json=v3-32.json [--measured=1275]

Without --preflight_json it runs preflight itself, which takes minutes and the extra
[preflight]. Device times are lower bounds at the vendor's peak rates; --efficiency says
what share of them is reached, --measured takes it from a rate seen on this slice.
Figures of hosts are those that preflight measured on the machine it ran on.
"""

import retinanet_tpu.startup.cpu

import json
import math
import subprocess
import sys
from typing import Any, NamedTuple

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.model import layers
from retinanet_tpu.planning import run_time, step_functions
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables
from retinanet_tpu.task.run import Run
from retinanet_tpu.xla import lower, roofline

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3-8", "A slice, as Google Cloud names it."
)
_PREFLIGHT_JSON = flags.DEFINE_string(
    "preflight_json", None, "What preflight --json printed; default: run it."
)
_EFFICIENCY = flags.DEFINE_float(
    "efficiency", 1.0, "Share of the device's bound that is reached.", 1e-3, 1.0
)
_MEASURED = flags.DEFINE_float(
    "measured", None, "Images/s seen on this slice, instead of --efficiency.", 1e-3
)
_EVAL_IMAGES = flags.DEFINE_integer(
    "eval_images", 5000, "Images of the evaluation split; 5,000 are COCO's.", 1
)
_EVAL_CPUS = flags.DEFINE_integer("eval_cpus", 16, "CPUs of an evaluator.", 1)

# The README's schedules: 1x is 22,500 steps of 64 images.
_IMAGES_OF_1X = 22500 * 64
_SCHEDULES = (1, 3, 6, 30)
# docs/benchmarks.md, "Latency": 1.87 s of CPU for an image of ResNet-50 at 640 px,
# whose evaluation the compiler counts as 192 GFLOP.
_GFLOP_OF_CPU_SEC = 100
# Seconds of pycocotools' CPU time an image: 51 for 5,000 with 100 detections each, made
# up, 2026-11-21. It runs on one CPU.
_METRIC_SECS = 51 / 5000
_AGAIN = "run preflight --json again with the flags of this run."


class RunSize(NamedTuple):
    """What there is to know of a run without compiling it."""

    run: Run
    state_bytes: int  # of all that a checkpoint holds
    gradient_bytes: int
    num_exchanges: int  # of a step, at most: the compiler joins some


def describe(run: Run) -> RunSize:
    """Builds the network of a run and counts."""
    with run.estimator.strategy.scope():
        network = run.make_network()
        update = run.update_fn(network)
    norms = [x for x in network.submodules if isinstance(x, layers.BatchNorm)]
    norms = [x for x in norms if x.uses_batch(True) and x.is_synchronized]
    return RunSize(
        run,
        _num_bytes([*network.variables, *update.variables.values()]),
        _num_bytes(network.trainable_variables),
        2 * len(norms) + 2,  # Moments, their gradients; all gradients, what is logged.
    )


def check(report: dict[str, Any], size: RunSize) -> None:
    """Checks that preflight's figures are those of this run on this slice.

    Raises:
      UserError: they are another's, or a step does not fit.
    """
    train, evaluation = report["steps"]["train"], report["steps"]["eval"]
    if not (train["fits"] and evaluation["fits"]):
        raise errors.UserError(
            f"train {train['outcome']} and eval {evaluation['outcome']} on "
            f"{report['topology']}; python -m retinanet_tpu.preflight says more."
        )
    plan, each = size.run.plan, evaluation["images"]
    batch = train["images"] * train["num_devices"]
    for name, found, wanted in (
        ("--topology", report["topology"], _TOPOLOGY.value),
        ("BATCH_SIZE", batch, plan.batch_size),
        ("TrainingPlan.eval_batch_per_replica", each, plan.eval_batch_per_replica),
    ):
        if found != wanted:
            raise errors.UserError(
                f"{name} is {wanted}, preflight's was {found}; {_AGAIN}"
            )
    # Arrays in HBM fill whole tiles, so they take more; what is less is another's.
    batch_specs = step_functions.batch_spec(size.run, train["images"])
    least = (size.state_bytes + _num_bytes(tf.nest.flatten(batch_specs))) / 1e6
    if not 0.98 * least <= train["argument_mb"] <= 1.5 * least + 5:
        raise errors.UserError(
            f"The training step of --preflight_json takes {train['argument_mb']:,.1f} "
            f"MB, but weights, slots and batch of this run are {least:,.1f} MB: it is "
            f"another network or IMAGE_SIZE; {_AGAIN}"
        )


def work_of(report: dict[str, Any], size: RunSize) -> run_time.Work:
    """Returns what a replica does in a training step."""
    train = report["steps"]["train"]
    return run_time.Work(
        images=train["images"],
        flops=train["gflop"] * 1e9,
        hbm_bytes=train["hbm_traffic_mb"] * 1e6,
        # All that is kept is read and written once, at the least.
        fixed_bytes=min(2 * size.state_bytes, train["hbm_traffic_mb"] * 1e6),
        reduced_bytes=size.gradient_bytes,
        num_exchanges=size.num_exchanges,
    )


def training_lines(
    report: dict[str, Any], size: RunSize, time: run_time.StepTime, efficiency: float
) -> list[str]:
    """Returns what the devices and the hosts do, and how long it all takes."""
    train, max_steps = report["steps"]["train"], size.run.plan.max_steps
    num_hosts, rate = report["num_hosts"], _rate(report, time)
    lines = [
        ("device bound, images/s", f"{train['images_per_sec_at_most']:,.0f}"),
        ("  a step, ms", f"{train['ms_at_least']:.1f} ({train['bound']})"),
        ("  share that is reached", f"{efficiency:.3f}"),
        ("  exchange, ms", f"{1e3 * time.exchange_secs:.1f}"),
        ("    share of the step", f"{100 * time.exchange_share:.1f} %"),
        ("devices with exchange, images/s", f"{time.images_per_sec:,.0f}"),
    ]
    if core := train.get("images_per_core_sec"):
        hosts = f"{num_hosts} x {_host_cpus()} CPUs"
        wanted = time.images_per_sec / num_hosts / core
        lines += [
            (f"host bound, images/s ({hosts})", f"{_host_rate(report, 'train'):,.0f}"),
            ("  a CPU delivers", f"{core:,.0f}"),
            ("  CPUs needed of each host", f"{wanted:.1f}"),
        ]
    images = {f"hours for {max_steps:,} steps": max_steps * time.images}
    for times in _SCHEDULES:
        images[f"  schedule {times}x of COCO"] = times * _IMAGES_OF_1X
    hours = [(name, f"{count / rate / 3600:.2f}") for name, count in images.items()]
    return _aligned(lines + hours)


def around_lines(
    report: dict[str, Any], size: RunSize, time: run_time.StepTime
) -> list[str]:
    """Returns what checkpoints and their scores ask for."""
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
        ("  one every, s", f"{saving.interval_secs:.0f}"),
        ("  GB an hour", f"{3.6e-6 * size.state_bytes / saving.interval_secs:.1f}"),
        ("  GB written, kept", f"{written:.1f}, {kept:.1f}"),
        ("to score every one of them", "s each, machines"),
    ]
    for name, rates in _evaluators(report).items():
        secs = run_time.scoring_secs(
            images, rates=rates, metric_secs=_METRIC_SECS * images
        )
        machines = math.ceil(secs / saving.interval_secs)
        lines += [(f"  {name}", f"{secs:.0f}, {machines}")]
    return _aligned(lines)


def scaling_lines(rows: list[run_time.Scaled], title: str) -> list[str]:
    """Returns the table of one way to scale, and where it ends."""
    head = f"{title:<26}{'images each':>12}{'images/s':>11}{'exchange':>10}"
    lines = [f"{head}{'efficiency':>12}"]
    for row in rows:
        lines.append(
            f"  {row.name:<24}{row.time.images // row.num_devices:>12}"
            f"{row.time.images_per_sec:>11,.0f}{100 * row.time.exchange_share:>8.1f} %"
            f"{100 * row.efficiency:>10.1f} %"
        )
    for share in (0.9, 0.5):
        last = run_time.last_at_least(rows, share)
        where = f"to {last.name}" if last else "nowhere"
        lines.append(f"  {100 * share:.0f} % or more: {where}")
    return lines


def read_report() -> dict[str, Any]:
    """Returns preflight's figures, from the file or from preflight itself.

    Raises:
      MissingFileError: there is no such file.
      UserError: it is not of preflight --json, or preflight failed.
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
        what = f"{path} is not of" if path else "See above what stopped"
        raise errors.UserError(f"{what} preflight --json.") from error
    return report


def main() -> None:
    """Runs the command."""
    target = roofline.accelerator(_TOPOLOGY.value)
    cli.parse_files()
    strategy = lower.AheadOfTimeStrategy(target.num_devices)
    made = configurables.make_run(None, strategy_fn=lambda: strategy)
    size, report = describe(made), read_report()
    check(report, size)
    work, reached, batch = (
        work_of(report, size),
        _EFFICIENCY.value,
        made.plan.batch_size,
    )
    if _MEASURED.value:
        reached = run_time.reached_efficiency(work, target, _MEASURED.value)
    time = run_time.step_time(work, target, efficiency=reached)
    most = _max_images(report["steps"]["train"])
    lines = [f"{_TOPOLOGY.value}: {target.num_devices} devices, {batch} images a step"]
    lines += training_lines(report, size, time, reached)
    lines += around_lines(report, size, time)
    same = run_time.scaled(work, target, efficiency=reached)
    lines += scaling_lines(same, f"{work.images} images on each device")
    shared = run_time.scaled(
        work, target, efficiency=reached, batch_size=batch, max_images=most
    )
    lines += scaling_lines(shared, f"{batch} images on all devices")
    print("\n".join(lines))


def _run_preflight():
    logging.info("plan | asking preflight, which takes minutes")
    command = [sys.executable, "-m", "retinanet_tpu.preflight", "--json"]
    command += [f"--topology={_TOPOLOGY.value}"]
    command += [f"--gin_file={path}" for path in cli.GIN_FILE.value]
    command += [f"--gin_param={setting}" for setting in cli.GIN_PARAM.value]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout


def _max_images(train):
    """Returns how many images a device has room for, temporaries growing with them."""
    room = (train["hbm_gib_there"] - train["hbm_gib"]) * 2**30 / 1e6
    return train["images"] * (1 + room / train["temporary_mb"])


def _evaluators(report):
    """Returns kinds of evaluators, with the images/s of what runs at once in them."""
    step, num_hosts = report["steps"]["eval"], report["num_hosts"]
    count = report["num_devices"] // num_hosts
    of_cpu = _GFLOP_OF_CPU_SEC / (step["gflop"] / step["images"])
    devices = count * step["images_per_sec_at_most"] / step["num_devices"]
    return {
        f"{_EVAL_CPUS.value} CPUs": [_EVAL_CPUS.value * of_cpu],
        f"host, {count} devices": [devices, _host_rate(report, "eval") / num_hosts],
    }


def _rate(report, time):
    """Returns the images/s of training: of devices or hosts, whichever is less."""
    return min(time.images_per_sec, _host_rate(report, "train"))


def _host_rate(report, name):
    core = report["steps"][name].get("images_per_core_sec")
    return report["num_hosts"] * _host_cpus() * core if core else math.inf


def _host_cpus():
    target = roofline.accelerator(_TOPOLOGY.value)
    return roofline.HOST_CPUS[roofline.generation(target)]


def _num_bytes(tensors):
    return sum(t.shape.num_elements() * t.dtype.size for t in tensors)


def _aligned(lines):
    return [f"{label:<40}{value:>18}" for label, value in lines]


if __name__ == "__main__":
    guard.run(main)
