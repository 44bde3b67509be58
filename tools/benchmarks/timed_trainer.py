"""Trains like `retinanet-tpu train`, and measures its own process after every loop.

  python timed_trainer.py --measurements=FILE --gin_file=RUN.gin --model_dir=DIR ...

FILE gets a line of JSON for each loop: "step", "time" (seconds since 1970), "cpu_secs"
(CPU time of this process since its start) and "rss_mb" (its memory; null if the system
has no /proc).
"""

import retinanet_tpu.startup.tpu

import json
import logging
import pathlib
import re
import resource
import time

from absl import flags, logging as absl_logging

from retinanet_tpu import train
from retinanet_tpu.startup import guard

_LOOP = re.compile(r"\[global_step (\d+)/\d+\]")
_STATUS = pathlib.Path("/proc/self/status")  # It exists on Linux only.


class Recorder(logging.Handler):
    """A handler of log records that measures the process at each line of a loop."""

    def __init__(self, path: pathlib.Path):
        """Initializes the handler.

        Args:
          path: The file to append the measurements to.
        """
        super().__init__()
        self._path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Appends a measurement if the record is the line of a loop."""
        if match := _LOOP.match(record.getMessage()):
            line = json.dumps({"step": int(match[1])} | measure())
            with self._path.open("a") as file:
                file.write(line + "\n")


def measure() -> dict[str, float | None]:
    """Returns the time, the CPU time and the memory of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    memory = re.search(r"VmRSS:\s+(\d+) kB", _read_status())
    return {
        "time": time.time(),
        "cpu_secs": usage.ru_utime + usage.ru_stime,
        "rss_mb": int(memory[1]) / 1024 if memory else None,
    }


def _read_status() -> str:
    return _STATUS.read_text() if _STATUS.exists() else ""


def main() -> None:
    """Runs the command."""
    recorder = Recorder(pathlib.Path(flags.FLAGS.measurements))
    absl_logging.get_absl_logger().addHandler(recorder)
    train.main()


if __name__ == "__main__":
    flags.DEFINE_string("measurements", None, "File to append to.", required=True)
    guard.run(main)
