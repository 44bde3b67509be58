"""Stops or kills one of several workers and checks the others.

Two processes stand for two machines with one or two GPUs each. The second test injects
faults many times, at random times. A short version of the first test, with a linear
model, is in tests/estimator/cluster/test_worker_group.py.
"""

import random
import re
import signal

import numpy as np
import pytest

import toy_data
import worker_processes
from retinanet_tpu.estimator.model_dir import checkpoints
from retinanet_tpu.exit_codes import ExitCode

pytestmark = pytest.mark.long

PATIENCE_SECS = 400  # A loaded machine is slow to start TensorFlow four times.
BINDINGS = (
    # A batch of all images, so that their order and the shards do not matter.
    f"BATCH_SIZE = {toy_data.NUM_TRAIN}",
    "Augmentation.horizontal_flip = False",
    "Augmentation.scale_jitter = (1.0, 1.0)",
    # A pyramid of P5 only: every layer is traced with its collectives.
    "FPN.min_level = 5",
    "Anchors.min_level = 5",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_team(tmp_path, data_dir):
    teams = []

    def make(*bindings):
        bindings = (*BINDINGS, "RunConfig.keep_checkpoint_max = None", *bindings)
        teams.append(worker_processes.Team(tmp_path / "run", data_dir, *bindings))
        return teams[-1]

    yield make
    for team in teams:
        team.end()


def stop_step(worker):
    (step,) = re.findall(r"^Stopped at step (\d+), which is saved", worker.tail(), re.M)
    return int(step)


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [1, 2])
def test_workers_train_stop_and_resume_together(
    make_team, tmp_path, data_dir, num_devices
):
    team = make_team("MAX_STEPS = 100000")
    chief, other = team.start(num_devices=num_devices)
    team.wait_for(lambda: 4 in team.steps(), PATIENCE_SECS)
    other.kill()
    # The chief cannot continue alone.
    assert chief.wait(PATIENCE_SECS) == ExitCode.PREEMPTED, chief.tail()
    last = team.steps()[-1]
    assert stop_step(chief) == last
    assert "another worker was lost" in chief.tail()
    # After a restart they resume. When one of them is stopped, all stop at one step.
    chief, other = team.start(num_devices=1)
    team.wait_for(lambda: team.steps()[-1] > last, PATIENCE_SECS)
    other.kill(signal.SIGTERM)
    assert [w.wait(PATIENCE_SECS) for w in (chief, other)] == [
        ExitCode.PREEMPTED
    ] * 2, chief.tail()
    assert stop_step(chief) == stop_step(other) == team.steps()[-1] > last
    assert "worker 1 was asked to stop" in chief.tail()
    assert "signal SIGTERM" in other.tail()
    # The first steps are equal to those of one process with one replica.
    alone = toy_data.make_run(
        tmp_path / "alone", data_dir, *team.bindings, "MAX_STEPS = 4"
    )
    expected = checkpoints.read(toy_data.train(alone))
    trained = checkpoints.read(checkpoints.path_of(str(team.model_dir), 4))
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(trained[name], value, rtol=1e-3, atol=1e-5)


class Supervisor:
    """Restarts each worker as soon as it exits with an error."""

    def __init__(self, team):
        self.team = team
        self.workers = team.start(num_devices=1)
        self.codes = []

    def wait_for(self, condition):
        self.team.wait_for(lambda: self._restart() or condition(), 3 * PATIENCE_SECS)

    def is_over(self):
        return all(worker.code == 0 for worker in self.workers)

    def _restart(self):
        for index, worker in enumerate(self.workers):
            if worker.code not in (None, 0):
                self.codes.append(worker.code)
                self.workers[index] = self.team.start_one(index, num_devices=1)


@pytest.mark.slow
def test_workers_survive_twenty_signals(make_team):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng = random.Random(seed)
    team = make_team("MAX_STEPS = 3000")
    supervisor = Supervisor(team)
    for _ in range(20):
        before = team.steps()
        supervisor.wait_for(lambda seen=before: team.steps() != seen)
        number = rng.choice([signal.SIGKILL, signal.SIGTERM])
        rng.choice(supervisor.workers).kill(number)
    supervisor.wait_for(supervisor.is_over)
    assert team.steps()[-1] == 3000
    assert set(supervisor.codes) <= {ExitCode.PREEMPTED, -signal.SIGKILL}
