"""Slow: real environments with TensorFlow's TPU build, made and imported."""

import os
import subprocess
import sys

import pytest

import repository

PYTHON = os.environ.get("PYTHON", sys.executable)
IMPORT = """
import retinanet_tpu.startup.tpu
import tensorflow
from importlib import metadata
print(tensorflow.__version__, metadata.version("libtpu"))
"""
# Else libtpu asks the network what TPU this machine has.
ENVIRONMENT = {"TPU_SKIP_MDS_QUERY": "1", "TF_CPP_MIN_LOG_LEVEL": "2"}


def run(folder, *command):
    """Runs a command without the variables that would hide what is tested."""
    hidden = ("TPU_LOAD_LIBRARY", "TPU_LIBRARY_PATH", "PYTHONPATH")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return subprocess.run(
        command,
        cwd=folder,
        env=kept | ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("extra", "build"), [("tpu", "2.20"), ("tpu219", "2.19")])
def test_a_fresh_environment_imports_tensorflow(tmp_path, extra, build):
    pip = ("venv/bin/python", "-m", "pip")
    for command in (
        (PYTHON, "-m", "venv", "venv"),
        (*pip, "install", "--quiet", "--editable", f"{repository.ROOT}[{extra}]"),
        (*pip, "check"),
    ):
        done = run(tmp_path, *command)
        assert done.returncode == 0, done.stdout[-3000:]
    imported = run(tmp_path, "venv/bin/python", "-c", IMPORT)
    assert imported.returncode == 0, imported.stdout[-3000:]
    versions = imported.stdout.splitlines()[-1]
    print(f"{PYTHON}: TensorFlow and libtpu {versions}")
    assert versions.startswith(f"{build}.")
