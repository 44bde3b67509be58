"""Trains a model and times training steps on a GPU, in one command.

  python tools/benchmarks/gpu.py --data_dir=data/bccd --output_dir=gpu_benchmark

The machine needs an NVIDIA GPU and one environment with the extra [xla-gpu]: jax for
CUDA, and TensorFlow for CPUs. The stages:

  train        trains bccd_r18.gin to the end of its schedule with the trainer's own
               command, evaluations included. --data_dir has the records of BCCD.
  step         times the step of coco_r50_640_3x.gin in bfloat16 at each of
               --batch_sizes, through the engine pjrt, on synthetic batches. See
               engine_step.py.
  torchvision  times torchvision's RetinaNet with the same frozen layers, if this Python
               or --torch_python can import torch. See torchvision_step.py.

Each stage writes its result to OUTPUT_DIR/result.json before the next begins. A batch
that needs too much memory is reported. A stage that exceeds its time ends, and the next
begins; the stages together take --max_secs at most.

To save minutes on the GPU machine, lower the programs beforehand on any machine with
--lower_only --programs=DIR, copy DIR, and pass --programs=DIR.

Without a GPU, --device=cpu runs the same stages; choose small sizes:

  python tools/benchmarks/gpu.py --device=cpu --data_dir=data/bccd --output_dir=out \
      --batch_sizes 2 --rounds=2 --steps=2 --train_param="MAX_STEPS = 4" \
      --step_param="IMAGE_SIZE = (128, 128)"
"""

import argparse
import datetime
import json
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import gpu_report
import timed_command

_FOLDER = pathlib.Path(__file__).parent
_STAGES = ("train", "step", "torchvision")
_TRAIN_SHARE = 0.3  # Of --max_secs, so that the other stages start in any case.
# Imported alone, because TensorFlow takes seconds.
_ENVIRONMENT = """
import importlib.metadata as m, json, sys, jax
jax.config.update("jax_platforms", "cuda" if sys.argv[1] == "gpu" else sys.argv[1])
names = ("tensorflow", "tensorflow-cpu")
installed = {d.metadata["Name"]: d.version for d in m.distributions()}
print(json.dumps({"devices": [d.device_kind for d in jax.devices()],
    "jax": jax.__version__, "tensorflow": [installed.get(n) for n in names]}))
"""


def describe_machine(device: str, output_dir: pathlib.Path) -> dict[str, Any]:
    """Returns the devices and the versions; exits if there is no device.

    Args:
      device: The kind of device, "gpu" or "cpu".
      output_dir: The folder for the log.
    """
    command = [sys.executable, "-c", _ENVIRONMENT, device]
    result = timed_command.run(command, 120, output_dir / "environment.log")
    if result.code != 0:
        sys.exit(
            f"error: jax finds no {device.upper()}; install [xla-gpu], or set "
            f"--device=cpu. The error is in {output_dir}/environment.log."
        )
    machine = timed_command.last_json(result.output)
    machine |= {"date": datetime.date.today().isoformat(), "cpus": os.cpu_count()}
    return machine | {"xla_flags": os.environ.get("XLA_FLAGS", "")}


def train_command(flags: argparse.Namespace, model_dir: pathlib.Path) -> list[str]:
    """Returns the command that trains.

    Args:
      flags: The flags of this tool.
      model_dir: The directory of the run.
    """
    settings = [f"DATA_DIR = '{os.path.abspath(flags.data_dir)}'", *flags.train_param]
    return [
        sys.executable,
        "-m",
        "retinanet_tpu",
        "train",
        f"--gin_file={flags.train_gin_file}",
        f"--gin_file=device/xla_{flags.device}.gin",
        *(f"--gin_param={setting}" for setting in settings),
        f"--model_dir={model_dir}",
    ]


