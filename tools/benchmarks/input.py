"""Measures the input pipeline of training, beside decoding alone and Model Garden's.

  python tools/benchmarks/input.py --data=data/bccd/trainval-*.tfrecord \
      [--model_garden_python=/its/environment/bin/python]
  python tools/benchmarks/input.py --gin_file=gin_configs/bccd_r18.gin

The contenders run in turn, round after round, each time in a process of their own, and
a Markdown table comes out. Of a machine with other work to do, believe the CPU time:
it is that of the contender's process on all cores. Model Garden's parser needs an
environment of its own: `pip install tf-models-official==2.20.*`. It gets the same
records, size, jitter, flip, shuffle buffer and batch; to the host's work it adds the
targets of all anchors, which ours leaves to the device.
"""

import retinanet_tpu.startup.cpu

import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.data import record_files
from retinanet_tpu.startup import guard
from retinanet_tpu.task import cli, configurables

_DATA = flags.DEFINE_string("data", None, "DIR/SPLIT-*.tfrecord; not with --gin_file.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 640, "Sides of the canvas, px.")
_SCALE_JITTER = flags.DEFINE_list("scale_jitter", ["0.8", "1.2"], "Range of size.")
_BATCH = flags.DEFINE_integer("batch", 8, "Images in a batch.")
_MODEL_GARDEN = flags.DEFINE_string(
    "model_garden_python", None, "Python of the environment that has Model Garden."
)
_SECONDS = flags.DEFINE_float("seconds", 8.0, "To measure for, each time.")
_WARM_UP = flags.DEFINE_float("warm_up_seconds", 4.0, "To run for before, each time.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often each has its turn.")

_WORKERS = pathlib.Path(__file__).parent
# Of records; our default. Model Garden's, 10,000, would be 1.6 GB of COCO.
_SHUFFLE_BUFFER = 1024
_NAMES = {
    "pipeline": "our pipeline",
    "decode": "`decode_jpeg` alone",
    "crop": "`decode_and_crop_jpeg` alone",
    "resize": "the same, and resized",
    "model_garden": "Model Garden's parser",
}

Results = Mapping[str, Sequence[Mapping[str, float]]]  # a measurement each round


def setting_of_flags() -> dict[str, Any]:
    """Returns what all contenders have to do.

    Raises:
      UserError: neither --data nor --gin_file, or --data is no pattern of records.
      MissingFileError: no records there.
    """
    setting = _setting_of_run() if cli.GIN_FILE.value else _setting_of_data()
    record_files.find(setting["data_dir"], setting["split"])
    return setting | {
        "shuffle_buffer": _SHUFFLE_BUFFER,
        "secs": _SECONDS.value,
        "warm_up_secs": _WARM_UP.value,
    }


def measure_in_turn(
    commands: Mapping[str, Sequence[str]], num_rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Runs commands in turn, round after round.

    Args:
      commands: by name; the last line that each prints is its measurement, in JSON.
      num_rounds: how often.

    Raises:
      RuntimeError: a command fails; its last words.
    """
    results = {name: [] for name in commands}
    for number in range(num_rounds):
        for name, command in commands.items():
            found = subprocess.run(command, capture_output=True, text=True)
            if found.returncode:
                words = found.stderr.strip()[-2000:]
                raise RuntimeError(f"Contender {name} failed: {words}")
            result = json.loads(found.stdout.splitlines()[-1])
            logging.info(
                "round %d | %s | %.0f images/s | %.2f ms of CPU an image",
                number + 1,
                name,
                result["images"] / result["secs"],
                cpu_ms(result),
            )
            results[name].append(result)
    return results


def cpu_ms(result: Mapping[str, float]) -> float:
    """Returns milliseconds of CPU an image."""
    return 1e3 * result["cpu_secs"] / result["images"]


def ratios(results: Results, name: str, other: str) -> list[float]:
    """Returns, round by round, how many times the CPU of `name` the `other` takes."""
    pairs = zip(results[name], results[other], strict=True)
    return [cpu_ms(theirs) / cpu_ms(ours) for ours, theirs in pairs]


def table(results: Results) -> str:
    """Returns the measurements as Markdown: medians, and (lowest to highest)."""
    rows = [
        "| | CPU ms an image | images a CPU second | images/s by the clock |",
        "| --- | --- | --- | --- |",
    ]
    for name, measured in results.items():
        costs = [cpu_ms(result) for result in measured]
        rates = [result["images"] / result["secs"] for result in measured]
        cells = [
            _spread(costs, 2), f"{1e3 / statistics.median(costs):,.0f}",
            _spread(rates, 0),
        ]  # fmt: skip
        rows.append(f"| {_NAMES.get(name, name)} | {' | '.join(cells)} |")
    for other in sorted({"model_garden", "decode", "crop"} & set(results)):
        found = ratios(results, "pipeline", other)
        rows.append(f"\nCPU of {_NAMES[other]} / of our pipeline: {_spread(found, 2)}")
    return "\n".join(rows)


def _spread(values, digits):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _setting_of_data():
    match = re.fullmatch(r"(?:(.*)/)?([^/]+?)-[^/]*\.tfrecord", _DATA.value or "")
    if not match:
        raise errors.UserError(
            f"--data is {_DATA.value}; it must be DIR/SPLIT-*.tfrecord, or name a run "
            "by --gin_file."
        )
    low, high = (float(value) for value in _SCALE_JITTER.value)
    return {
        "data_dir": match[1] or ".",
        "split": match[2],
        "image_size": [_IMAGE_SIZE.value] * 2,
        "scale_jitter": [low, high],
        "flip": True,
        "max_boxes": 100,
        "batch_size": _BATCH.value,
    }


def _setting_of_run():
    cli.parse_files()
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    return {
        "data_dir": run.data.dir,
        "split": run.data.train_split,
        "image_size": list(run.recipe.image_size),
        "scale_jitter": list(run.data.augmentation.scale_jitter),
        "flip": run.data.augmentation.horizontal_flip,
        "max_boxes": run.data.max_boxes,
        "batch_size": run.plan.batch_size,
    }


def _commands(setting):
    text = json.dumps(setting)
    ours = str(_WORKERS / "our_input.py")
    commands = {
        name: [sys.executable, ours, name, text]
        for name in ("pipeline", "decode", "crop", "resize")
    }
    if _MODEL_GARDEN.value:
        script = str(_WORKERS / "model_garden_input.py")
        commands["model_garden"] = [_MODEL_GARDEN.value, script, text]
    return commands


def main() -> None:
    """Runs the command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    setting = setting_of_flags()
    logging.info("setting | %s", setting)
    print(table(measure_in_turn(_commands(setting), _ROUNDS.value)))


if __name__ == "__main__":
    guard.run(main)
