"""Identifies a process, so that another process can detect that it has ended."""

import os
import pathlib
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

_PROC = pathlib.Path("/proc")


class ProcessId(NamedTuple):
    """The identity of a process, as it writes it to a file that others read.

    Attributes:
      host: The name of the host.
      pid: The process number.
      machine: The ids of the boot and of the process namespace; "" if the system has
        none.
      start: The clock ticks from the boot to the start of the process.
    """

    host: str
    pid: int
    machine: str
    start: str


def current() -> ProcessId:
    """Returns the id of this process."""
    pid = os.getpid()
    machine = _machine()
    start = _state_and_start(pid)[1] if machine else ""
    return ProcessId(socket.gethostname(), pid, machine, start)


def from_json(value: Mapping[str, Any]) -> ProcessId:
    """Returns the id whose `_asdict` was stored as JSON.

    Raises:
      KeyError: A field is missing.
      TypeError: The value is not a mapping.
      ValueError: The pid is not a process number.
    """
    host, machine, start = (str(value[x]) for x in ("host", "machine", "start"))
    pid = int(value["pid"])
    if not 0 < pid < 2**31:
        raise ValueError(f"{pid} is not the number of a process.")
    return ProcessId(host, pid, machine, start)


def has_ended(process: ProcessId) -> bool:
    """Returns True if a process has certainly ended.

    The result is False for a process of another machine or container, which is not
    visible from here. It is True if the system gave the number to a new process.
    """
    if not process.machine or process.machine != _machine():
        return False
    try:
        state, start = _state_and_start(process.pid)
    except OSError:
        return _is_unused(process.pid)
    # Z and X: the process is dead, but its parent has not yet read the exit code.
    return state in "ZX" or start != process.start


def _machine() -> str:
    """Returns an id that is the same for all processes that see each other."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(pid: int) -> tuple[str, str]:
    """Returns the state letter of a process and its start time."""
    text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    # The second field is a name in parentheses, which may contain any character.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _is_unused(pid: int) -> bool:
    """Returns True if no process has the number.

    /proc may hide the processes of other users.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
