"""Measures the networks of all run files, and writes docs/models.md.

  python tools/benchmarks/models.py counts
  python tools/benchmarks/models.py tpu --chips=v5e --runs='coco_r50*'
  python tools/benchmarks/models.py latency --runs='coco_lite0*' --runs='coco_r18*'
  python tools/benchmarks/models.py write

The results are in docs/models.json. A measurement replaces the result of the same run,
so the page can be filled in parts:

  counts   parameters, and multiply-adds of one image; seconds for a run
  tpu      memory and least time of a training step; requires the extra preflight, and
           minutes for a run
  latency  milliseconds of a prediction on the CPU by TFLite, float32 and int8, at 512
           px and with random weights. The runs take turns, so their ratios hold on a
           machine that runs other programs
  write    the page, from all results
"""

import retinanet_tpu.startup.cpu

import argparse
import fnmatch
import json
import pathlib
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from retinanet_tpu import preflight
from retinanet_tpu.estimator import gin_files
from retinanet_tpu.model import flops, retinanet, variable_paths
from retinanet_tpu.planning import step_functions
from retinanet_tpu.serving import tflite_format
from retinanet_tpu.task import configurables, recipe as recipe_module, setting_ranges
from retinanet_tpu.xla import lower, roofline

_ROOT = pathlib.Path(__file__).parents[2]
_RUNS = _ROOT / "gin_configs"
_RESULTS = _ROOT / "docs" / "models.json"
_PAGE = _ROOT / "docs" / "models.md"
_NOT_MEASURED = "not measured"
_SLICES = {"v3": "v3-8", "v5e": "v5litepod-8", "v6e": "v6e-8"}  # By chip.
_IMAGES_PER_CHIP = 8
_TPU_KEYS = (
    "outcome",
    "fingerprint",
    "hbm_gib",
    "hbm_traffic_mb",
    "gflop",
    "ms_at_least",
    "bound",
)
_LATENCY_SIZE = (512, 512)
_ROUNDS = 7
# COCO AP on val2017, and who published it for these networks and weights.
_PUBLISHED = {
    "coco_r50_640_1x": ".343, TF Model Garden",
    "coco_r50_640_6x": ".368, TF Model Garden",
    "coco_r50_640_30x": ".398 to .403, specification project",
    "coco_r50_640_model_garden": ".368, TF Model Garden",
    "coco_r50_800_torchvision": ".364, torchvision",
    "coco_r50_800_torchvision_v2": ".415, torchvision",
    "coco_efficientdet_d0_512": ".343, google/automl",
    "coco_efficientdet_d1_640": ".402, google/automl",
    "coco_efficientdet_d2_768": ".435, google/automl",
    "coco_efficientdet_d3_896": ".468, google/automl",
    "coco_efficientdet_d4_1024": ".493, google/automl",
    "coco_spinenet49s_640": ".415, TPU detection zoo",
    "coco_spinenet49_640": ".443, TPU detection zoo",
    "coco_spinenet96_1024": ".485, TPU detection zoo",
    "coco_spinenet143_1280": ".506, TPU detection zoo",
    "coco_spinenet190_1280": ".520, TPU detection zoo",
}
_HEADER = """# Models

Written by `python tools/benchmarks/models.py write` from `docs/models.json`.

- **Parameters** are all trainable weights, with the classes of the run.
- **Multiply-adds** are the products of convolutions and matrix multiplications, for
  one image.
- **Published AP** is that of others on COCO for the same network; none was measured
  here. The results measured here on blood cells and insects are in
  [benchmarks](benchmarks.md).
"""


def main() -> None:
    """Runs the command."""
    arguments = _parse()
    results = json.loads(_RESULTS.read_text()) if _RESULTS.exists() else {}
    if arguments.part == "write":
        _PAGE.write_text(page(results))
        return
    names = _names(arguments.runs)
    if arguments.part == "latency":
        _store(results, _latency(names))
        return
    for name in names:
        if arguments.part == "counts":
            _store(results, {name: counts(name)})
        if arguments.part == "tpu":
            for chip in arguments.chips:
                _store(results, {name: {chip: _tpu(name, chip)}})
                print(f"{name} {chip}: {results[name][chip]}", flush=True)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", choices=("counts", "tpu", "latency", "write"))
    parser.add_argument("--runs", action="append", help="a pattern of run files")
    parser.add_argument("--chips", nargs="+", choices=_SLICES, default=list(_SLICES))
    return parser.parse_args()


def _names(patterns: Sequence[str] | None) -> list[str]:
    """Returns the names of the run files that match a pattern."""
    names = sorted(path.stem for path in _RUNS.glob("*.gin"))
    patterns = patterns or ["*"]
    return [n for n in names if any(fnmatch.fnmatch(n, p) for p in patterns)]


def _store(results: dict[str, Any], new: Mapping[str, Mapping[str, Any]]) -> None:
    """Adds results and writes all of them."""
    for name, values in new.items():
        results[name] = results.get(name, {}) | values
    _RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def _parse_run(name: str, *settings: str) -> None:
    gin_files.parse(
        [str(_RUNS / f"{name}.gin")],
        settings,
        known=configurables.CONFIGURABLES,
        ranges=setting_ranges.RANGES,
    )


def _make(name: str) -> tuple[retinanet.RetinaNet, recipe_module.Recipe]:
    """Returns the network of a run in float32, and its recipe."""
    _parse_run(name, "COMPUTE_DTYPE = 'float32'")
    run = configurables.make_run(None, strategy_fn=tf.distribute.get_strategy)
    return run.recipe.make_network(run.network_fn), run.recipe


