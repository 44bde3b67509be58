"""Runs commands and tools as processes; one TensorFlow start serves many runs."""

import contextlib
import json
import os
import subprocess
import sys

import repository

_ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": str(repository.ROOT),
    "CUDA_VISIBLE_DEVICES": "",
}
# Runs the main() of a command once for each line of flags. TensorFlow starts once.
_SERVER = """
import contextlib, importlib, io, json, sys, traceback
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
"""


def path(tool):
    """Returns the absolute path of a program of the repository."""
    return str(repository.ROOT / tool)


def run_python(*arguments):
    """Runs Python in another process; returns its exit code and output."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=_ENVIRONMENT)


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
