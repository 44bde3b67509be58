"""Two processes with two devices each train through PJRT; one is stopped or killed."""

import pathlib
import signal

import numpy as np
import pytest

import linear_worker
import pjrt_worker
import repository
import tool_processes
import worker_processes
from retinanet_tpu.estimator.model_dir import checkpoints, run_state
from retinanet_tpu.exit_codes import ExitCode

pytest.importorskip("jax")
pytestmark = pytest.mark.long

ENDLESS = 10**9
PATIENCE_SECS = 300


class Pair:
    """Two workers of one run, on this machine."""

    def __init__(self, directory: pathlib.Path):
        self.directory = directory
        self.model_dir = directory / "run"
        self.workers: list[tool_processes.Fork] = []

    def start(self, max_steps):
        ports = worker_processes.free_ports(2)
        addresses = [f"127.0.0.1:{port}" for port in ports]
        self.workers = [
            self._start_one(addresses, index, max_steps) for index in range(2)
        ]
        return self.workers

    def log(self, index):
        return (self.directory / f"{index}.log").read_text()

    def wait_for_step(self, step):
        """Waits until the workers have saved a step, without polling."""
        with (self.directory / "0.log").open() as log:
            while self.workers[0].poll() is None:
                if f"model.ckpt-{step}\n" in log.readline():
                    return
        raise AssertionError(self.log(0) + self.log(1))

    def codes(self):
        return [worker.wait(timeout=PATIENCE_SECS) for worker in self.workers]

    def _start_one(self, addresses, index, max_steps):
        log = self.directory / f"{index}.log"
        log.write_text("")
        return tool_processes.Fork(
            pathlib.Path(pjrt_worker.__file__),
            self.model_dir,
            max_steps,
            out=log,
            error=log,
            env={
                "TF_CONFIG": worker_processes.tf_config(addresses, index),
                "PYTHONPATH": str(repository.ROOT),
                "JAX_NUM_CPU_DEVICES": str(pjrt_worker.NUM_DEVICES),
            },
        )


@pytest.fixture
def pair(tmp_path):
    workers = Pair(tmp_path)
    yield workers
    for worker in workers.workers:
        worker.send_signal(signal.SIGKILL)
        worker.wait()


def test_two_processes_make_the_update_of_one_and_stop_together(pair, tmp_path):
    workers = pair.start(ENDLESS)
    pair.wait_for_step(12)
    workers[1].send_signal(signal.SIGTERM)
    assert pair.codes() == [ExitCode.PREEMPTED] * 2, pair.log(0)
    saved = checkpoints.steps(str(pair.model_dir))[-1]
    for index in range(2):
        assert f"Stopped at step {saved}, which is saved" in pair.log(index)
    # Only the chief writes.
    assert "Saved" in pair.log(0) and "Saved" not in pair.log(1)
    alone = pjrt_worker.make_estimator(str(tmp_path / "alone"), 4)
    expected = checkpoints.read(alone.train(linear_worker.input_fn, 12))
    trained = checkpoints.read(f"{pair.model_dir}/model.ckpt-12")
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(trained[name], value, rtol=1e-6)


def test_the_loss_of_the_chief_ends_the_other_process_for_a_restart(pair):
    workers = pair.start(ENDLESS)
    pair.wait_for_step(8)
    workers[0].send_signal(signal.SIGKILL)
    assert pair.codes()[1] == ExitCode.PREEMPTED, pair.log(1)
    assert "lost" in pair.log(1)


def test_the_loss_of_another_process_ends_the_chief_and_the_run_resumes(pair):
    workers = pair.start(ENDLESS)
    pair.wait_for_step(8)
    workers[1].send_signal(signal.SIGKILL)
    assert pair.codes()[0] == ExitCode.PREEMPTED, pair.log(0)
    assert "lost" in pair.log(0)
    assert run_state.read(str(pair.model_dir)).state == run_state.PREEMPTED
    saved = checkpoints.steps(str(pair.model_dir))[-1]
    pair.start(saved + 4)
    assert pair.codes() == [0, 0], pair.log(0)
    assert f"Resuming from {pair.model_dir}/model.ckpt-{saved}" in pair.log(0)
