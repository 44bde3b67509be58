"""The findings on a run's steps as text for people."""

from collections.abc import Callable, Mapping
from typing import Any

FITS = "fits"
DOES_NOT_FIT = "does not fit"
DOES_NOT_COMPILE = "does not compile"

# Label -> key of a step, or how to make the cell. Labels end in blanks to differ.
_ROWS: dict[str, str | Callable] = {
    "": "outcome",
    "devices": "num_devices",
    "images of a device": "images",
    "HBM needed, GiB": "hbm_gib",
    "  a device has": "hbm_gib_there",
    "  arguments, MB": "argument_mb",
    "  results, MB": "result_mb",
    "  temporaries, MB": "temporary_mb",
    "  code, MB": "code_mb",
    "GFLOP": "gflop",
    "  an image": lambda step: step["gflop"] / step["images"],
    "MB to and from HBM": "hbm_traffic_mb",
    "  an image ": lambda step: step["hbm_traffic_mb"] / step["images"],
    "MB to and from on-chip memory": "on_chip_traffic_mb",
    "  an image  ": lambda step: step["on_chip_traffic_mb"] / step["images"],
    "ms, at least": "ms_at_least",
    "  bound by": "bound",
    "images/s of all, at most": "images_per_sec_at_most",
    "images/s wanted of each host": "images_per_sec_of_host",
    "  a core delivers here": "images_per_core_sec",
    "  cores that takes": lambda step: (
        step["images_per_sec_of_host"] / step["images_per_core_sec"]
    ),
}


def table(report: Mapping[str, Any]) -> str:
    """Returns a table of the steps, a column each, and a line on each that fails.

    Args:
      report: as the command preflight prints it with --json.
    """
    steps = report["steps"]
    title = f"{report['topology']}: {report['num_devices']} devices, "
    title += "1 host" if report["num_hosts"] == 1 else f"{report['num_hosts']} hosts"
    lines = [[title, *steps]]
    for label, value in _ROWS.items():
        cells = [_cell(step, value) for step in steps.values()]
        if any(cells):
            lines.append([label.rstrip(), *cells])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for label, *cells in lines:
        aligned = [c.rjust(w) for c, w in zip(cells, widths[1:], strict=True)]
        text.append("  ".join([label.ljust(widths[0]), *aligned]))
    notes = [line for name, step in steps.items() for line in _notes(name, step)]
    return "\n".join(text + notes)


def _cell(step, value):
    try:
        found = step[value] if isinstance(value, str) else value(step)
    except (KeyError, TypeError):  # Not found out, because the step fails.
        return ""
    return found if isinstance(found, str) else _number(found)


def _number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _notes(name, step):
    """Yields what there is to say of a step in words."""
    if step["outcome"] == DOES_NOT_COMPILE:
        yield f"{name} does not compile: {step['error']}"
    found = step.get("largest_batch")
    if step["outcome"] == DOES_NOT_FIT:
        missing = step["missing_gib"]
        how_much = f"by {missing:.2f} GiB" if missing else f"({step['error']})"
        hint = ""
        if step["setting"] and found is None:
            hint = "; --find_batch_size finds the largest batch that does"
        yield f"{name} does not fit {how_much}{hint}."
    if found == 0:
        yield f"{name}: not even one image of a device fits."
    elif found:
        images = found // step["num_devices"]
        yield (
            f"{name}: the largest batch that fits is {found:,}, {images:,} images on "
            f"each of {step['num_devices']} devices; {step['setting']} sets it."
        )
