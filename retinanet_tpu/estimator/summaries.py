"""What a run tells: log lines, TensorBoard events, eval.jsonl."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from retinanet_tpu import json_files
from retinanet_tpu.estimator.model_dir import files, leases

EVALUATIONS = "eval.jsonl"


class Writer:
    """Writes scalars and images to the TensorBoard events of one directory."""

    def __init__(self, directory: str):
        self._writer = tf.summary.create_file_writer(directory)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes floats as scalars and uint8 [n, H, W, 3] arrays as images."""
        with self._writer.as_default():
            for name, value in values.items():
                if is_picture(value):
                    tf.summary.image(name, value, step, max_outputs=len(value))
                elif np.ndim(value) == 0 and not isinstance(value, str | Mapping):
                    tf.summary.scalar(name, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Ends the file; the next Writer begins another."""
        self._writer.close()


class LoopWriter:
    """Reports a training run, loop by loop: a log line and TensorBoard scalars."""

    def __init__(self, directory: str | None, max_steps: int, batch_size: int):
        """Takes where the scalars go, None for log lines only."""
        self._writer = Writer(directory) if directory else None
        self._max_steps, self._batch_size = max_steps, batch_size

    def report_loop(
        self, step: int, num_steps: int, scalars: Mapping[str, float], *, secs: float
    ) -> None:
        """Reports one loop.

        Args:
          step: the global step after it.
          num_steps: that it had.
          scalars: by name, in the order to show them; learning-rate comes last.
          secs: that it took.
        """
        shown = {k: v for k, v in scalars.items() if k != "learning-rate"}
        shown["execution-time"] = secs
        if "learning-rate" in scalars:
            shown["learning-rate"] = scalars["learning-rate"]
        rate = num_steps / max(secs, 1e-9)
        line = progress_line(
            step,
            self._max_steps,
            examples_per_sec=rate * self._batch_size,
            batch_size=self._batch_size,
            scalars=shown,
        )
        logging.info(line)
        rates = {"global_step/sec": rate, "examples/sec": rate * self._batch_size}
        if self._writer:
            self._writer.write(step, shown | rates)


def write_evaluation(
    directory: str, checkpoint: str, results: Mapping[str, Any], *, secs: float
) -> None:
    """Writes an evaluation's numbers and images, and last its line of eval.jsonl.

    The line is what counts as done. A step has one: a new one takes an old one's
    place. Several processes may write to one directory.
    """
    step = results["global_step"]
    writer = Writer(directory)
    writer.write(step, results)
    writer.close()
    head = {"global_step": step, "checkpoint": checkpoint.rpartition("/")[2]}
    record = head | dict(results) | {"secs": round(secs, 1)}
    plain = {k: _plain(v) for k, v in record.items() if not is_picture(v)}
    with leases.directory_lock(directory):
        files.remove_temporaries(directory)
        others = [r for r in read_evaluations(directory) if r["global_step"] != step]
        lines = [json.dumps(r, allow_nan=False) + "\n" for r in (*others, plain)]
        files.write_whole(f"{directory}/{EVALUATIONS}", "".join(lines))


def read_evaluations(directory: str) -> list[dict[str, Any]]:
    """Returns the records of eval.jsonl, as they were written; none without a file.

    A line that is no record, such as half a line at the end, is left out, and is gone
    with the next one that is written.
    """
    path = f"{directory}/{EVALUATIONS}"
    content = files.read_if_there(path) or b""
    records = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            record = json_files.parse(line, path, nan_to_none=True)
            records.append(record | {"global_step": int(record["global_step"])})
        except (ArithmeticError, LookupError, TypeError, ValueError):
            logging.warning("%s, line %d is damaged: %.80r", path, number, line)
    return records


def is_picture(value: Any) -> bool:
    """Tells whether a metric is a batch of images, uint8 [n, H, W, 3]."""
    return getattr(value, "dtype", None) == np.uint8 and np.ndim(value) == 4


def progress_line(
    step: int,
    max_steps: int,
    *,
    examples_per_sec: float,
    batch_size: int,
    scalars: Mapping,
) -> str:
    """Returns the log line of a loop, with the time that the rest will take."""
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


def _plain(value):
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, str | int | None):
        return value
    value = float(value)
    return value if math.isfinite(value) else None
