"""Compares the input pipeline of training with its parts and with Model Garden's.

  python tools/benchmarks/input.py --data=data/bccd/trainval-*.tfrecord \
      [--model_garden_python=/its/environment/bin/python]
  python tools/benchmarks/input.py --gin_file=bccd_r18.gin

The candidates run in turn, round after round, each in a new process. The output is a
Markdown table. On a machine that runs other programs, the CPU time is more reliable
than the wall time. It is the time of the candidate's process on all cores.

Model Garden's parser needs an environment of its own:
`pip install tf-models-official==2.20.*`. It gets the same records, size, jitter, flip,
shuffle buffer and batch size. It also computes the targets of all anchors on the host;
our pipeline leaves them to the device.
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

FLAGS = flags.FLAGS

_WORKERS = pathlib.Path(__file__).parent
# Our default number of records. Model Garden's 10,000 would be 1.6 GB of COCO.
_SHUFFLE_BUFFER = 1024
_NAMES = {
    "pipeline": "our pipeline",
    "decode": "`decode_jpeg` alone",
    "crop": "`decode_and_crop_jpeg` alone",
    "reference": "decoded at 1 / ratio and resized, alone",
    "resize": "the pipeline's decoding and resizing",
    "model_garden": "Model Garden's parser",
}

# The measurements of each candidate, one per round; see timer.measure.
Results = Mapping[str, Sequence[Mapping[str, float]]]


def setting_of_flags() -> dict[str, Any]:
    """Returns the setting that all candidates share.

    Raises:
      UserError: Neither --data nor --gin_file is set, or --data is not a pattern of
        record files.
      MissingFileError: The record files do not exist.
    """
    setting = _setting_of_run() if cli.GIN_FILE.value else _setting_of_data()
    record_files.find(setting["data_dir"], setting["split"])
    return setting | {
        "shuffle_buffer": _SHUFFLE_BUFFER,
        "secs": FLAGS.measure_secs,
        "warm_up_secs": FLAGS.warm_up_secs,
    }


def measure_in_turn(
    commands: Mapping[str, Sequence[str]], num_rounds: int
) -> dict[str, list[dict[str, float]]]:
    """Runs commands in turn, round after round.

    Args:
      commands: The command of each candidate, by name. The last line of its output
        must be a measurement in JSON.
      num_rounds: The number of rounds.

    Returns:
      The measurements of each candidate, one per round.

    Raises:
      RuntimeError: A command fails; the message contains the end of its output.
    """
    results: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for number in range(num_rounds):
        for name, command in commands.items():
            process = subprocess.run(command, capture_output=True, text=True)
            if process.returncode:
                output = process.stderr.strip()[-2000:]
                raise RuntimeError(f"Candidate {name} failed: {output}")
            result = json.loads(process.stdout.splitlines()[-1])
            logging.info(
                "round %d | %s | %.0f images/s | CPU %.2f ms/image",
                number + 1,
                name,
                result["images"] / result["secs"],
                cpu_ms(result),
            )
            results[name].append(result)
    return results


def cpu_ms(result: Mapping[str, float]) -> float:
    """Returns the CPU time per image in ms."""
    return 1e3 * result["cpu_secs"] / result["images"]


def ratios(results: Results, name: str, other: str) -> list[float]:
    """Returns the CPU time of `other` divided by that of `name`, for each round."""
    pairs = zip(results[name], results[other], strict=True)
    return [cpu_ms(theirs) / cpu_ms(ours) for ours, theirs in pairs]


def table(results: Results) -> str:
    """Returns the measurements as Markdown: medians and (lowest to highest)."""
    rows = [
        "| | CPU ms/image | images per CPU second | images/s (wall time) |",
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
    for other in sorted({"model_garden", "decode", "crop", "reference"} & set(results)):
        values = ratios(results, "pipeline", other)
        rows.append(f"\nCPU of {_NAMES[other]} / of our pipeline: {_spread(values, 2)}")
    return "\n".join(rows)


def _spread(values: Sequence[float], digits: int) -> str:
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _setting_of_data() -> dict[str, Any]:
    match = re.fullmatch(r"(?:(.*)/)?([^/]+?)-[^/]*\.tfrecord", FLAGS.data or "")
    if not match:
        raise errors.UserError(
            f"--data is {FLAGS.data}; it must be DIR/SPLIT-*.tfrecord. Or set the run "
            "with --gin_file."
        )
    low, high = (float(value) for value in FLAGS.scale_jitter)
    return {
        "data_dir": match[1] or ".",
        "split": match[2],
        "image_size": [FLAGS.image_size] * 2,
        "scale_jitter": [low, high],
        "flip": True,
        "max_boxes": 100,
        "batch_size": FLAGS.batch_size,
    }


def _setting_of_run() -> dict[str, Any]:
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


def _commands(setting: dict[str, Any]) -> dict[str, list[str]]:
    text = json.dumps(setting)
    worker = str(_WORKERS / "pipeline_worker.py")
    commands = {
        name: [sys.executable, worker, name, text]
        for name in ("pipeline", "decode", "crop", "reference", "resize")
    }
    if FLAGS.model_garden_python:
        script = str(_WORKERS / "model_garden_input.py")
        commands["model_garden"] = [FLAGS.model_garden_python, script, text]
    return commands


def main() -> None:
    """Runs the command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    setting = setting_of_flags()
    logging.info("setting | %s", setting)
    print(table(measure_in_turn(_commands(setting), FLAGS.rounds)))


def define_flags() -> None:
    """Defines the flags; not on import, when another tool may run."""
    flags.DEFINE_string(
        "data",
        None,
        "Record files to read, as DIR/SPLIT-*.tfrecord. Alternative to --gin_file.",
    )
    flags.DEFINE_integer(
        "image_size", 640, "Height and width of the network's input, px."
    )
    flags.DEFINE_list(
        "scale_jitter", ["0.8", "1.2"], "Lowest and highest factor of the scale jitter."
    )
    flags.DEFINE_integer("batch_size", 8, "Number of images in a batch.")
    flags.DEFINE_string(
        "model_garden_python",
        None,
        "Python interpreter of the environment with Model Garden; omit to skip it.",
    )
    flags.DEFINE_float("measure_secs", 8.0, "Duration of one measurement, s.")
    flags.DEFINE_float(
        "warm_up_secs", 4.0, "Duration of the warm-up before each measurement, s."
    )
    flags.DEFINE_integer("rounds", 5, "Number of measurements of each candidate.")


if __name__ == "__main__":
    define_flags()
    guard.run(main)
