"""The report of preflight: the figures of a run's steps, as JSON and as a table."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

FITS = "fits"
DOES_NOT_FIT = "does not fit"
DOES_NOT_COMPILE = "does not compile"


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of a compiled step on each device.

    Attributes:
      hbm_gib: The HBM that the step needs, GiB.
      hbm_gib_there: The HBM of a device, GiB.
      argument_mb: The size of the arguments, MB.
      result_mb: The size of the results that do not replace arguments, MB.
      temporary_mb: The size of the temporary buffers, MB.
      code_mb: The size of the program, MB.
      gflop: The floating point operations, 1e9.
      accessed_mb: The bytes accessed in all memories as XLA counts them, MB.
      hbm_traffic_mb: The bytes read from and written to HBM, MB.
      on_chip_traffic_mb: The bytes read from and written to on-chip memory, MB.
      ms_at_least: The lower bound of the step's time, ms.
      bound: The bottleneck, "compute" or "memory".
      images_per_sec_at_most: The upper bound of the rate of all devices, images/s.
      largest_moves: The instructions that move the most bytes, each as a dict.
    """

    hbm_gib: float
    hbm_gib_there: float
    argument_mb: float
    result_mb: float
    temporary_mb: float
    code_mb: float
    gflop: float
    accessed_mb: float
    hbm_traffic_mb: float
    on_chip_traffic_mb: float
    ms_at_least: float
    bound: str
    images_per_sec_at_most: float
    largest_moves: list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class HostLoad:
    """The load of a host's input pipeline.

    Attributes:
      images_per_sec_of_host: The rate that each host must deliver, images/s.
      images_per_core_sec: The measured rate of a core of this machine, images/s; None
        if it was not measured.
    """

    images_per_sec_of_host: float
    images_per_core_sec: float | None


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The report of one step of a run.

    Attributes:
      images: The number of images of a device.
      num_devices: The number of devices.
      setting: The gin setting of the number of images; "" if there is none.
      outcome: FITS, DOES_NOT_FIT or DOES_NOT_COMPILE.
      fingerprint: The hash of the program, which the engine PJRT logs too; "" if the
        step does not compile.
      missing_gib: The HBM that is missing, GiB; None if it is unknown.
      error: The error of a step that the compiler refuses, else None.
      cost: The cost; None if the compiler refuses the step.
      host: The load of a host; None if no host feeds the step, or without cost.
      largest_batch: The largest batch of all devices that fits; None if not searched.
    """

    images: int
    num_devices: int
    setting: str
    outcome: str
    fingerprint: str = ""
    missing_gib: float | None = None
    error: str | None = None
    cost: Cost | None = None
    host: HostLoad | None = None
    largest_batch: int | None = None

    @property
    def fits(self) -> bool:
        """Returns whether the step compiles and fits."""
        return self.outcome == FITS

    def to_json(self) -> dict[str, Any]:
        """Returns the figures that are known, in one flat dict."""
        content: dict[str, Any] = {
            "images": self.images,
            "num_devices": self.num_devices,
            "setting": self.setting,
            "fits": self.fits,
            "outcome": self.outcome,
        }
        if self.outcome != DOES_NOT_COMPILE:
            content["missing_gib"] = self.missing_gib
        if self.fingerprint:
            content["fingerprint"] = self.fingerprint
        if self.error is not None:
            content["error"] = self.error
        for part in (self.cost, self.host):
            if part is not None:
                content |= dataclasses.asdict(part)
        if self.largest_batch is not None:
            content["largest_batch"] = self.largest_batch
        return content


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of a run's steps on a slice.

    Attributes:
      topology: The name of the slice.
      num_devices: The number of devices of the slice.
      num_hosts: The number of hosts of the slice.
      steps: The reports by the names of the steps.
    """

    topology: str
    num_devices: int
    num_hosts: int
    steps: Mapping[str, StepReport]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `preflight --json`."""
        return {
            "topology": self.topology,
            "num_devices": self.num_devices,
            "num_hosts": self.num_hosts,
            "steps": {name: step.to_json() for name, step in self.steps.items()},
        }


Cell = str | float | None  # None is an unknown figure.
CellFn = Callable[[StepReport], Cell]


def _cost(fn: Callable[[Cost], Cell]) -> CellFn:
    return lambda step: None if step.cost is None else fn(step.cost)


def _per_image(fn: Callable[[Cost], float]) -> CellFn:
    return lambda step: None if step.cost is None else fn(step.cost) / step.images


def _host(fn: Callable[[HostLoad], Cell]) -> CellFn:
    return lambda step: None if step.host is None else fn(step.host)


def _num_cores(host: HostLoad) -> float | None:
    rate = host.images_per_core_sec
    return None if rate is None else host.images_per_sec_of_host / rate


# The label of each row, and the function that returns its cells.
_ROWS: list[tuple[str, CellFn]] = [
    ("", lambda step: step.outcome),
    ("devices", lambda step: step.num_devices),
    ("images per device", lambda step: step.images),
    ("program", lambda step: step.fingerprint),
    ("HBM needed, GiB", _cost(lambda cost: cost.hbm_gib)),
    ("  of a device", _cost(lambda cost: cost.hbm_gib_there)),
    ("  arguments, MB", _cost(lambda cost: cost.argument_mb)),
    ("  results, MB", _cost(lambda cost: cost.result_mb)),
    ("  temporaries, MB", _cost(lambda cost: cost.temporary_mb)),
    ("  code, MB", _cost(lambda cost: cost.code_mb)),
    ("GFLOP", _cost(lambda cost: cost.gflop)),
    ("  per image", _per_image(lambda cost: cost.gflop)),
    ("MB to and from HBM", _cost(lambda cost: cost.hbm_traffic_mb)),
    ("  per image", _per_image(lambda cost: cost.hbm_traffic_mb)),
    ("MB to and from on-chip memory", _cost(lambda cost: cost.on_chip_traffic_mb)),
    ("  per image", _per_image(lambda cost: cost.on_chip_traffic_mb)),
    ("ms, at least", _cost(lambda cost: cost.ms_at_least)),
    ("  bound by", _cost(lambda cost: cost.bound)),
    ("images/s in total, at most", _cost(lambda cost: cost.images_per_sec_at_most)),
    ("images/s needed of each host", _host(lambda host: host.images_per_sec_of_host)),
    ("  per core of this machine", _host(lambda host: host.images_per_core_sec)),
    ("  cores needed", _host(_num_cores)),
]


def table(report: Report) -> str:
    """Returns the table of the steps, one column each, and notes on failed steps.

    Args:
      report: The report.
    """
    steps = report.steps
    num_hosts = "1 host" if report.num_hosts == 1 else f"{report.num_hosts} hosts"
    title = f"{report.topology}: {report.num_devices} devices, {num_hosts}"
    rows = [[title, *steps]]
    for label, cell_fn in _ROWS:
        cells = [_text(cell_fn(step)) for step in steps.values()]
        if any(cells):
            rows.append([label, *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for label, *cells in rows:
        aligned = [c.rjust(w) for c, w in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([label.ljust(widths[0]), *aligned]))
    notes = [note for name, step in steps.items() for note in _notes(name, step)]
    return "\n".join(lines + notes)


def _text(cell: Cell) -> str:
    if cell is None or isinstance(cell, str):
        return cell or ""
    return f"{cell:,.0f}" if cell >= 1000 else f"{cell:.4g}"


def _notes(name: str, step: StepReport) -> Iterator[str]:
    """Yields sentences on a step that fails, and on the largest batch."""
    if step.outcome == DOES_NOT_COMPILE:
        yield f"{name} does not compile: {step.error}"
    if step.outcome == DOES_NOT_FIT:
        missing = step.missing_gib
        reason = f"by {missing:.2f} GiB" if missing else f"({step.error})"
        hint = ""
        if step.setting and step.largest_batch is None:
            hint = "; --find_batch_size finds the largest batch that does"
        yield f"{name} does not fit {reason}{hint}."
    if step.largest_batch == 0:
        yield f"{name}: not even one image per device fits."
    elif step.largest_batch:
        images = step.largest_batch // step.num_devices
        yield (
            f"{name}: the largest batch that fits is {step.largest_batch:,}, "
            f"{images:,} images on each of {step.num_devices} devices; "
            f"{step.setting} sets it."
        )
