import pytest
import tensorflow as tf

from retinanet_tpu.estimator import sidecar, summaries
from retinanet_tpu.estimator.model_dir import checkpoints
from world import Exporter, World, run_trainer, save, scored


@pytest.fixture(params=["local", "ram"])
def world(request, tmp_path):
    name = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    tf.io.gfile.makedirs(f"{name}/run")
    return World(f"{name}/run")


@pytest.mark.parametrize(
    ("policy", "done", "expected"),
    [
        ("latest", [], [50]),
        ("latest", [40], [50]),
        ("latest", [50], []),
        ("latest", [20, 50], []),
        ("all", [], [10, 20, 30, 40, 50]),
        ("all", [20, 50], [10, 30, 40]),
        ("every_k", [], [20, 40, 50]),
        ("every_k", [20, 50], [40]),
    ],
)
def test_a_policy_says_what_comes_next(policy, done, expected):
    steps = [10, 20, 30, 40, 50]
    selected = sidecar.select_steps(
        steps, done, policy=policy, every_k_steps=20, final=50
    )
    assert selected == expected


def test_the_policy_every_k_takes_no_other_before_the_end_is_known():
    selected = sidecar.select_steps(
        [10, 20, 30], [], policy="every_k", every_k_steps=20
    )
    assert selected == [20]


@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_run_is_watched_from_before_its_start_to_its_end(world, policy):
    world.then()
    world.then(world.says("running"))
    world.then(world.saves(10), world.saves(20))
    world.then(world.says("running", 20))
    world.then(world.saves(30), world.says("finished", 30))
    expected = [20, 30] if policy == "latest" else [10, 20, 30]
    assert world.sidecar(policy=policy).run() == expected
    assert scored(world) == expected


def test_every_k_takes_the_final_checkpoint_too(world):
    for step in (10, 20, 30, 40, 50):
        save(world.model_dir, step)
    world.says("finished", 50)()
    assert world.sidecar(policy="every_k", every_k_steps=20).run() == [20, 40, 50]


def test_a_restarted_sidecar_goes_on_and_scores_nothing_twice(world):
    for step in (10, 20):
        save(world.model_dir, step)
    assert world.sidecar(policy="all").run(once=True) == [10, 20]
    assert world.sidecar(policy="all").run(once=True) == []
    save(world.model_dir, 30)
    world.says("finished", 30)()
    assert world.sidecar(policy="all").run() == [30]
    assert scored(world) == [10, 20, 30]


def test_it_waits_through_a_preemption(world):
    save(world.model_dir, 10)
    world.says("preempted", 10)()
    for _ in range(50):
        world.then()
    world.then(world.says("running", 10))
    world.then(world.saves(20), world.says("finished", 20))
    assert world.sidecar().run() == [10, 20]


def test_it_does_not_wait_for_ever_after_a_preemption(world):
    world.says("preempted", 10)()
    world.events = [()] * 102
    with pytest.raises(
        sidecar.TrainerGoneError, match="preempted at step 10 and has not"
    ):
        world.sidecar().run()


@pytest.mark.parametrize("has_begun", [False, True])
def test_it_does_not_wait_for_ever_for_a_trainer_that_is_gone(world, has_begun):
    if has_begun:
        world.says("running")()
    world.events = [(world.saves(10),)] + [()] * 10
    with pytest.raises(sidecar.TrainerGoneError, match=r"No heartbeat .* for 110 s"):
        world.sidecar().run()
    assert scored(world) == [10]


def test_a_slow_trainer_that_lives_is_waited_for(world):
    world.events = [(world.says("running"),), (), (), ()] * 20
    world.then(world.saves(10), world.says("finished", 10))
    assert world.sidecar().run() == [10]


def test_a_failed_run_is_scored_first_and_told_then(world):
    for step in (10, 20):
        save(world.model_dir, step)
    world.says("failed", 20)()
    with pytest.raises(sidecar.RunFailedError, match="failed at step 20"):
        world.sidecar(policy="all").run()
    assert scored(world) == [10, 20]


def test_a_finished_run_without_its_final_checkpoint_is_an_error(world):
    save(world.model_dir, 10)
    world.says("finished", 20)()
    with pytest.raises(FileNotFoundError, match="finished at step 20, but has no"):
        world.sidecar().run()
    assert scored(world) == [10]


def test_a_run_lives_and_is_scored_on_any_file_system(world):
    reasons = [None, None, "a test"]
    exporter = Exporter()

    def stop():
        return reasons.pop(0) if reasons else None

    world.then(lambda: run_trainer(world, stop))
    world.then()
    world.then(lambda: run_trainer(world, stop, keep_checkpoint_max=2))
    made = world.sidecar(policy="all", max_steps=30, exporters=(exporter,))
    assert made.run() == [8, 20, 30] == [step for step, _ in exporter.exported]
    assert checkpoints.steps(world.model_dir) == [20, 30]


def test_a_full_disk_is_waited_out(world, monkeypatch):
    save(world.model_dir, 10)
    world.says("finished", 10)()
    write = summaries.write_evaluation

    def full_disk(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(summaries, "write_evaluation", full_disk)
    world.then()
    world.then(lambda: monkeypatch.setattr(summaries, "write_evaluation", write))
    assert world.sidecar().run() == [10]
    assert scored(world) == [10]


def test_a_full_disk_is_not_waited_for_for_ever(world, monkeypatch):
    save(world.model_dir, 10)

    def full_disk(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(summaries, "write_evaluation", full_disk)
    world.events = [()] * 11
    with pytest.raises(sidecar.StorageError, match="failed for 100 s: No space"):
        world.sidecar().run()


def test_the_final_step_is_what_the_trainer_says_it_is(world):
    save(world.model_dir, 10)
    world.says("finished", 10)()
    exporter = Exporter()
    world.sidecar(max_steps=30, exporters=(exporter,)).run()
    assert exporter.exported == [(10, True)]


def test_a_policy_that_does_not_exist_is_an_error(world):
    with pytest.raises(ValueError, match="policy is 'first'"):
        world.sidecar(policy="first")
    with pytest.raises(ValueError, match="every_k_steps is None"):
        world.sidecar(policy="every_k")
