"""Runs commands of the package at the same time, each in a process of its own."""

import contextlib
import os
import signal
import subprocess
import sys
from typing import Any, NamedTuple

from absl import logging

from retinanet_tpu import exit_codes
from retinanet_tpu.startup import checks

_SHARED_GPU = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
      code: Its exit code.
      cpu_minutes: Its CPU time, in minutes.
    """

    code: int
    cpu_minutes: float


class Commands:
    """The commands that are running.

    Attributes:
      is_stopped: Whether they were asked to stop. Then no other command starts.
    """

    def __init__(self, *, share_device: bool = False) -> None:
        """Initializes an empty group.

        Args:
          share_device: Whether several commands use a device at the same time. A
            process of jax otherwise takes three quarters of a GPU's memory.
        """
        self.is_stopped = False
        self._pids: set[int] = set()
        self._environment = checks.ENVIRONMENT
        if share_device:
            self._environment = _SHARED_GPU | checks.ENVIRONMENT

    def stop(self, *_: Any) -> None:
        """Asks all commands to save and to end; a handler of signals."""
        self.is_stopped = True
        for pid in list(self._pids):
            _terminate(pid)

    def check_stopped(self) -> None:
        """Ends this thread, or this process, if the commands were asked to stop.

        Raises:
          SystemExit: They were.
        """
        if self.is_stopped:
            sys.exit(exit_codes.ExitCode.PREEMPTED)

    def run(self, name: str, command: str, *flag_values: str, log: str) -> Ended:
        """Runs a command to its end. May be called by several threads.

        Args:
          name: The name of the run, for messages.
          command: The module of the package.
          *flag_values: Its flags.
          log: The path of the file that its messages are added to.
        Returns:
          How it ended.
        Raises:
          SystemExit: It, or this process, was asked to stop.
        """
        self.check_stopped()
        logging.info("%s: %s; messages are in %s", name, command, log)
        with open(log, "ab") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"retinanet_tpu.{command}", *flag_values],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=self._environment,
                start_new_session=True,  # The terminal signals only this process.
            )
        self._pids.add(process.pid)
        if self.is_stopped:  # Since the first check.
            _terminate(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        self._pids.discard(process.pid)
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code != exit_codes.ExitCode.OK:
            logging.error("%s: %s has exit code %d; see %s", name, command, code, log)
        if code == exit_codes.ExitCode.PREEMPTED:
            self.stop()
        return Ended(code, (usage.ru_utime + usage.ru_stime) / 60)


def _terminate(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # It has just ended.
        os.kill(pid, signal.SIGTERM)
