"""Compares the latency of exported detectors on the same images.

  python tools/benchmarks/latency.py NAME=PATH [NAME=PATH@SIGNATURE ...] \
      [--batch_size 1 8] [--size 640x640 480x640] [--threads=2] [--markdown]

PATH is a SavedModel's directory, or a .onnx, .tflite or .xml file. The default
SIGNATURE of a SavedModel is `images` if it exists, else `serving_default`. That of a
.xml file is the precision of its arithmetic, f32 or bf16. A .onnx file needs
onnxruntime, a .xml file OpenVINO. The artifacts may be of any origin; for our own
exports, `retinanet-tpu benchmark` also measures AP, size, memory and drift.

* The first artifact is the reference.
* Each artifact has a process of its own with --threads threads. It waits while the
  others have their turns, so that other programs on the machine affect all alike. On
  such a machine, the CPU time is more reliable than the wall time.
* A turn consists of one batch as a warm-up, then batches for --measure_secs, at least
  one.
* The time is from pixels in memory to detections in memory.
* An artifact with a fixed batch size runs several times per batch. An artifact with a
  fixed input size gets images that are padded before the measurement.
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
from typing import Any, NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.startup import guard

_SUFFIXES = (".onnx", ".tflite", ".xml")
_WORKER = pathlib.Path(__file__).parent / "timed_detector.py"


class Artifact(NamedTuple):
    """An exported detector.

    Attributes:
      name: The name in the table.
      path: The path of the artifact.
      signature: The signature of a SavedModel, or the precision of a .xml file; empty
        for the default.
    """

    name: str
    path: str
    signature: str


class Case(NamedTuple):
    """A batch of images that all artifacts process.

    Attributes:
      size: The height and width of an image, px.
      batch_size: The number of images.
    """

    size: tuple[int, int]
    batch_size: int


# A measurement; see timed_detector.measure.
Result = Mapping[str, float | None]
# The measurements of each case and artifact, one per round.
Results = Mapping[Case, Mapping[str, Sequence[Result]]]


def parse_artifact(text: str) -> Artifact:
    """Parses NAME=PATH[@SIGNATURE].

    Args:
      text: The argument of the command line.

    Raises:
      UserError: The text is malformed, or the path is not an artifact.
    """
    match = re.fullmatch(r"([^=]+)=(.+?)(?:@([\w.-]+))?", text)
    if not match:
        raise errors.UserError(
            f"'{text}' is neither NAME=PATH nor NAME=PATH@SIGNATURE."
        )
    name, path, signature = match.groups(default="")
    artifact_path = pathlib.Path(path)
    if not artifact_path.exists():
        raise errors.UserError(
            f"{path}, the path of '{name}', does not exist; correct the path."
        )
    is_saved_model = (artifact_path / "saved_model.pb").is_file()
    if not is_saved_model and artifact_path.suffix not in _SUFFIXES:
        raise errors.UserError(
            f"{path} is neither a SavedModel (a directory with a saved_model.pb) nor a "
            ".onnx, .tflite or .xml file."
        )
    return Artifact(name, path, signature)


class Worker:
    """A process that runs an artifact."""

    def __init__(self, artifact: Artifact, threads: int):
        """Starts the process and waits until the artifact is loaded.

        Args:
          artifact: The artifact.
          threads: The number of threads.

        Raises:
          UserError: The artifact cannot be loaded, or its input is not images.
        """
        self._artifact = artifact
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - for `close`.
        quiet = {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        command = [sys.executable, _WORKER, *artifact[1:], str(threads)]
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=os.environ | quiet | {"OMP_NUM_THREADS": str(threads)},
        )
        self.runs_on = self._answer()["runs_on"]

    def measure(self, case: Case, secs: float) -> Result:
        """Runs one turn of the artifact.

        Args:
          case: The batch to process.
          secs: The duration of the turn.

        Returns:
          The measurement, as returned by `timed_detector.measure`.

        Raises:
          UserError: The artifact does not accept such a batch, or fails.
        """
        request = json.dumps(case._asdict() | {"secs": secs})
        print(request, file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()
        self._log.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        answer = json.loads(line) if line else {"error": self._exit_message()}
        if "error" in answer:
            raise errors.UserError(f"{self._artifact.name}: {answer['error']}")
        return answer

    def _exit_message(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        output = self._log.read().strip()[-2000:]
        return f"the process ended with exit code {status}: {output}"


def measure_in_turn(
    workers: Mapping[str, Worker],
    cases: Sequence[Case],
    *,
    num_rounds: int,
    secs: float,
) -> Results:
    """Measures artifacts in turn. Each round starts with the next artifact.

    Args:
      workers: The processes of the artifacts, by name.
      cases: The batches; each round processes all of them.
      num_rounds: The number of rounds.
      secs: The duration of a turn.
    """
    results: dict[Case, dict[str, list[Result]]] = {
        case: {name: [] for name in workers} for case in cases
    }
    for number in range(num_rounds):
        first = number % len(workers)
        order = [*workers, *workers][first : first + len(workers)]
        for case in cases:
            for name in order:
                result = workers[name].measure(case, secs)
                results[case][name].append(result)
                wall_ms = ms_per_image(result)
                cpu_ms = ms_per_image(result, "cpu_secs")
                turn = f"round {number + 1} | {_title(case)} | {name}"
                line = f"{turn} | {wall_ms:,.0f} ms/image | CPU {cpu_ms:,.0f} ms/image"
                print(line, file=sys.stderr, flush=True)
    return results


def ms_per_image(result: Result, key: str = "secs") -> float:
    """Returns the time per image in ms.

    Args:
      result: The measurement.
      key: The time to use, "secs" (wall time) or "cpu_secs".
    """
    return 1e3 * result[key] / result["images"]


def table(results: Results, *, is_markdown: bool = False) -> str:
    """Returns a table of the medians and (lowest to highest) over the rounds.

    Args:
      results: The measurements. The first artifact of each case is the reference.
      is_markdown: True for Markdown, False for plain text.
    """
    rows = []
    for case, by_artifact in results.items():
        reference = next(iter(by_artifact))
        for name, rounds in by_artifact.items():
            wall_ms = [ms_per_image(result) for result in rounds]
            cpu_ms = [ms_per_image(result, "cpu_secs") for result in rounds]
            objects = rounds[-1]["objects"]
            wall_ratios = _ratios(by_artifact, name, "secs")
            cpu_ratios = _ratios(by_artifact, name, "cpu_secs")
            rows.append({
                "images": _title(case),
                "artifact": name,
                "ms/batch": _spread([case.batch_size * value for value in wall_ms], 0),
                "ms/image": f"{statistics.median(wall_ms):,.0f}",
                "CPU ms/image": _spread(cpu_ms, 0),
                "detections": "-" if objects is None else f"{objects:,.1f}",
                f"time / {reference}": _spread(wall_ratios, 2),
                f"CPU / {reference}": _spread(cpu_ratios, 2),
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


def _ratios(
    by_artifact: Mapping[str, Sequence[Result]], name: str, key: str
) -> list[float]:
    """Returns an artifact's time divided by that of the reference, for each round."""
    pairs = zip(by_artifact[name], next(iter(by_artifact.values())), strict=True)
    return [ms_per_image(result, key) / ms_per_image(ref, key) for result, ref in pairs]


