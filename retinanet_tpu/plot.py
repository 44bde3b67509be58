"""Draws learning curves: losses on the left, COCO AP on the right.

  python -m retinanet_tpu.plot --model_dir=runs/bccd --output=curves.png

Of several runs (--model_dir repeated) it draws the total loss and AP, to compare.

Needs matplotlib (pip install -e '.[plots]').
"""

import retinanet_tpu.startup.cpu

import tensorflow as tf
from absl import flags
from tensorboard.backend.event_processing import event_accumulator

from retinanet_tpu import errors
from retinanet_tpu.estimator import summaries
from retinanet_tpu.inspection import plotting
from retinanet_tpu.inspection.plotting import pyplot
from retinanet_tpu.startup import guard

_MODEL_DIR = flags.DEFINE_multi_string("model_dir", None, "Of a run; may be repeated.")
_OUTPUT = flags.DEFINE_string("output", None, "PNG or SVG file to write.")
_LOSSES = ("total-loss", "class-loss", "box-loss")
_SCORES = ("AP50", "AP75", "AP")
_TO_COMPARE = ("total-loss", "AP50", "AP")


def loss_curves(model_dir: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns steps and values of each loss, from the TensorBoard events."""
    events = event_accumulator.EventAccumulator(model_dir, {"tensors": 0})
    events.Reload()
    curves = {}
    for name in set(_LOSSES) & set(events.Tags()["tensors"]):
        points = events.Tensors(name)
        values = [float(tf.make_ndarray(point.tensor_proto)) for point in points]
        curves[name] = ([point.step for point in points], values)
    return curves


def score_curves(model_dir: str) -> dict[str, tuple[list[int], list[float]]]:
    """Returns steps and values of each score, from eval.jsonl."""
    records = summaries.read_evaluations(f"{model_dir}/eval")
    scored = [r for r in records if all(name in r for name in _SCORES)]
    if not scored:
        raise errors.MissingFileError(f"{model_dir}/eval/eval.jsonl has no scores.")
    scored.sort(key=lambda record: record["global_step"])
    steps = [record["global_step"] for record in scored]
    return {name: (steps, [r[name] for r in scored]) for name in _SCORES}


def draw(panel, title: str, curves) -> None:
    """Draws one panel; the legend has the last values, each run its color."""
    num_runs = len(_MODEL_DIR.value)
    num_colors = len(curves) if num_runs == 1 else num_runs
    for place, (name, (steps, values)) in enumerate(curves.items()):
        style, color = divmod(place, num_colors)
        panel.plot(
            steps,
            values,
            color=f"C{color}",
            linestyle=("-", "--")[style],
            marker="." if len(steps) < 30 else "",
            label=f"{name} {values[-1]:.3g}",
        )
    panel.set_title(title)
    panel.set_xlabel("step")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    panel.spines[["top", "right"]].set_visible(False)


def _curves(names, read_fn):
    """Returns the named curves of one run, or of each run those that sum it up."""
    runs = _MODEL_DIR.value
    found = {run: read_fn(run) for run in runs}
    if len(runs) == 1:
        return {name: found[runs[0]][name] for name in names if name in found[runs[0]]}
    return {
        f"{name}, {run.rstrip('/').rpartition('/')[2]}": curves[name]
        for name in _TO_COMPARE
        for run, curves in found.items()
        if name in curves
    }


def main() -> None:
    """Writes the image."""
    plotting.check_installed()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), dpi=110)
    draw(left, "training loss", _curves(_LOSSES, loss_curves))
    draw(right, "evaluation", _curves(_SCORES, score_curves))
    left.set_yscale("log")
    right.set_ylim(0, 1)
    figure.tight_layout()
    figure.savefig(_OUTPUT.value)


if __name__ == "__main__":
    flags.mark_flags_as_required(["model_dir", "output"])
    guard.run(main)
