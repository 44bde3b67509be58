"""The reports of a run: log lines, TensorBoard events, eval.jsonl."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorboard.plugins.pr_curve import metadata

from retinanet_tpu import json_files
from retinanet_tpu.estimator import result_types
from retinanet_tpu.estimator.model_dir import files, leases

EVALUATIONS = "eval.jsonl"


class Writer:
    """A writer of TensorBoard scalars and images to one directory."""

    def __init__(self, directory: str):
        """Initializes the writer, which begins a new events file.

        Args:
          directory: The directory of the events file.
        """
        self._writer = tf.summary.create_file_writer(directory)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes floats as scalars, uint8 [n, H, W, 3] as images, and curves.

        Other values are left out.
        """
        with self._writer.as_default():
            for name, value in values.items():
                if is_image_batch(value):
                    tf.summary.image(name, value, step, max_outputs=len(value))
                elif isinstance(value, result_types.Curves):
                    for curve, counts in value.counts.items():
                        _write_curve(f"{name}/{curve}", counts, step)
                elif np.ndim(value) == 0 and not isinstance(value, str | Mapping):
                    tf.summary.scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Closes the events file."""
        self._writer.close()


def _write_curve(tag: str, counts: np.ndarray, step: int) -> None:
    """Writes a curve in the form of TensorBoard's plugin `pr_curves`."""
    correct, wrong, missed = np.asarray(counts, np.float32)
    detected = correct + wrong
    precision = np.where(detected > 0, correct / np.maximum(detected, 1), 1)
    recall = correct / np.maximum(correct + missed, 1)
    # The plugin's third row, true negatives, does not exist in detection.
    rows = [correct, wrong, np.zeros_like(correct), missed, precision, recall]
    data = np.stack(rows).astype(np.float32)
    about = metadata.create_summary_metadata(tag, "", num_thresholds=data.shape[1])
    tf.summary.write(tag, data, step, metadata=about)


class LoopWriter:
    """A reporter of training loops: a log line and TensorBoard scalars for each."""

    def __init__(self, directory: str | None, max_steps: int, batch_size: int):
        """Initializes the reporter.

        Args:
          directory: The directory of the scalars; None for log lines only.
          max_steps: The number of steps of the run.
          batch_size: The number of images of a step over all replicas.
        """
        self._writer = Writer(directory) if directory else None
        self._max_steps = max_steps
        self._batch_size = batch_size

    def report_loop(
        self, step: int, num_steps: int, scalars: Mapping[str, float], *, secs: float
    ) -> None:
        """Reports one loop.

        Args:
          step: The global step after the loop.
          num_steps: The number of steps of the loop.
          scalars: The means by name, in the order of the log line; learning-rate is
            moved to the end.
          secs: The duration of the loop.
        """
        logged = {k: v for k, v in scalars.items() if k != "learning-rate"}
        logged["execution-time"] = secs
        if "learning-rate" in scalars:
            logged["learning-rate"] = scalars["learning-rate"]
        rate = num_steps / max(secs, 1e-9)
        line = progress_line(
            step,
            self._max_steps,
            examples_per_sec=rate * self._batch_size,
            batch_size=self._batch_size,
            scalars=logged,
        )
        logging.info(line)
        rates = {"global_step/sec": rate, "examples/sec": rate * self._batch_size}
        if self._writer:
            self._writer.write(step, logged | rates)