def _spread(values: Sequence[float], digits: int) -> str:
    low, median, high = min(values), statistics.median(values), max(values)
    return f"{median:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _title(case: Case) -> str:
    return f"{case.batch_size} of {case.size[0]} x {case.size[1]}"


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if not match or "0" in match.groups():
        message = f"'{text}' is not HEIGHTxWIDTH in px, such as 480x640"
        raise argparse.ArgumentTypeError(message)
    return int(match[1]), int(match[2])


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1")
    return int(text)


def _flags(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "artifacts",
        nargs="+",
        metavar="NAME=PATH[@SIGNATURE]",
        help="Name and path of an artifact; the first one is the reference.",
    )
    parser.add_argument(
        "--batch_size",
        type=_positive,
        nargs="+",
        default=[1, 8],
        help="Numbers of images in a batch.",
    )
    parser.add_argument(
        "--size",
        type=_size,
        nargs="+",
        default=[(640, 640), (480, 640)],
        help="Sizes of the images, HEIGHTxWIDTH in px.",
    )
    parser.add_argument(
        "--threads", type=_positive, default=2, help="Number of threads per artifact."
    )
    parser.add_argument(
        "--rounds",
        type=_positive,
        default=5,
        help="Number of measurements of each artifact and batch.",
    )
    parser.add_argument(
        "--measure_secs",
        type=float,
        default=3.0,
        help="Duration of one measurement, s.",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="Print the table as Markdown."
    )
    return parser.parse_args(arguments)


def _artifacts(texts: Sequence[str]) -> list[Artifact]:
    artifacts = [parse_artifact(text) for text in texts]
    names = [artifact.name for artifact in artifacts]
    if len(set(names)) < len(names):
        raise errors.UserError(f"The names {names} are not all different; rename some.")
    return artifacts


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")  # It exists on Linux only.
    text = cpuinfo.read_text() if cpuinfo.exists() else ""
    match = re.search(r"model name\s*: (.*)", text)
    return match[1] if match else platform.processor()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    flags = _flags(arguments)
    today = datetime.date.today().isoformat()
    lines = [f"{today}, {_processor()}, {flags.threads} threads, {flags.rounds} rounds"]
    cases = [Case(size, batch) for size in flags.size for batch in flags.batch_size]
    with contextlib.ExitStack() as stack, guard.explained():
        workers: dict[str, Worker] = {}
        for artifact in _artifacts(flags.artifacts):
            worker = Worker(artifact, flags.threads)
            stack.callback(worker.close)
            workers[artifact.name] = worker
            lines.append(f"{artifact.name}: {artifact.path}, {worker.runs_on}")
        results = measure_in_turn(
            workers, cases, num_rounds=flags.rounds, secs=flags.measure_secs
        )
    separator = "\n\n" if flags.markdown else "\n"
    print(separator.join([*lines, table(results, is_markdown=flags.markdown)]))


if __name__ == "__main__":
    main()
