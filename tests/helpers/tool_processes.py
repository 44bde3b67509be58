"""Runs commands and tools as processes; one TensorFlow start serves many runs."""

import atexit
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile

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
# Forks for each line, which saves the import of TensorFlow. The fork does with its
# arguments what Python does, and ends as Python does.
_FORKS = """
import gc, json, os, runpy, sys
import tensorflow
gc.freeze()  # At its end a fork does not free what it shares.
while line := sys.stdin.readline():
    (first, *arguments), folder, streams = json.loads(line)
    if child := os.fork():
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(code, flush=True)
        continue
    for number, stream in enumerate(streams):
        os.dup2(os.open(stream, os.O_RDWR | os.O_CREAT), number)
    os.chdir(folder)
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


def path(tool):
    """Returns the absolute path of a program of the repository."""
    return str(repository.ROOT / tool)


def run_python(*arguments, cwd="."):
    """Runs Python in another process; returns its exit code and output.

    Args:
      *arguments: Those of Python: a program, or -m or -c, and its own arguments.
      cwd: The folder to run in.
    """
    server = _start_forks()
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder, name) for name in ("out", "error")]
        streams = [os.devnull, *map(str, files)]
        request = [list(map(str, arguments)), os.path.abspath(cwd), streams]
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        outputs = [file.read_text(errors="replace") for file in files]
    return subprocess.CompletedProcess(arguments, code, *outputs)


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
