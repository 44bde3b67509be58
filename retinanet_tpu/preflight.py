r"""Compiles a run's steps for a TPU without one: do they compile, fit, and how fast?

  python -m retinanet_tpu.preflight --gin_file=gin_configs/coco_r50_640_3x.gin \
      --topology=v3-32 [--dump_hlo=DIR] [--json]

Needs no TPU and no data, but the extra [preflight]. The exit code is 0 only if the
training step and the prediction step both compile and fit.
"""

import json
import sys
from typing import Any

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu.task import cli, configurables, steps
from retinanet_tpu.xla import compile as compiler, lower, roofline

_TOPOLOGY = flags.DEFINE_string(
    "topology", "v3-8", "A slice, as Google Cloud names it."
)
_DUMP_HLO = flags.DEFINE_string("dump_hlo", None, "Directory to write the programs to.")
_JSON = flags.DEFINE_bool("json", False, "Print one JSON object instead of the table.")


def main() -> None:
    """Runs the command."""
    cli.parse_files()
    target = roofline.accelerator(_TOPOLOGY.value)
    strategy = lower.AheadOfTimeStrategy(target.num_devices)
    run = configurables.make_experiment(None, strategy_fn=lambda: strategy)
    report = {"topology": _TOPOLOGY.value, "steps": {}}
    for name, (fn, specs) in steps.of(run).items():
        logging.info("Lowering the %s step", name)
        hlo = lower.to_hlo(fn, specs, strategy)
        _dump(name, hlo)
        logging.info("Compiling %d kB for %s", len(hlo) >> 10, _TOPOLOGY.value)
        report["steps"][name] = examine(hlo, target, specs)
    print(json.dumps(report) if _JSON.value else table(report))
    sys.exit(not all(step["fits"] for step in report["steps"].values()))


def examine(hlo: bytes, target: roofline.Accelerator, specs: Any) -> dict[str, Any]:
    """Returns what one program costs on one device of a slice.

    Args:
      hlo: the lowered step.
      target: where it is to run.
      specs: of its arguments; the first has the batch.
    """
    batch = tf.nest.flatten(specs)[0].shape[0]
    try:
        found = compiler.for_tpu(hlo, target.topology, target.num_devices)
    except RuntimeError as error:
        return {"fits": False, "images": batch, "error": str(error)}
    moves = roofline.moves(found.text)
    bound = roofline.roofline(
        found.flops, sum(move.num_bytes for move in moves), target.device
    )
    needed = found.argument_bytes + found.temporary_bytes + found.code_bytes
    return {
        "fits": needed <= target.device.hbm_bytes,
        "images": batch,
        "hbm_gib": needed / 2**30,
        "hbm_gib_there": target.device.hbm_bytes / 2**30,
        "argument_mb": found.argument_bytes / 1e6,
        "temporary_mb": found.temporary_bytes / 1e6,
        "code_mb": found.code_bytes / 1e6,
        "tflop": found.flops / 1e12,
        "gb_accessed": found.bytes_accessed / 1e9,
        "gb_hbm_traffic": bound.hbm_bytes / 1e9,
        "ms_at_least": bound.secs * 1e3,
        "bound": bound.bound,
        "images_per_sec_at_most": batch * target.num_devices / bound.secs,
        "largest_moves": [move._asdict() for move in moves[:10]],
    }


def table(report: dict[str, Any]) -> str:
    """Returns the report as text for people."""
    lines = [f"On {report['topology']}, for one device and step:"]
    for name, step in report["steps"].items():
        lines += [f"{name} step, {step['images']} images", *_rows(step)]
    return "\n".join(lines)


def _rows(step):
    if "error" in step:
        return [f"  does not compile: {step['error'].splitlines()[0]}"]
    fit = "fits" if step["fits"] else "DOES NOT FIT"
    return [
        f"  {fit}: {step['hbm_gib']:.2f} of {step['hbm_gib_there']:.0f} GiB (arguments "
        f"{step['argument_mb']:.0f}, temporaries {step['temporary_mb']:.0f}, code "
        f"{step['code_mb']:.0f} MB)",
        f"  {step['tflop']:.3f} TFLOP, {step['gb_hbm_traffic']:.2f} GB through HBM, "
        f"{step['gb_accessed']:.2f} GB accessed in all",
        f"  at least {step['ms_at_least']:.1f} ms, bound by {step['bound']}; at most "
        f"{step['images_per_sec_at_most']:,.0f} images/s on the whole slice",
    ]


def _dump(name, hlo):
    if _DUMP_HLO.value:
        tf.io.gfile.makedirs(_DUMP_HLO.value)
        with tf.io.gfile.GFile(f"{_DUMP_HLO.value}/{name}.hlo", "wb") as file:
            file.write(hlo)


if __name__ == "__main__":
    cli.run(main)
