"""Tests `retinanet-tpu COMMAND` and `python -m retinanet_tpu`."""

import subprocess
import sys

import pytest

import repository
import tool_processes
from retinanet_tpu import __main__
from retinanet_tpu.exit_codes import ExitCode


def run(*arguments):
    command = [sys.executable, "-m", "retinanet_tpu", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=repository.ROOT)


def test_every_command_is_listed_with_one_line():
    commands = {
        path.stem
        for path in (repository.ROOT / "retinanet_tpu").glob("*.py")
        if "guard.run(main" in path.read_text()
    }
    assert set(__main__.COMMANDS) == commands
    lines = __main__.usage().splitlines()
    for command in commands:
        (line,) = [line for line in lines if line.split()[:1] == [command]]
        assert len(line) > len(command) + 10 and len(line) <= 100


def test_without_a_command_the_list_is_printed():
    done = run()
    assert done.returncode == 0
    assert done.stdout.rstrip() == __main__.usage()


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "Did you mean train?"), ("zzz", "See retinanet-tpu --help.")],
)
def test_an_unknown_command_is_refused(word, hint):
    done = run(word)
    assert done.returncode == ExitCode.USAGE and not done.stdout
    assert (
        done.stderr.startswith(f"error: {word} is not a command")
        and hint in done.stderr
    )


@pytest.mark.long
def test_a_command_gets_its_flags():
    flags = ("plot", "--no_such_flag")
    done = tool_processes.run_python("-m", "retinanet_tpu", *flags)
    assert done.returncode == 1
    assert "Unknown command line flag 'no_such_flag'" in done.stderr
