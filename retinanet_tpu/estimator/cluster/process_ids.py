"""Identifies a process so that another one can tell that it has ended."""

import os
import pathlib
import socket
from collections.abc import Mapping
from typing import Any, NamedTuple

_PROC = pathlib.Path("/proc")


class ProcessId(NamedTuple):
    """A process, as it describes itself in a file that others read."""

    host: str
    pid: int
    machine: str  # boot and process namespace; "" if the system does not tell
    start: str  # clock ticks from the boot to the start of the process


def current() -> ProcessId:
    """Returns the id of this process."""
    pid = os.getpid()
    machine = _machine()
    start = _state_and_start(pid)[1] if machine else ""
    return ProcessId(socket.gethostname(), pid, machine, start)


def from_json(value: Mapping[str, Any]) -> ProcessId:
    """Returns the id that `_asdict` of another one became in JSON.

    Raises:
      KeyError: A field is missing.
      TypeError: The value is not a mapping.
      ValueError: The pid is not a number of a process.
    """
    host, machine, start = (str(value[x]) for x in ("host", "machine", "start"))
    pid = int(value["pid"])
    if not 0 < pid < 2**31:
        raise ValueError(f"{pid} is not the number of a process.")
    return ProcessId(host, pid, machine, start)


def has_ended(process: ProcessId) -> bool:
    """Returns True if a process has certainly ended.

    False for a process of another machine or container: it cannot be seen from here. A
    number that the system gave to a new process does not matter.
    """
    if not process.machine or process.machine != _machine():
        return False
    try:
        state, start = _state_and_start(process.pid)
    except OSError:
        return _is_unused(process.pid)
    return state in "ZX" or start != process.start  # Z and X: dead, not yet reaped.


def _machine():
    """Returns what processes that can see each other have in common."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink(_PROC / 'self/ns/pid')}"
    except OSError:
        return ""


def _state_and_start(pid):
    """Returns the letter of a process's state, and when it started."""
    text = (_PROC / str(pid) / "stat").read_text(errors="replace")
    # The second field is a name in parentheses, which may contain anything.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _is_unused(pid):
    """Returns True if no process has a number; /proc may hide those of other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
