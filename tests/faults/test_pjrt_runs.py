"""Kills and stops a trainer on the engine of PJRT, in real processes.

tests/faults/test_faults.py does so many times, beside a sidecar.
"""

import re
import signal

import numpy as np
import pytest

import processes
import toy_data
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.exit_codes import ExitCode

pytest.importorskip("jax")

SETTINGS = (
    "MAX_STEPS = 80",
    "RunConfig.save_checkpoints_steps = 4",
    "TPUConfig.iterations_per_loop = 4",
    "RunConfig.keep_checkpoint_max = 2",
)
SECS = 300


@pytest.fixture
def make_run(tmp_path):
    data_dir = toy_data.write(tmp_path / "data")
    runs = []

    def make(name, *bindings):
        run = processes.Run(tmp_path / name, data_dir, *bindings, device="xla_cpu")
        runs.append(run)
        return run

    yield make
    for run in runs:
        run.end()


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_a_killed_and_stopped_trainer_resumes_to_the_bit(
    make_run, tmp_path, num_devices
):
    bindings = (*SETTINGS, f"make_strategy.num_devices = {num_devices}")
    straight = make_run("straight", *bindings)
    trainer = straight.train()
    assert trainer.wait(SECS) == 0, trainer.tail()
    compiled = sorted(tmp_path.glob("programs/*-cache"))
    assert compiled
    run = make_run("disturbed", *bindings)
    codes = []
    for number in (signal.SIGKILL, signal.SIGTERM, None):
        before = run.steps()
        trainer = run.train()
        if number:
            run.wait_for(lambda before=before: run.steps() > before, SECS)
            trainer.kill(number)
        codes.append(trainer.wait(SECS))
    assert codes == [-signal.SIGKILL, ExitCode.PREEMPTED, 0], trainer.tail()
    expected, got = (
        checkpoints.read(checkpoints.path_of(str(r.model_dir), 80))
        for r in (straight, run)
    )
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    # All starts run one program. Only the first one compiles it.
    assert sorted(tmp_path.glob("programs/*-cache")) == compiled
    pattern = rf"PJRT \| train \| {num_devices} x cpu \| program ([0-9a-f]{{16}})"
    logs = [p.log.read_text() for p in (*straight.processes, *run.processes)]
    assert len(logs) == 4 and len({re.findall(pattern, log)[0] for log in logs}) == 1
