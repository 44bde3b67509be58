"""Tests the trainer as a process: stops, files and exit codes.

faults/test_faults.py kills it.
"""

import signal

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import metadata_server
import processes
import toy_data
from retinanet_tpu import train
from retinanet_tpu.estimator.model_dir import checkpoints, run_state
from retinanet_tpu.exit_codes import ExitCode

pytestmark = pytest.mark.long

# Batches of 8 from 12 images: every other step starts in the middle of an epoch.
BINDINGS = ("MAX_STEPS = 40", "RunConfig.save_checkpoints_steps = 10")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


def train_here(model_dir, data_dir, *bindings):
    """Runs the command in this process; returns its exit code."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["test"])
    settings = {
        "model_dir": str(model_dir),
        "gin_file": [str(toy_data.GIN_CONFIGS / "quickstart.gin")],
        "gin_param": [*processes.BINDINGS, f"DATA_DIR = '{data_dir}'", *bindings],
    }
    with flagsaver.flagsaver(**settings):
        try:
            train.main()
        except SystemExit as end:
            return end.code
    return 0


def assert_finite(model_dir):
    for step in checkpoints.steps(str(model_dir)):
        values = checkpoints.read(f"{model_dir}/model.ckpt-{step}").values()
        assert all(np.isfinite(value).all() for value in values)


@pytest.mark.slow
def test_a_run_stopped_by_notice_and_signal_equals_an_undisturbed_run(
    data_dir, tmp_path, monkeypatch, capsys
):
    run = processes.Run(tmp_path / "stopped", data_dir, *BINDINGS)
    notice = {"preempted": "TRUE", "maintenance-event": "NONE"}
    monkeypatch.setattr(train, "POLL_SECS", 0.01)
    with metadata_server.serve(notice) as host, monkeypatch.context() as patch:
        patch.setenv("GCE_METADATA_HOST", host)
        code = train_here(run.model_dir, data_dir, *BINDINGS)
    assert code == ExitCode.PREEMPTED == 42
    assert "the machine's preempted is TRUE" in capsys.readouterr().err
    assert run_state.read(str(run.model_dir)).state == "preempted"

    trainer = run.train()
    run.wait_for(lambda: run.steps() or trainer.code is not None)
    trainer.kill(signal.SIGTERM)
    assert trainer.wait() == ExitCode.PREEMPTED, trainer.tail()
    assert "signal SIGTERM" in trainer.tail() and "Traceback" not in trainer.tail()
    stopped = run_state.read(str(run.model_dir))
    assert stopped[:2] == ("preempted", run.steps()[-1]) and stopped.step < 40

    assert train_here(run.model_dir, data_dir, *BINDINGS) == 0
    assert run_state.read(str(run.model_dir))[:2] == ("finished", 40)
    assert train_here(tmp_path / "straight", data_dir, *BINDINGS) == 0
    expected = checkpoints.read(f"{tmp_path}/straight/model.ckpt-40")
    got = checkpoints.read(f"{run.model_dir}/model.ckpt-40")
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_a_run_that_diverges_has_an_exit_code_of_its_own(data_dir, tmp_path, capsys):
    code = train_here(
        tmp_path,
        data_dir,
        "constant_rate.base = 1e20",
        "RunConfig.max_rollbacks = 1",
        "RunConfig.save_checkpoints_steps = 1",
    )
    assert code == ExitCode.DIVERGED == 5
    assert "error: " in capsys.readouterr().err
    assert run_state.read(str(tmp_path)).state == "failed"
    assert_finite(tmp_path)