def counts(name: str) -> dict[str, Any]:
    """Returns the image size, the parameters and the multiply-adds of a run.

    Args:
      name: The name of the run file, without its suffix.
    """
    network, recipe = _make(name)
    return {
        "image_size": list(recipe.image_size),
        "parameters": variable_paths.num_parameters(network.weights),
        "multiply_adds": flops.multiply_adds(network, recipe.image_size),
    }


def _tpu(name: str, chip: str) -> dict[str, Any]:
    """Returns the report of the training step on 8 devices."""
    target = roofline.accelerator(_SLICES[chip])
    _parse_run(name, f"BATCH_SIZE = {_IMAGES_PER_CHIP * target.num_devices}")
    run = configurables.make_run(
        None, strategy_fn=lambda: lower.AheadOfTimeStrategy(target.num_devices)
    )
    step = step_functions.build(run)["train"]
    start = time.monotonic()
    report = preflight.examine(name, step, step.images, target).to_json()
    content = {key: report[key] for key in _TPU_KEYS if key in report}
    return content | {"compile_secs": round(time.monotonic() - start)}


def _convert(name: str) -> dict[str, bytes]:
    """Returns the network of a run as TFLite models, by kind."""
    network, _ = _make(name)

    def predict(images: tf.Tensor) -> dict[str, tf.Tensor]:
        predictions = network(images, is_training=False)
        flat = tf.nest.flatten(predictions)
        return {f"output{i}": x for i, x in enumerate(flat)}

    spec = tf.TensorSpec([1, *_LATENCY_SIZE, 3], tf.float32, name="images")
    images = np.random.default_rng(0).uniform(0, 255, [2, *_LATENCY_SIZE, 3])
    return {
        kind: tflite_format.convert(
            predict,
            lambda outputs: outputs,
            spec,
            kind=kind,
            calibration_inputs=list(images.astype(np.float32)),
        )
        for kind in ("float32", "int8")
    }


def _latency(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the median milliseconds of one image for each run, by kind."""
    interpreters = {}
    for name in names:
        for kind, content in _convert(name).items():
            interpreter = tflite_format.make_interpreter(content, num_threads=2)
            interpreter.allocate_tensors()
            interpreter.invoke()  # The first call packs the weights.
            interpreters[name, kind] = interpreter
            print(f"{name} {kind}: {len(content):,} bytes", flush=True)
    times: dict[tuple[str, str], list[float]] = {key: [] for key in interpreters}
    for _ in range(_ROUNDS):
        for key, interpreter in interpreters.items():
            start = time.perf_counter()
            interpreter.invoke()
            times[key].append(1e3 * (time.perf_counter() - start))
    machine = f"{platform.machine()}, 2 threads, {len(names)} runs in turn"
    return {
        name: {
            "latency": {
                kind: round(statistics.median(times[name, kind]), 1)
                for kind in ("float32", "int8")
            }
            | {"machine": machine}
        }
        for name in names
    }


def page(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the text of docs/models.md.

    Args:
      results: The content of docs/models.json.
    """
    names = _names(None)
    parts = [
        _HEADER,
        "## Size and accuracy\n",
        _table(
            ["run", "px", "parameters, M", "multiply-adds, G", "published AP"],
            [_size_row(name, results.get(name, {})) for name in names],
        ),
        "## TPU: a training step of 8 images per device\n",
        _tpu_table(results),
        "## CPU: one image of 512 px in TFLite\n",
        _latency_table(results),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _size_row(name: str, result: Mapping[str, Any]) -> list[str]:
    if "parameters" not in result:
        return [name, *[_NOT_MEASURED] * 3, _PUBLISHED.get(name, "")]
    return [
        name,
        " x ".join(map(str, result["image_size"])),
        f"{result['parameters'] / 1e6:.2f}",
        f"{result['multiply_adds'] / 1e9:.2f}",
        _PUBLISHED.get(name, ""),
    ]


def _tpu_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [name, *(_tpu_cell(result.get(chip)) for chip in _SLICES)]
        for name, result in sorted(results.items())
        if not _SLICES.keys().isdisjoint(result)
    ]
    return (
        "HBM that a device needs, bytes that it moves, and the lower bound of the\n"
        "time with its bottleneck, as [preflight](guides/preflight.md) reports them.\n"
        "Other runs take `python tools/benchmarks/models.py tpu --runs=NAME`.\n\n"
        + _table(["run", *_SLICES], rows)
    )


def _tpu_cell(result: Mapping[str, Any] | None) -> str:
    if result is None:
        return _NOT_MEASURED
    if "ms_at_least" not in result:
        return str(result["outcome"])
    return (
        f"{result['hbm_gib']:.2f} GiB, {result['hbm_traffic_mb'] / 1e3:.1f} GB, "
        f"{result['ms_at_least']:.1f} ms ({result['bound']})"
    )


def _latency_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    measured = {n: r["latency"] for n, r in results.items() if "latency" in r}
    if not measured:
        return f"{_NOT_MEASURED}\n"
    slowest = max(latency["float32"] for latency in measured.values())
    rows = [
        [
            name,
            f"{latency['float32']:.0f}",
            f"{latency['int8']:.0f}",
            f"{slowest / latency['float32']:.1f}",
            f"{slowest / latency['int8']:.1f}",
        ]
        for name, latency in sorted(measured.items(), key=lambda x: x[1]["float32"])
    ]
    machines = "; ".join(sorted({latency["machine"] for latency in measured.values()}))
    columns = ["run", "float32, ms", "int8, ms", "speed, float32", "speed, int8"]
    return (
        f"Median of {_ROUNDS} rounds ({machines}), random weights, without NMS. The\n"
        "speed is relative to the slowest row in float32.\n\n" + _table(columns, rows)
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
