import pytest
import tensorflow as tf

from retinanet_tpu.estimator import sidecar, summaries
from retinanet_tpu.estimator.model_dir import checkpoints
from sidecar_scenario import (
    Exporter,
    evaluated_steps,
    run_trainer,
    save,
)


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
def test_a_policy_selects_the_next_steps(policy, done, expected):
    steps = [10, 20, 30, 40, 50]
    selected = sidecar.select_steps(
        steps, done, policy=policy, every_k_steps=20, final=50
    )
    assert selected == expected


def test_every_k_selects_only_multiples_before_the_end_is_known():
    selected = sidecar.select_steps(
        [10, 20, 30], [], policy="every_k", every_k_steps=20
    )
    assert selected == [20]


@pytest.mark.long
@pytest.mark.parametrize("policy", ["latest", "all"])
def test_a_run_is_evaluated_from_before_its_start_to_its_end(scenario, policy):
    scenario.at_next_poll()
    scenario.at_next_poll(scenario.trainer_state("running"))
    scenario.at_next_poll(scenario.save_checkpoint(10), scenario.save_checkpoint(20))
    scenario.at_next_poll(scenario.trainer_state("running", 20))
    scenario.at_next_poll(
        scenario.save_checkpoint(30), scenario.trainer_state("finished", 30)
    )
    expected = [20, 30] if policy == "latest" else [10, 20, 30]
    assert scenario.sidecar(policy=policy).run() == expected
    assert evaluated_steps(scenario) == expected


@pytest.mark.long
def test_every_k_selects_the_final_checkpoint_too(scenario):
    for step in (10, 20, 30, 40, 50):
        save(scenario.model_dir, step)
    scenario.trainer_state("finished", 50)()
    assert scenario.sidecar(policy="every_k", every_k_steps=20).run() == [20, 40, 50]


@pytest.mark.long
def test_a_restarted_sidecar_evaluates_nothing_twice(scenario):
    for step in (10, 20):
        save(scenario.model_dir, step)
    assert scenario.sidecar(policy="all").run(once=True) == [10, 20]
    assert scenario.sidecar(policy="all").run(once=True) == []
    save(scenario.model_dir, 30)
    scenario.trainer_state("finished", 30)()
    assert scenario.sidecar(policy="all").run() == [30]
    assert evaluated_steps(scenario) == [10, 20, 30]


def test_it_waits_through_a_preemption(scenario):
    save(scenario.model_dir, 10)
    scenario.trainer_state("preempted", 10)()
    for _ in range(50):
        scenario.at_next_poll()
    scenario.at_next_poll(scenario.trainer_state("running", 10))
    scenario.at_next_poll(
        scenario.save_checkpoint(20), scenario.trainer_state("finished", 20)
    )
    assert scenario.sidecar().run() == [10, 20]


def test_the_wait_after_a_preemption_is_limited(scenario):
    scenario.trainer_state("preempted", 10)()
    scenario.events = [()] * 102
    with pytest.raises(sidecar.TrainerGoneError, match="step 10 and has not resumed"):
        scenario.sidecar().run()


@pytest.mark.parametrize("has_begun", [False, True])
def test_the_wait_for_a_silent_trainer_is_limited(scenario, has_begun):
    if has_begun:
        scenario.trainer_state("running")()
    scenario.events = [(scenario.save_checkpoint(10),)] + [()] * 10
    with pytest.raises(sidecar.TrainerGoneError, match=r"No heartbeat .* for 110 s"):
        scenario.sidecar().run()
    assert evaluated_steps(scenario) == [10]


def test_a_slow_trainer_with_a_heartbeat_is_waited_for(scenario):
    scenario.events = [(scenario.trainer_state("running"),), (), (), ()] * 20
    scenario.at_next_poll(
        scenario.save_checkpoint(10), scenario.trainer_state("finished", 10)
    )
    assert scenario.sidecar().run() == [10]


def test_a_failed_run_is_evaluated_before_it_is_an_error(scenario):
    for step in (10, 20):
        save(scenario.model_dir, step)
    scenario.trainer_state("failed", 20)()
    with pytest.raises(sidecar.RunFailedError, match="failed at step 20"):
        scenario.sidecar(policy="all").run()
    assert evaluated_steps(scenario) == [10, 20]


def test_a_finished_run_without_its_final_checkpoint_is_an_error(scenario):
    save(scenario.model_dir, 10)
    scenario.trainer_state("finished", 20)()
    with pytest.raises(FileNotFoundError, match="finished at step 20, but has no"):
        scenario.sidecar().run()
    assert evaluated_steps(scenario) == [10]


@pytest.mark.long
def test_a_run_is_trained_and_evaluated_on_any_file_system(scenario):
    reasons = [None, None, "a test"]
    exporter = Exporter()

    def stop():
        return reasons.pop(0) if reasons else None

    scenario.at_next_poll(lambda: run_trainer(scenario, stop))
    scenario.at_next_poll()
    scenario.at_next_poll(lambda: run_trainer(scenario, stop, keep_checkpoint_max=2))
    watcher = scenario.sidecar(policy="all", max_steps=30, exporters=(exporter,))
    assert watcher.run() == [8, 20, 30] == [step for step, _ in exporter.exported]
    assert checkpoints.steps(scenario.model_dir) == [20, 30]


def test_a_full_disk_is_retried(scenario, monkeypatch):
    save(scenario.model_dir, 10)
    scenario.trainer_state("finished", 10)()
    write = summaries.write_evaluation

    def full_disk(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(summaries, "write_evaluation", full_disk)
    scenario.at_next_poll()
    scenario.at_next_poll(
        lambda: monkeypatch.setattr(summaries, "write_evaluation", write)
    )
    assert scenario.sidecar().run() == [10]
    assert evaluated_steps(scenario) == [10]


def test_the_wait_for_a_full_disk_is_limited(scenario, monkeypatch):
    save(scenario.model_dir, 10)

    def full_disk(*args, **kwargs):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(summaries, "write_evaluation", full_disk)
    scenario.events = [()] * 11
    with pytest.raises(sidecar.StorageError, match="failed for 100 s: No space"):
        scenario.sidecar().run()


def test_the_final_step_is_the_one_that_the_trainer_reports(scenario):
    save(scenario.model_dir, 10)
    scenario.trainer_state("finished", 10)()
    exporter = Exporter()
    scenario.sidecar(max_steps=30, exporters=(exporter,)).run()
    assert exporter.exported == [(10, True)]


def test_an_unknown_policy_is_an_error(scenario):
    with pytest.raises(ValueError, match="policy is 'first'"):
        scenario.sidecar(policy="first")
    with pytest.raises(ValueError, match="every_k_steps is None"):
        scenario.sidecar(policy="every_k")
