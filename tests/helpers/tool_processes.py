"""Runs commands and tools as processes; one import of TensorFlow serves all."""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import repository

_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(repository.ROOT),
    "CUDA_VISIBLE_DEVICES": "",
}
# Runs the main() of a command once for each line of flags. TensorFlow starts once.
_SERVER = """
import contextlib, importlib, io, json, os, sys, traceback
from absl import flags
from retinanet_tpu.startup import guard
tool = importlib.import_module(sys.argv[1])
for line in sys.stdin:
    for name in list(flags.FLAGS):
        flags.FLAGS[name].unparse()
    out, error, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            arguments = flags.FLAGS(["tool", *json.loads(line)])
            guard.check_no_arguments(arguments[1:])
            tool.main()
        except Exception:
            traceback.print_exc()
            status = 1
    print(json.dumps([status, out.getvalue(), error.getvalue()]), flush=True)
os._exit(0)  # Freeing all of TensorFlow's modules takes a second.
"""
# Reads requests and answers each with a line. To start a program it forks, which saves
# the import of TensorFlow; the fork runs the program and ends as Python does.
_FORKS = """
import gc, json, os, runpy, sys
from retinanet_tpu.startup import tensorflow_import
tensorflow_import.run()
gc.freeze()  # At its end a fork does not free what it shares.
while line := sys.stdin.readline():
    request = json.loads(line)
    if "pid" in request:
        options = 0 if request["waits"] else os.WNOHANG
        pid, status = os.waitpid(request["pid"], options)
        code = os.waitstatus_to_exitcode(status) if pid else None
        print(json.dumps(code), flush=True)
        continue
    if pid := os.fork():
        print(pid, flush=True)
        continue
    for number, stream in enumerate(request["streams"]):
        mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND if number else os.O_RDONLY
        os.dup2(os.open(stream, mode), number)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    first, *arguments = request["arguments"]
    if first == "-c":
        sys.argv = ["-c", *arguments[1:]]
        exec(arguments[0], {"__name__": "__main__"})
    elif first == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *arguments], os.path.dirname(first)
        runpy.run_path(first, run_name="__main__")
    break
"""


class Fork:
    """A process that runs a Python program, with the methods of subprocess.Popen.

    Attributes:
      pid: The id of the process.
      returncode: The exit code, minus the number of a signal, or None.
    """

    def __init__(self, *arguments, out, error, cwd=".", env=None):
        """Starts the process.

        Args:
          *arguments: Those of Python: a program, or -m or -c, and its own arguments.
          out: The file for its output; it is appended to.
          error: The file for its errors.
          cwd: The folder to run in.
          env: The environment variables that differ from those of this process.
        """
        self.pid = _ask(
            arguments=list(map(str, arguments)),
            streams=[os.devnull, str(out), str(error)],
            cwd=os.path.abspath(cwd),
            env=env or {},
        )
        self.returncode = None

    def poll(self):
        """Returns the exit code, or None while it runs."""
        if self.returncode is None:
            self.returncode = _ask(pid=self.pid, waits=False)
        return self.returncode

    def wait(self, timeout=None):
        """Waits until it has ended; returns the exit code."""
        if timeout is None and self.returncode is None:
            self.returncode = _ask(pid=self.pid, waits=True)
        end = time.monotonic() + (timeout or 0)
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return self.returncode

    def send_signal(self, number):
        """Sends a signal if it still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)


def path(tool):
    """Returns the absolute path of a program of the repository."""
    return str(repository.ROOT / tool)


def run_python(*arguments, cwd="."):
    """Runs Python in another process; returns its exit code and output.

    Args:
      *arguments: Those of Python: a program, or -m or -c, and its own arguments.
      cwd: The folder to run in.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, error = (pathlib.Path(folder, name) for name in ("out", "error"))
        code = Fork(*arguments, out=out, error=error, cwd=cwd).wait()
        outputs = [file.read_text(errors="replace") for file in (out, error)]
    return subprocess.CompletedProcess(arguments, code, *outputs)


def _ask(**request):
    """Returns the answer of the process that forks."""
    server = _start_forks()
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    return json.loads(server.stdout.readline())


@functools.cache
def _start_forks():
    """Starts the process that forks; it ends with this one."""
    server = subprocess.Popen(
        [sys.executable, "-c", _FORKS],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_ENVIRONMENT,
    )
    # Closes its input, upon which it exits.
    atexit.register(server.communicate)
    return server


@contextlib.contextmanager
def serve(command):
    """Yields a function that runs the main() of a command with flags."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER, f"retinanet_tpu.{command}"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=_ENVIRONMENT,
    ) as process:

        def run_once(*flags):
            process.stdin.write(json.dumps(flags) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            return subprocess.CompletedProcess(flags, *answer)

        yield run_once
        process.stdin.close()
