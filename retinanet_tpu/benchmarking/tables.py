"""Writes the results of a benchmark as a Markdown table and as JSON."""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from retinanet_tpu.benchmarking import measure, worker

_NOT_RUNNABLE = "not run: it needs TensorRT"
_EMPTY = "-"


class Latency(NamedTuple):
    """The latency of a batch.

    Attributes:
      median_ms: The median of the rounds, of which each counts by its median.
      min_ms: The time of the fastest batch, which other programs disturbed least.
      max_ms: The median of the slowest round.
      cpu_ms: The CPU time of a batch, of all threads; the median of the rounds.
    """

    median_ms: float
    min_ms: float
    max_ms: float
    cpu_ms: float


def latency(turns: Sequence[worker.Turn]) -> Latency:
    """Returns the latency of a batch.

    Args:
      turns: The turns of a model, one per round; at least one.
    """
    rounds_ms = [1e3 * statistics.median(turn.secs) for turn in turns]
    cpu_ms = [1e3 * turn.cpu_secs / len(turn.secs) for turn in turns]
    return Latency(
        statistics.median(rounds_ms),
        1e3 * min(secs for turn in turns for secs in turn.secs),
        max(rounds_ms),
        statistics.median(cpu_ms),
    )


class Throughput(NamedTuple):
    """The throughput of the largest batch.

    Attributes:
      images_per_sec: The images per second, by the median latency.
      cpu_ms_per_image: The CPU time of an image, of all threads.
    """

    images_per_sec: float
    cpu_ms_per_image: float


def throughput(result: measure.Result) -> Throughput | None:
    """Returns the throughput of the largest timed batch; None without one.

    Args:
      result: The measurements of a model.
    """
    if not result.turns:
        return None
    batch_size = max(result.turns)
    values = latency(result.turns[batch_size])
    return Throughput(1e3 * batch_size / values.median_ms, values.cpu_ms / batch_size)


def table(results: Sequence[measure.Result], batch_sizes: Sequence[int]) -> str:
    """Returns a Markdown table with a row for each model.

    Args:
      results: The measurements.
      batch_sizes: The timed batch sizes.
    """
    columns = _columns(batch_sizes)
    rows = [["model", *columns]]
    for result in results:
        note = _note(result)
        rows.append(
            [result.candidate.name, *(cell_fn(result) for cell_fn in columns.values())]
            if note is None
            else [result.candidate.name, note]
        )
    # A note is longer than a number, and would make its column as wide.
    full_rows = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(map(len, column)) for column in zip(*full_rows, strict=True)]
    widths[0] = max(len(row[0]) for row in rows)
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [_line(row, widths) for row in (rows[0], rule, *rows[1:])]
    return "".join(f"{line}\n" for line in lines)


def _columns(
    batch_sizes: Sequence[int],
) -> dict[str, Callable[[measure.Result], str]]:
    """Returns the function of each column's cells, by heading."""
    columns: dict[str, Callable[[measure.Result], str]] = {
        "AP": functools.partial(_metric, name="AP"),
        "AP50": functools.partial(_metric, name="AP50"),
        "MB": _size,
        "load, s": _load,
    }
    for batch_size in batch_sizes:
        columns[f"batch {batch_size}, ms"] = functools.partial(
            _latency, batch_size=batch_size
        )
    return columns | {
        "images/s": _rate,
        "CPU ms/image": _cpu,
        "memory, MB": lambda result: _number(result.memory_mb, 0),
        "same boxes": _matched,
        "score drift": _mean_drift,
        "largest": _largest_drift,
    }


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    """Returns a line of the table; a row with too few cells is filled up."""
    if len(row) < len(widths):
        return f"| {row[0].ljust(widths[0])} | {row[1]} |" + " |" * (len(widths) - 2)
    cells = [
        cell.ljust(width) if column == 0 else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    return f"| {' | '.join(cells)} |"


def _note(result: measure.Result) -> str | None:
    """Returns the text of a row without numbers; None for the others."""
    if result.error is not None:
        return "error: " + " ".join(result.error.replace("|", "/").split())
    return None if result.candidate.is_runnable else _NOT_RUNNABLE


def _number(value: float | None, digits: int) -> str:
    return _EMPTY if value is None else f"{value:,.{digits}f}"


def _metric(result: measure.Result, name: str) -> str:
    return _number(result.metrics[name] if result.metrics else None, 4)


def _size(result: measure.Result) -> str:
    size = result.candidate.num_bytes
    return _number(None if size is None else size / 1e6, 1)


def _load(result: measure.Result) -> str:
    return _number(sum(result.loaded) if result.loaded else None, 2)


def _latency(result: measure.Result, batch_size: int) -> str:
    if batch_size not in result.turns:
        return _EMPTY
    values = latency(result.turns[batch_size])
    digits = 0 if values.median_ms >= 100 else 1
    low, high = (f"{x:,.{digits}f}" for x in (values.min_ms, values.max_ms))
    return f"{values.median_ms:,.{digits}f} ({low} to {high})"


def _rate(result: measure.Result) -> str:
    values = throughput(result)
    return _number(values.images_per_sec if values else None, 1)


def _cpu(result: measure.Result) -> str:
    values = throughput(result)
    return _number(values.cpu_ms_per_image if values else None, 1)


def _matched(result: measure.Result) -> str:
    if result.is_reference:
        return "reference"
    if result.drift is None or not result.drift.num_compared:
        return _EMPTY
    return f"{100 * result.drift.num_matched / result.drift.num_compared:.1f} %"


def _mean_drift(result: measure.Result) -> str:
    drift = result.drift
    has_matches = drift is not None and drift.num_matched
    return f"{drift.mean_score_drift:.2g}" if drift and has_matches else _EMPTY


def _largest_drift(result: measure.Result) -> str:
    drift = result.drift
    has_matches = drift is not None and drift.num_matched
    return f"{drift.score_drift:.2g}" if drift and has_matches else _EMPTY


def to_json(result: measure.Result) -> dict[str, Any]:
    """Returns all measurements of a model as JSON values.

    Args:
      result: The measurements. Times are in seconds, without rounding.
    """
    candidate = result.candidate
    values = throughput(result)
    return {
        "model": candidate.name,
        "path": candidate.path,
        "error": result.error,
        "is_runnable": candidate.is_runnable,
        "is_reference": result.is_reference,
        "num_bytes": candidate.num_bytes,
        "metrics": dict(result.metrics) if result.metrics else None,
        "load_secs": result.loaded.load_secs if result.loaded else None,
        "first_image_secs": result.loaded.first_secs if result.loaded else None,
        "latency": {
            str(batch_size): {
                **latency(turns)._asdict(),
                "round_secs": [list(turn.secs) for turn in turns],
                "round_cpu_secs": [turn.cpu_secs for turn in turns],
            }
            for batch_size, turns in result.turns.items()
        },
        "throughput": values._asdict() if values else None,
        "peak_memory_mb": result.memory_mb,
        "drift": result.drift._asdict() if result.drift else None,
    }
