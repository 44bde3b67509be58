"""Runs a trainer and its sidecars as processes that tests stop or kill."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import time

import numpy as np
import pytest

import tool_processes
import toy_data
from retinanet_tpu.estimator.model_dir import checkpoints

FAULTY = pathlib.Path(__file__).parent / "faulty.py"
# Steps are so fast that most time is spent on starting processes. The low score
# threshold gives each checkpoint detections, so that their results differ.
BINDINGS = (
    *toy_data.TINY,
    *toy_data.TWO_LEVELS,
    *toy_data.SGD,
    "NMS.score_threshold = 0.001",
    "TrainingPlan.num_visualized_images = 0",
    "TrainingPlan.evaluate_during_training = False",
    "RunConfig.heartbeat_secs = 1",
)
# XLA's LLVM passes take most of the start-up time, as in conftest.py. GPUs are hidden.
ENVIRONMENT = {
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
    "CUDA_VISIBLE_DEVICES": "",
    "TF_CPP_MIN_LOG_LEVEL": "2",
    "GCE_METADATA_HOST": "",
}


class Process:
    """A process that runs a command of the package and writes its log to a file.

    Attributes:
      log: The log file.
    """

    def __init__(
        self,
        command: str,
        *flags: str,
        log: pathlib.Path,
        fault: str = "",
        has_terminal: bool = False,
    ):
        """Starts the process.

        Args:
          command: The command, "train" or "evaluate".
          *flags: The flags of the command.
          log: The file for the output.
          fault: The fault to inject, see faulty.py.
          has_terminal: Whether it writes to a pipe instead of the log, for `hang_up`.
        """
        module = f"retinanet_tpu.{command}"
        start = [str(FAULTY), fault, module] if fault else ["-m", module]
        self.log = log
        log.write_text("")
        out = log
        if has_terminal:
            out = log.with_suffix(".pipe")
            os.mkfifo(out)
            self._terminal = os.open(out, os.O_RDONLY | os.O_NONBLOCK)
        self._popen = tool_processes.Fork(
            *start, *flags, out=out, error=out, env=ENVIRONMENT
        )

    @property
    def code(self) -> int | None:
        """The exit code, minus the number of a signal, or None while it runs."""
        return self._popen.poll()

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Sends a signal if the process still runs."""
        if self.code is None:
            self._popen.send_signal(number)

    def hang_up(self) -> None:
        """Closes the pipe and sends SIGHUP, as the end of an ssh session does."""
        os.close(self._terminal)
        self.kill(signal.SIGHUP)

    def wait(self, secs: float = 120) -> int:
        """Waits until the process has ended; returns the exit code."""
        try:
            return self._popen.wait(secs)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"Still running after {secs} s:\n{self.tail()}"
            ) from None

    def tail(self) -> str:
        """Returns the end of the log."""
        return self.log.read_text()[-3000:]


class Run:
    """A model_dir and the processes that use it.

    Attributes:
      model_dir: The directory.
      bindings: The gin bindings of the trainer.
      device: The gin file of the device, such as "cpu" or "xla_cpu".
      processes: All processes that were started.
    """

    def __init__(self, model_dir, data_dir, *bindings: str, device: str = "cpu"):
        self.model_dir = pathlib.Path(model_dir)
        self.model_dir.mkdir(parents=True, exist_ok=True)
        self.bindings = (*BINDINGS, f"DATA_DIR = '{data_dir}'", *bindings)
        self.device = device
        if device.startswith("xla_"):
            programs = self.model_dir.parent / "programs"
            self.bindings += (f"make_strategy.compilation_cache = '{programs}'",)
        self.processes = []

    def train(
        self, *flags: str, fault: str = "", has_terminal: bool = False
    ) -> Process:
        """Starts a trainer."""
        names = ["quickstart.gin"]  # It includes device/cpu.gin.
        if self.device != "cpu":
            names.append(f"device/{self.device}.gin")
        files = [f"--gin_file={toy_data.GIN_CONFIGS / name}" for name in names]
        bindings = [f"--gin_param={binding}" for binding in self.bindings]
        return self._start(
            "train",
            *files,
            *bindings,
            *flags,
            fault=fault,
            has_terminal=has_terminal,
        )

    def evaluate(self, *flags: str, fault: str = "") -> Process:
        """Starts a sidecar."""
        return self._start("evaluate", *flags, fault=fault)

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints."""
        return checkpoints.steps(str(self.model_dir))

    def records(self) -> list[dict]:
        """Returns the records of eval.jsonl; every line must be valid."""
        path = self.model_dir / "eval" / "eval.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def last_weights(self) -> dict[str, np.ndarray]:
        """Returns the values of the newest checkpoint."""
        return checkpoints.read(checkpoints.latest(str(self.model_dir)))

    def check(self, reference: "Run") -> tuple[int, int]:
        """Compares the results with those of an undisturbed run.

        Every remaining checkpoint must be evaluated, and all results must be equal.

        Args:
          reference: The undisturbed run.
        Returns:
          The number of remaining checkpoints and the number of evaluated ones.
        """
        kept = self.steps()
        evaluated, expected = results(self.records()), results(reference.records())
        assert kept and set(kept) <= set(evaluated)
        for step, values in evaluated.items():
            assert values == pytest.approx(expected[step], rel=1e-5)
        return len(kept), len(evaluated)

    def truncate(self, step: int) -> None:
        """Truncates the data of a checkpoint to half of its size."""
        (shard,) = self.model_dir.glob(f"model.ckpt-{step}.data-*")
        os.truncate(shard, shard.stat().st_size // 2)

    def delete(self, step: int) -> None:
        """Deletes a checkpoint, its index first."""
        for path in sorted(self.model_dir.glob(f"model.ckpt-{step}.*"), reverse=True):
            path.unlink(missing_ok=True)

    def wait_for(self, condition, secs: float = 120) -> None:
        """Waits until a condition is true."""
        end = time.monotonic() + secs
        while not condition():
            if time.monotonic() > end:
                logs = "\n".join(process.tail() for process in self.processes)
                raise AssertionError(f"Waited {secs} s for {condition}:\n{logs}")
            time.sleep(0.02)

    def end(self) -> None:
        """Kills all processes that still run."""
        for process in self.processes:
            process.kill()
            with contextlib.suppress(AssertionError):
                process.wait()

    def _start(self, command, *flags, **settings):
        log = self.model_dir.parent / f"{self.model_dir.name}-{len(self.processes)}.log"
        flags = (f"--model_dir={self.model_dir}", *flags)
        process = Process(command, *flags, log=log, **settings)
        self.processes.append(process)
        return process


def results(records: list[dict]) -> dict[int, dict[str, float]]:
    """Returns the metrics by step; checks that each step has one correct line."""
    steps = [record["global_step"] for record in records]
    assert len(set(steps)) == len(steps), f"A step has two lines: {steps}"
    for record in records:
        assert record["checkpoint"] == f"model.ckpt-{record['global_step']}"
    others = ("checkpoint", "metric_engine", "secs")
    return {
        record["global_step"]: {
            name: value for name, value in _flat(record).items() if name not in others
        }
        for record in records
    }


def _flat(record):
    """Replaces each dict by its numbers, under names such as "per_class/red"."""
    flat = {}
    for name, value in record.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{key}": number for key, number in value.items()}
        else:
            flat[name] = value
    return flat