def train(flags: argparse.Namespace, clock: timed_command.Clock) -> dict[str, Any]:
    """Trains and evaluates; returns the result of the stage.

    Args:
      flags: The flags of this tool.
      clock: The remaining time.
    """
    if not flags.data_dir:
        return {"skipped": "--data_dir is not set"}
    model_dir = flags.output_dir / "run"
    if model_dir.exists():
        return {"error": f"{model_dir} exists; set another --output_dir"}
    secs = min(clock.remaining(), _TRAIN_SHARE * flags.max_secs)
    command = train_command(flags, model_dir)
    result = timed_command.run(command, secs, flags.output_dir / "train.log")
    summary = gpu_report.summarize_training(
        result.output, model_dir / "eval" / "eval.jsonl"
    )
    summary["command"] = " ".join(["retinanet-tpu", *command[3:]])
    return summary | (
        {"secs": round(result.secs, 1)} if result.code == 0 else result.failure()
    )


def lower(flags: argparse.Namespace, clock: timed_command.Clock) -> dict[str, Any]:
    """Lowers the programs that --programs lacks; returns the result of the stage.

    Args:
      flags: The flags of this tool.
      clock: The remaining time.
    """
    missing = [
        size
        for size in flags.batch_sizes
        if not (flags.programs / f"batch_{size}" / "specs.json").exists()
    ]
    if not missing:
        return {"read_from": str(flags.programs)}
    result = timed_command.run(
        [
            sys.executable,
            str(_FOLDER / "engine_step.py"),
            f"--gin_file={flags.step_gin_file}",
            *(f"--gin_param={setting}" for setting in flags.step_param),
            f"--programs={flags.programs}",
            f"--batch_sizes={','.join(map(str, missing))}",
        ],
        clock.remaining(),
        flags.output_dir / "lower.log",
    )
    if result.code != 0:
        return result.failure()
    return {"batch_sizes": missing, "secs": round(result.secs, 1)}


def time_step(
    flags: argparse.Namespace, batch_size: int, clock: timed_command.Clock
) -> dict[str, Any]:
    """Times a training step; returns the result of the stage.

    Args:
      flags: The flags of this tool.
      batch_size: The number of images.
      clock: The remaining time.
    """
    result = timed_command.run(
        [
            sys.executable,
            str(_FOLDER / "engine_step.py"),
            f"--programs={flags.programs}",
            f"--batch_sizes={batch_size}",
            f"--device={flags.device}",
            f"--steps={flags.steps}",
            f"--rounds={flags.rounds}",
            f"--compilation_cache={flags.compilation_cache}",
        ],
        clock.remaining(),
        flags.output_dir / f"step_{batch_size}.log",
    )
    if result.code != 0:
        return {"batch_size": batch_size} | result.failure()
    measured = timed_command.last_json(result.output)
    measured |= gpu_report.share(measured, flags.peak_tflops)
    return measured | {"secs": round(result.secs, 1)}


def time_torchvision(
    flags: argparse.Namespace, batch_size: int, clock: timed_command.Clock
) -> dict[str, Any]:
    """Times torchvision's training step; returns the result of the stage.

    Args:
      flags: The flags of this tool.
      batch_size: The number of images.
      clock: The remaining time.
    """
    log = flags.output_dir / f"torchvision_{batch_size}.log"
    python = flags.torch_python
    if timed_command.run(
        [python, "-c", "import torch, torchvision"], clock.remaining(), log
    ).code:
        return {"skipped": f"{python} cannot import torch and torchvision"}
    result = timed_command.run(
        [
            python,
            str(_FOLDER / "torchvision_step.py"),
            f"--batch_size={batch_size}",
            f"--device={'cuda' if flags.device == 'gpu' else 'cpu'}",
            f"--compile={flags.torch_compile}",
            "--trainable_layers=3",
            f"--steps={flags.steps}",
            f"--rounds={flags.rounds}",
        ],
        clock.remaining(),
        log,
    )
    rows = [line for line in result.output.splitlines() if line.startswith("| torch")]
    if result.code != 0 or not rows:
        kind = "out_of_memory" if "OutOfMemoryError" in result.output else None
        failure = {kind: result.output[-500:]} if kind else result.failure()
        return {"batch_size": batch_size} | failure
    _, _, _, _, rate, tflop, tflop_per_sec, *_ = rows[-1].split("|")
    return {
        "batch_size": batch_size,
        "images_per_sec": float(rate.replace(",", "")),
        "tflop": float(tflop),
        "tflop_per_sec": float(tflop_per_sec),
        "compile": flags.torch_compile,
        "secs": round(result.secs, 1),
    }


