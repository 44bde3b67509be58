"""Times exported detectors on the same images, by turns, and says how they compare.

  python tools/benchmarks/latency.py NAME=PATH [NAME=PATH@SIGNATURE ...] \
      [--batch 1 8] [--size 640x640 480x640] [--threads=2] [--markdown]

A PATH is a SavedModel's directory, a .onnx or a .tflite file. Of a SavedModel without
@SIGNATURE it is `images` if there is one, else `serving_default`. Nothing of the code
that made it is needed, but onnxruntime for .onnx and TensorFlow for the others.

The first artifact is the reference. Each has a process and --threads threads of its own
and waits while another has its turn, so that a machine with other work to do hurts all
alike; of such a machine believe the CPU time. A turn is one batch to warm up, then
batches for --seconds, at least one. From pixels in memory to objects in memory counts,
all that an artifact does. What takes only so many images at once runs as often as the
batch needs. An input of fixed size gets images that were padded to it beforehand.
"""

import retinanet_tpu.startup.cpu

import argparse
import contextlib
import datetime
import json
import os
import pathlib
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.startup import guard

_WORKER = pathlib.Path(__file__).parent / "timed_detector.py"


class Artifact(NamedTuple):
    """What is to be timed."""

    name: str
    path: str
    signature: str  # of a SavedModel; empty for the usual one


class Case(NamedTuple):
    """What all are shown."""

    size: tuple[int, int]  # height and width of an image, px
    batch: int


# By case and artifact: what each round brought, as timed_detector.measure returns it.
Results = Mapping[Case, Mapping[str, Sequence[Mapping[str, float | None]]]]


def parse_artifact(text: str) -> Artifact:
    """Returns what NAME=PATH[@SIGNATURE] says.

    Raises:
      UserError: it says something else, or no artifact is there.
    """
    match = re.fullmatch(r"([^=]+)=(.+?)(?:@([\w.-]+))?", text)
    if not match:
        raise errors.UserError(
            f"'{text}' is neither NAME=PATH nor NAME=PATH@SIGNATURE."
        )
    name, path, signature = match.groups(default="")
    place = pathlib.Path(path)
    if not place.exists():
        raise errors.UserError(
            f"There is no {path}, which '{name}' is to be; mend the path."
        )
    is_saved_model = (place / "saved_model.pb").is_file()
    if not is_saved_model and place.suffix not in (".onnx", ".tflite"):
        raise errors.UserError(
            f"{path} is neither a SavedModel (a directory with a saved_model.pb) nor a "
            ".onnx or .tflite file."
        )
    return Artifact(name, path, signature)


