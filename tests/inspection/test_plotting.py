import os
import pathlib
import subprocess
import sys

import pytest

import repository
import tool_processes

ABSENT = """
import runpy, sys
sys.modules["matplotlib"] = None
sys.argv = sys.argv[1:]
runpy.run_module(f"retinanet_tpu.{sys.argv[0]}", run_name="__main__")
"""


@pytest.mark.long
@pytest.mark.parametrize(
    ("tool", "flag"),
    [("inspect_data", "--data_dir=absent"), ("plot", "--model_dir=x")],
)
def test_a_chart_without_matplotlib_says_what_to_install(tmp_path, tool, flag):
    output = tmp_path / "chart.png"
    result = tool_processes.run_python("-c", ABSENT, tool, flag, f"--output={output}")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    (line,) = [x for x in result.stderr.splitlines() if x.startswith("error: ")]
    assert line.startswith("error: Charts need matplotlib (")
    assert line.endswith("): pip install -e '.[plots]'")


@pytest.mark.parametrize(
    "program", sorted((repository.ROOT / "tools/benchmarks").glob("*model_garden*.py"))
)
def test_a_program_of_another_environment_says_what_that_needs(tmp_path, program):
    (tmp_path / "tensorflow.py").touch()
    ended = subprocess.run(
        [sys.executable, str(program)],
        env={"PYTHONPATH": f"{tmp_path}{os.pathsep}{repository.ROOT}"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1
    assert ended.stderr.endswith("; run: pip install 'tf-models-official==2.20.*'\n")


def test_setup_installs_what_the_guide_needs():
    setup = (repository.ROOT / "tools/setup.sh").read_text()
    assert "'.[cpu,plots,test]'" in setup
    assert (
        "matplotlib=="
        in pathlib.Path(repository.ROOT / "tools/constraints.txt").read_text()
    )
