"""Writes the results of a sweep as a table and as JSON."""

import json
import statistics
from collections.abc import Sequence

from retinanet_tpu.estimator.model_dir import files
from retinanet_tpu.sweeping import runs

_METRICS = ("AP", "AP50", "AP75")
_COLUMNS = ("variant", *_METRICS, "step", "CPU minutes", "runs")


def write(sweep_dir: str, all_runs: Sequence[runs.Run], split: str | None) -> str:
    """Writes table.md and results.json of the finished runs; returns the table.

    Args:
      sweep_dir: The directory of the sweep.
      all_runs: All runs of the sweep, also those that are not finished.
      split: The split whose results are read, see `runs.Run.result`.
    """
    finished = [run for run in all_runs if run.is_done(split)]
    results = {run.name: run.result(split) or {} for run in finished}
    table = _table(all_runs, results)
    files.write_whole(f"{sweep_dir}/{runs.TABLE_FILE}", table)
    text = json.dumps(results, indent=1, sort_keys=True) + "\n"
    files.write_whole(f"{sweep_dir}/{runs.RESULTS_FILE}", text)
    return table


def _table(all_runs: Sequence[runs.Run], results: dict[str, dict[str, float]]) -> str:
    variants = list(dict.fromkeys(run.variant for run in all_runs))
    rows = [_COLUMNS, ["---"] * len(_COLUMNS)]
    for variant in variants:
        seeds = [run for run in all_runs if run.variant == variant]
        finished = [run for run in seeds if results.get(run.name)]
        done = [results[run.name] for run in finished]
        minutes = [run.cpu_minutes() for run in finished]
        rows.append(
            [
                variant,
                *(_spread([record[metric] for record in done]) for metric in _METRICS),
                ", ".join(sorted({str(record["global_step"]) for record in done}))
                or "none",
                f"{statistics.fmean(minutes):.1f}" if minutes else "none",
                f"{len(done)} of {len(seeds)}",
            ]
        )
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _spread(values: Sequence[float]) -> str:
    """Returns the mean, and the lowest and highest of several values."""
    if not values:
        return "none"
    mean = f"{statistics.fmean(values):.3f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(values):.3f} to {max(values):.3f})"
