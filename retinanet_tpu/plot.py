"""Draws learning curves: losses on the left, COCO AP on the right.

  python -m retinanet_tpu.plot --model_dir=runs/bccd --output=curves.png

To compare several runs (--model_dir repeated), it draws the total loss and AP of each.

Needs matplotlib (pip install -e '.[plots]').
"""

import retinanet_tpu.startup.cpu

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import tensorflow as tf
from absl import flags
from tensorboard.backend.event_processing import event_accumulator

from retinanet_tpu import errors
from retinanet_tpu.estimator import summaries
from retinanet_tpu.inspection import plotting
from retinanet_tpu.inspection.plotting import pyplot
from retinanet_tpu.startup import guard

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MODEL_DIR = flags.DEFINE_multi_string(
    "model_dir", None, "The directory of a run; may be repeated.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "The PNG or SVG file to write.", required=True
)
_LOSSES = ("total-loss", "class-loss", "box-loss")
_METRICS = ("AP50", "AP75", "AP")
_COMPARED = ("total-loss", "AP50", "AP")

Curves = dict[str, tuple[list[int], list[float]]]  # steps and values by name


def loss_curves(model_dir: str) -> Curves:
    """Returns the steps and values of each loss, from the TensorBoard events.

    Args:
      model_dir: The directory of the run.
    """
    events = event_accumulator.EventAccumulator(model_dir, {"tensors": 0})
    events.Reload()
    curves: Curves = {}
    for name in set(_LOSSES) & set(events.Tags()["tensors"]):
        points = events.Tensors(name)
        values = [float(tf.make_ndarray(point.tensor_proto)) for point in points]
        curves[name] = ([point.step for point in points], values)
    return curves


def metric_curves(model_dir: str) -> Curves:
    """Returns the steps and values of each metric, from eval.jsonl.

    Args:
      model_dir: The directory of the run.
    Raises:
      MissingFileError: The run has no evaluation.
    """
    records = summaries.read_evaluations(summaries.eval_dir(model_dir))
    evaluated = [r for r in records if all(name in r for name in _METRICS)]
    if not evaluated:
        raise errors.MissingFileError(f"{model_dir}/eval/eval.jsonl has no results.")
    evaluated.sort(key=lambda record: record["global_step"])
    steps = [record["global_step"] for record in evaluated]
    return {name: (steps, [r[name] for r in evaluated]) for name in _METRICS}


def draw(panel: "Axes", title: str, curves: Curves) -> None:
    """Draws one panel, with the last values in the legend and a color for each run.

    Args:
      panel: The panel.
      title: Its title.
      curves: Its curves.
    """
    num_runs = len(_MODEL_DIR.value)
    num_colors = len(curves) if num_runs == 1 else num_runs
    for number, (name, (steps, values)) in enumerate(curves.items()):
        style, color = divmod(number, num_colors)
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


def _curves(names: Sequence[str], read_fn: Callable[[str], Curves]) -> Curves:
    """Returns the named curves of one run, or the compared curves of several."""
    runs = _MODEL_DIR.value
    curves_by_run = {run: read_fn(run) for run in runs}
    if len(runs) == 1:
        curves = curves_by_run[runs[0]]
        return {name: curves[name] for name in names if name in curves}
    return {
        f"{name}, {run.rstrip('/').rpartition('/')[2]}": curves[name]
        for name in _COMPARED
        for run, curves in curves_by_run.items()
        if name in curves
    }


def main() -> None:
    """Runs the command."""
    plotting.check_installed()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), dpi=110)
    draw(left, "training loss", _curves(_LOSSES, loss_curves))
    draw(right, "evaluation", _curves(_METRICS, metric_curves))
    left.set_yscale("log")
    right.set_ylim(0, 1)
    figure.tight_layout()
    figure.savefig(_OUTPUT.value)


if __name__ == "__main__":
    guard.run(main)
