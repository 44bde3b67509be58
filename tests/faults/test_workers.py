"""What happens to one worker of several, and what the others make of it.

Two processes of two replicas each stand in for two machines of two GPUs. The first test
is the short version; the second does the same many times over, at random moments.
"""

import random
import re
import signal

import numpy as np
import pytest

import toy_data
import worker_processes
from retinanet_tpu.estimator.model_dir import checkpoints

PREEMPTED = 42
PATIENCE = 400  # s; a loaded machine is slow to start TensorFlow four times
# A batch of all images, whose order and shards then do not matter.
BATCH = (
    f"BATCH_SIZE = {toy_data.NUM_TRAIN}",
    "Augmentation.horizontal_flip = False",
    "Augmentation.scale_jitter = (1.0, 1.0)",
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make_team(tmp_path, data_dir):
    teams = []

    def make(*bindings):
        bindings = (*BATCH, "RunConfig.keep_checkpoint_max = None", *bindings)
        teams.append(worker_processes.Team(tmp_path / "run", data_dir, *bindings))
        return teams[-1]

    yield make
    for team in teams:
        team.end()


def stop_step(worker):
    (step,) = re.findall(r"^Stopped at step (\d+), which is saved", worker.tail(), re.M)
    return int(step)


def test_workers_train_stop_and_go_on_together(make_team, tmp_path, data_dir):
    team = make_team("MAX_STEPS = 100000")
    chief, other = team.start(num_devices=2)
    team.wait_for(lambda: 4 in team.steps(), PATIENCE)
    other.kill()
    # The chief cannot go on alone.
    assert chief.wait(PATIENCE) == PREEMPTED, chief.tail()
    last = team.steps()[-1]
    assert stop_step(chief) == last
    assert "another worker was lost" in chief.tail()
    # All started again, they go on, and stop at one step when one of them is told to.
    # On one device each: tracing the exchanges of two takes 20 s of a processor more.
    chief, other = team.start(num_devices=1)
    team.wait_for(lambda: team.steps()[-1] > last, PATIENCE)
    other.kill(signal.SIGTERM)
    assert [w.wait(PATIENCE) for w in (chief, other)] == [PREEMPTED] * 2, chief.tail()
    assert stop_step(chief) == stop_step(other) == team.steps()[-1] > last
    assert "worker 1 was asked to stop" in chief.tail()
    assert "signal SIGTERM" in other.tail()
    # The first steps are those of one process and one replica.
    alone = toy_data.make_run(
        tmp_path / "alone", data_dir, *team.bindings, "MAX_STEPS = 4"
    )
    expected = checkpoints.read(toy_data.train(alone))
    found = checkpoints.read(checkpoints.path_of(str(team.model_dir), 4))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-5)


class Supervisor:
    """Starts each worker again, as soon as it has ended badly."""

    def __init__(self, team):
        self.team, self.workers, self.codes = team, team.start(num_devices=1), []

    def wait_for(self, condition):
        self.team.wait_for(lambda: self._look() or condition(), 3 * PATIENCE)

    def is_over(self):
        return all(worker.code == 0 for worker in self.workers)

    def _look(self):
        for index, worker in enumerate(self.workers):
            if worker.code not in (None, 0):
                self.codes.append(worker.code)
                self.workers[index] = self.team.start_one(index, num_devices=1)


@pytest.mark.slow
def test_workers_outlive_twenty_signals(make_team):
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
    assert set(supervisor.codes) <= {PREEMPTED, -signal.SIGKILL}
