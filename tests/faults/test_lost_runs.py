"""Tests that a run is not lost and does not silently start from step 0 again.

test_faults.py injects some of these faults many times.
"""

import os
import pathlib
import random
import signal

import pytest

import commands
import processes
import toy_data
from retinanet_tpu import errors, train
from retinanet_tpu.estimator.model_dir import run_state
from retinanet_tpu.exit_codes import ExitCode

pytestmark = pytest.mark.long

# One loop of steps, longer than any test.
BINDINGS = (
    "MAX_STEPS = 100000",
    "RunConfig.save_checkpoints_steps = 100000",
    "TPUConfig.iterations_per_loop = 100000",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_run(tmp_path, data_dir):
    runs = []

    def make(*bindings, model_dir=tmp_path / "run"):
        runs.append(processes.Run(model_dir, data_dir, *BINDINGS, *bindings))
        return runs[-1]

    yield make
    for run in runs:
        run.end()


def train_here(run):
    """Runs the command in this process."""
    commands.run(train.main, run.model_dir, None, *run.bindings)


def state_of(run):
    return run_state.read(str(run.model_dir))


def test_brackets_in_the_model_dir_are_refused_before_any_write(tmp_path, data_dir):
    with pytest.raises(errors.UserError, match=r"treats '\[lr=0\.1\]' as a pattern"):
        commands.run(train.main, tmp_path / "run[lr=0.1]", data_dir)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("binding", "message"),
    [
        ("MAX_STEPS = 2e5", r"MAX_STEPS is 200000\.0; .* Write 200000\."),
        ("MAX_STEPS = '7'", r"MAX_STEPS is '7'; .* Write 7\."),
        ("EVAL_EVERY = 'None'", r"EVAL_EVERY is 'None'; .* Write None\."),
    ],
)
def test_a_setting_of_another_type_is_refused_before_any_write(
    tmp_path, data_dir, binding, message
):
    with pytest.raises(errors.UserError, match=message):
        commands.run(train.main, tmp_path / "run", data_dir, binding)
    assert os.listdir(tmp_path) == []


def start_and_stall(run, **settings):
    """Returns a trainer that has trained 20 steps and waits for data."""
    trainer = run.train(fault="data_stall", **settings)
    mark = pathlib.Path(f"{run.model_dir}.stalled")
    run.wait_for(lambda: mark.exists() or trainer.code is not None)
    return trainer


def write_bytes(run, *names):
    """Writes random bytes to files of a run."""
    for path in [run.model_dir / name for name in names]:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(random.Random(0).randbytes(1000))


def test_a_second_trainer_is_refused_and_the_first_saves_when_its_terminal_closes(
    make_run,
):
    run = make_run()
    write_bytes(run, "run_state.json", "eval/eval.jsonl", "checkpoint", "leases/x.json")
    first = start_and_stall(run, has_terminal=True)
    with pytest.raises(errors.UserError, match=r"process \d+ on .* is training in"):
        train_here(run)
    first.hang_up()
    assert first.wait() == ExitCode.PREEMPTED
    assert run.steps() == [20] and state_of(run)[:2] == ("preempted", 20)


@pytest.mark.slow
def test_sigterm_in_a_read_only_directory_has_its_exit_code(make_run):
    run = make_run()
    trainer = start_and_stall(run)
    pathlib.Path(f"{run.model_dir}.read_only").touch()
    trainer.kill(signal.SIGTERM)
    assert trainer.wait() == ExitCode.PREEMPTED, trainer.tail()
    assert "Step 20 could not be saved: Read-only system" in trainer.tail()
    assert "Stopped at step 20; nothing is saved: signal SIGTERM" in trainer.tail()
    assert "it lacks the final state 'preempted': Read-only" in trainer.tail()
    assert run.steps() == [] and state_of(run).state == "running"