class Worker:
    """An artifact in a process of its own."""

    def __init__(self, artifact: Artifact, threads: int):
        """Starts it and waits until the artifact is loaded.

        Raises:
          UserError: the artifact does not load, or takes no images.
        """
        self._artifact = artifact
        self._words = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for `close`.
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, _WORKER, *artifact[1:], str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=os.environ | quiet | {"OMP_NUM_THREADS": str(threads)},
        )
        self.runs_on = self._answer()["runs_on"]

    def measure(self, case: Case, secs: float) -> dict[str, float | None]:
        """Returns what a turn of some seconds brings; see Results.

        Raises:
          UserError: the artifact does not take such a batch, or fails.
        """
        request = json.dumps(case._asdict() | {"secs": secs})
        print(request, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._words.close()

    def _answer(self):
        line = self._process.stdout.readline()
        found = json.loads(line) if line else {"error": self._last_words()}
        if "error" in found:
            raise errors.UserError(f"{self._artifact.name}: {found['error']}")
        return found

    def _last_words(self):
        status = self._process.wait()
        self._words.seek(0)
        return f"it ended with {status} and said: {self._words.read().strip()[-2000:]}"


def measure_in_turn(
    workers: Mapping[str, Worker],
    cases: Sequence[Case],
    *,
    num_rounds: int,
    secs: float,
) -> Results:
    """Lets artifacts take turns, each round beginning with the next of them.

    Args:
      workers: by name.
      cases: all of them in every round.
      num_rounds: how often.
      secs: of a turn.
    """
    results = {case: {name: [] for name in workers} for case in cases}
    for number in range(num_rounds):
        first = number % len(workers)
        order = [*workers, *workers][first : first + len(workers)]
        for case in cases:
            for name in order:
                found = workers[name].measure(case, secs)
                results[case][name].append(found)
                clock, cpu = ms_per_image(found), ms_per_image(found, "cpu_secs")
                what = f"round {number + 1} | {_title(case)} | {name}"
                line = f"{what} | {clock:,.0f} ms an image | {cpu:,.0f} ms of CPU"
                print(line, file=sys.stderr, flush=True)
    return results


def ms_per_image(result: Mapping[str, float | None], key: str = "secs") -> float:
    """Returns milliseconds an image, of the key "secs" or "cpu_secs"."""
    return 1e3 * result[key] / result["images"]


def table(results: Results, *, is_markdown: bool = False) -> str:
    """Returns medians, and (lowest to highest) of the rounds.

    Args:
      results: the first artifact of each case is the reference.
      is_markdown: for a page, not for a terminal.
    """
    rows = []
    for case, measured in results.items():
        reference = next(iter(measured))
        for name, found in measured.items():
            clock = [ms_per_image(result) for result in found]
            cpu = [ms_per_image(result, "cpu_secs") for result in found]
            objects = found[-1]["objects"]
            rows.append({
                "pictures": _title(case),
                "artifact": name,
                "ms a batch": _spread([case.batch * value for value in clock], 0),
                "ms an image": f"{statistics.median(clock):,.0f}",
                "CPU ms an image": _spread(cpu, 0),
                "objects": "-" if objects is None else f"{objects:,.1f}",
                f"time / {reference}": _spread(_ratios(measured, name, "secs"), 2),
                f"CPU / {reference}": _spread(_ratios(measured, name, "cpu_secs"), 2),
            })  # fmt: skip
    cells = [list(rows[0]), *(list(row.values()) for row in rows)]
    if is_markdown:
        cells.insert(1, ["---"] * len(rows[0]))
        return "\n".join(f"| {' | '.join(row)} |" for row in cells)
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _ratios(measured, name, key):
    """Returns, round by round, how long an artifact took for 1 of the reference."""
    pairs = zip(measured[name], next(iter(measured.values())), strict=True)
    return [ms_per_image(ours, key) / ms_per_image(first, key) for ours, first in pairs]


def _spread(values, digits):
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _title(case):
    return f"{case.batch} of {case.size[0]} x {case.size[1]}"


def _size(text):
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        message = f"'{text}' is not HEIGHTxWIDTH in px, such as 480x640"
        raise argparse.ArgumentTypeError(message)
    return int(match[1]), int(match[2])


def _positive(text):
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


def _flags(arguments):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("artifacts", nargs="+", metavar="NAME=PATH[@SIGNATURE]")
    parser.add_argument("--batch", type=_positive, nargs="+", default=[1, 8])
    parser.add_argument(
        "--size", type=_size, nargs="+", default=[(640, 640), (480, 640)],
        help="of images, HEIGHTxWIDTH, px",
    )  # fmt: skip
    parser.add_argument("--threads", type=_positive, default=2)
    parser.add_argument("--rounds", type=_positive, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--markdown", action="store_true")
    return parser.parse_args(arguments)


def _artifacts(texts):
    found = [parse_artifact(text) for text in texts]
    names = [artifact.name for artifact in found]
    if len(set(names)) < len(names):
        raise errors.UserError(f"The names {names} are not all different; rename some.")
    return found


def _processor():
    cpuinfo = pathlib.Path("/proc/cpuinfo")  # Only Linux has one.
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    found = re.search(r"model name\s*: (.*)", text)
    return found[1] if found else platform.processor()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = _flags(arguments)
    today = datetime.date.today().isoformat()
    lines = [f"{today}, {_processor()}, {flags.threads} threads, {flags.rounds} rounds"]
    cases = [Case(size, batch) for size in flags.size for batch in flags.batch]
    with contextlib.ExitStack() as stack, guard.explained():
        workers = {}
        for artifact in _artifacts(flags.artifacts):
            worker = Worker(artifact, flags.threads)
            stack.callback(worker.close)
            workers[artifact.name] = worker
            lines.append(f"{artifact.name}: {artifact.path}, {worker.runs_on}")
        results = measure_in_turn(
            workers, cases, num_rounds=flags.rounds, secs=flags.seconds
        )
    between = "\n\n" if flags.markdown else "\n"
    print(between.join([*lines, table(results, is_markdown=flags.markdown)]))


if __name__ == "__main__":
    main()