def _stages(
    flags: argparse.Namespace, clock: timed_command.Clock
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Returns the names and functions of the stages, in their order."""
    stages: list[tuple[str, Callable[[], dict[str, Any]]]] = []
    if "train" in flags.stages:
        stages.append(("train", lambda: train(flags, clock)))
    if "step" in flags.stages:
        stages.append(("lower", lambda: lower(flags, clock)))
    # Both at one size, then at the next, so that pairs remain if the time is over.
    for size in flags.batch_sizes:
        for name, function in (("step", time_step), ("torchvision", time_torchvision)):
            if name in flags.stages:
                stages.append((name, lambda f=function, n=size: f(flags, n, clock)))
    return stages


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--output_dir",
        type=pathlib.Path,
        default=pathlib.Path("gpu_benchmark"),
        help="Folder for the result, the logs and the run.",
    )
    add("--device", choices=["gpu", "cpu"], default="gpu", help="Kind of device.")
    add("--stages", nargs="+", choices=_STAGES, default=_STAGES, help="Stages to run.")
    add("--max_secs", type=float, default=900, help="Time of all stages together, s.")
    add(
        "--data_dir", help="Directory of the training data, from retinanet-tpu convert."
    )
    add("--train_gin_file", default="bccd_r18.gin", help="Gin file of the training.")
    add(
        "--train_param",
        action="append",
        default=[],
        help="Setting of the training; may be repeated.",
    )
    add("--step_gin_file", default="coco_r50_640_3x.gin", help="Gin file of the step.")
    add(
        "--step_param",
        action="append",
        default=[],
        help="Setting of the step; may be repeated.",
    )
    add(
        "--batch_sizes",
        type=int,
        nargs="+",
        default=[8, 16, 32, 64],
        help="Numbers of images of a step.",
    )
    add("--steps", type=int, default=20, help="Number of steps of a round.")
    add("--rounds", type=int, default=5, help="Number of rounds.")
    add(
        "--programs",
        type=pathlib.Path,
        help="Folder of lowered programs; default: OUTPUT_DIR/programs.",
    )
    add("--lower_only", action="store_true", help="Write --programs and end.")
    add(
        "--compilation_cache",
        default="",
        help="Directory of compiled steps; default: none.",
    )
    add(
        "--peak_tflops",
        type=float,
        help="Dense bfloat16 peak, TFLOP/s; default: that of H100 SXM, H200 or A100.",
    )
    add(
        "--torch_python",
        default=sys.executable,
        help="Python interpreter of an environment with torch and torchvision.",
    )
    add(
        "--torch_compile",
        choices=["whole", "parts", "none"],
        default="parts",
        help="Part of torchvision's model to compile.",
    )
    flags = parser.parse_args(arguments)
    flags.programs = flags.programs or flags.output_dir / "programs"
    return flags


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = _flags(arguments)
    flags.output_dir.mkdir(parents=True, exist_ok=True)
    clock = timed_command.Clock(flags.max_secs)
    if flags.lower_only:
        outcome = lower(flags, clock)
        print(json.dumps(outcome))
        sys.exit("error" in outcome or "time_limit" in outcome)
    results: dict[str, Any] = {
        "machine": describe_machine(flags.device, flags.output_dir)
    }
    for name, stage in _stages(flags, clock):
        outcome = stage()
        if name in ("step", "torchvision"):
            results.setdefault(name, []).append(outcome)
        else:
            results[name] = outcome
        text = json.dumps(results, indent=1)
        (flags.output_dir / "result.json").write_text(text + "\n")
        print(f"{name} | {json.dumps(outcome)}", flush=True)
    print(f"\n{gpu_report.table(results)}")
    outcomes = [results.get("train", {}), *results.get("step", [])]
    sys.exit(any("error" in outcome for outcome in outcomes))


if __name__ == "__main__":
    main()