def write_evaluation(
    directory: str, checkpoint: str, results: Mapping[str, Any], *, secs: float
) -> None:
    """Writes the results of an evaluation to TensorBoard, eval.jsonl and reports.

    A step with a line in eval.jsonl counts as evaluated. A new line replaces an old one
    of the same step. Several processes may write to one directory.

    Args:
      directory: The directory of the evaluation, such as MODEL_DIR/eval.
      checkpoint: The path of the checkpoint.
      results: The results by name, with `global_step`.
      secs: The duration of the evaluation.
    """
    step = results["global_step"]
    writer = Writer(directory)
    writer.write(step, results)
    writer.close()
    pages = _pages(directory, results)
    head = {"global_step": step, "checkpoint": checkpoint.rpartition("/")[2]}
    record = head | numbers_of(results) | {"secs": round(secs, 1)}
    line = {name: _to_json(value) for name, value in record.items()}
    with leases.directory_lock(directory):
        files.remove_temporaries(directory)
        for name, page in pages.items():
            files.write_whole(f"{directory}/{name}-{step}.html", page)
        lines = [
            json.dumps(r, allow_nan=False) + "\n"
            for r in (*_others(directory, step), line)
        ]
        files.write_whole(f"{directory}/{EVALUATIONS}", "".join(lines))


def _pages(directory: str, results: Mapping[str, Any]) -> dict[str, str]:
    """Returns the pages of the reports by name; logs the errors of those that fail."""
    step = results["global_step"]
    pages = {}
    for name, value in results.items():
        if isinstance(value, result_types.Report):
            try:
                pages[name] = value.html_fn(step, _others(directory, step))
            except Exception:  # A page must not end a training.
                logging.exception("%s of step %d is not written", name, step)
    return pages


def _others(directory: str, step: int) -> list[dict[str, Any]]:
    """Returns the records of eval.jsonl of other steps."""
    return [r for r in read_evaluations(directory) if r["global_step"] != step]


def numbers_of(results: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the results that eval.jsonl contains: no images, curves and reports.

    Args:
      results: The results of an evaluation.
    """
    left_out = result_types.Report | result_types.Curves
    return {
        name: value
        for name, value in results.items()
        if not is_image_batch(value) and not isinstance(value, left_out)
    }


def eval_dir(model_dir: str, name: str | None = None) -> str:
    """Returns the directory of the evaluations of a name, such as MODEL_DIR/eval."""
    return f"{model_dir}/eval" + (f"_{name}" if name else "")


def read_evaluations(directory: str) -> list[dict[str, Any]]:
    """Returns the records of eval.jsonl in the order of the lines.

    There are none without a file. A corrupt line, such as a partial one at the end, is
    left out. The next write removes it from the file.
    """
    path = f"{directory}/{EVALUATIONS}"
    content = files.read_if_there(path) or b""
    records = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json_files.parse(line, path, nan_to_none=True)
            records.append(record | {"global_step": int(record["global_step"])})
        except (ArithmeticError, LookupError, TypeError, ValueError):
            logging.warning("%s, line %d is corrupt: %.80r", path, number, line)
    return records


def is_image_batch(value: Any) -> bool:
    """Returns whether a result is a batch of images, uint8 [n, H, W, 3]."""
    return getattr(value, "dtype", None) == np.uint8 and np.ndim(value) == 4


def progress_line(
    step: int,
    max_steps: int,
    *,
    examples_per_sec: float,
    batch_size: int,
    scalars: Mapping[str, float],
) -> str:
    """Returns the log line of a loop, with the estimated time to the end.

    Args:
      step: The global step after the loop.
      max_steps: The number of steps of the run.
      examples_per_sec: The number of images per second over all replicas.
      batch_size: The number of images of a step over all replicas.
      scalars: The means by name.
    """
    secs = (max_steps - step) * batch_size / max(examples_per_sec, 1e-9)
    numbers = {name: float(f"{value:.4g}") for name, value in scalars.items()}
    return (
        f"[global_step {step}/{max_steps}] [ETA: {hours(secs)}] "
        f"[{examples_per_sec:.2f} imgs/s] {numbers}"
    )


def hours(secs: float) -> str:
    """Returns a duration as HH:MM:SS."""
    minutes, secs = divmod(math.ceil(secs), 60)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{secs:02d}"


def _to_json(value):
    if isinstance(value, Mapping):
        return {k: _to_json(v) for k, v in value.items()}
    if isinstance(value, str | int | None):
        return value
    value = float(value)
    return value if math.isfinite(value) else None
