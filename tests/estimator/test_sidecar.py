"""The sidecar against a world that a test plays to it, look by look.

Checkpoint N of the linear model has N as its bias, so that N is its score.
"""

import contextlib
import functools
import gc

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu.estimator import (
    checkpoints,
    interruptions,
    leases,
    run_state,
    sidecar,
    spec,
    summaries,
    train_and_evaluate,
)


class World:
    """What happens while a sidecar sleeps: one event each time, 10 s apart."""

    def __init__(self, model_dir):
        self.model_dir, self.events, self.now, self.beat = model_dir, [], 0.0, 0

    def sleep(self, secs):
        assert 0 < secs <= 10
        self.now += 10
        assert self.events, "The sidecar waits for what never comes."
        for action in self.events.pop(0):
            action()

    def then(self, *actions):
        self.events.append(actions)
        return self

    def says(self, state, step=0):
        """Returns the event that the trainer says something new."""

        def say():
            self.beat += 1
            state_now = run_state.RunState(state, step, self.beat)
            run_state.write(self.model_dir, state_now)

        return say

    def saves(self, step):
        return functools.partial(save, self.model_dir, step)

    def sidecar(self, estimator=None, **more):
        input_fn = more.pop("input_fn", linear.eval_input_fn)
        exporters = more.pop("exporters", ())
        return sidecar.Sidecar(
            estimator or linear.make_estimator(self.model_dir),
            spec.EvalSpec(input_fn, exporters=exporters),
            max_steps=more.pop("max_steps", 1000),
            timeout_secs=100,
            preemption_secs=1000,
            clock=lambda: self.now,
            sleep=self.sleep,
            **more,
        )


@pytest.fixture(params=["local", "ram"])
def world(request, tmp_path):
    name = str(tmp_path) if request.param == "local" else f"ram://{tmp_path.name}"
    tf.io.gfile.makedirs(f"{name}/run")
    return World(f"{name}/run")


@pytest.fixture
def local(tmp_path):
    return World(str(tmp_path))


def save(model_dir, step, says=None):
    tensors = {
        "weights/linear/matrix": np.zeros([3, 1], np.float32),
        "weights/linear/bias": np.array([step], np.float32),
        "slots/count": np.float32(0),
        "global_step": np.int64(step if says is None else says),
    }
    return checkpoints.save(model_dir, step, tensors)


def truncate(path, suffix, length):
    (name,) = tf.io.gfile.glob(f"{path}{suffix}")
    with open(name, "r+b") as file:
        file.truncate(length)


def scored(world):
    """Returns the steps in the order of their lines, each with the score of its own."""
    records = summaries.read_evaluations(f"{world.model_dir}/eval")
    for record in records:
        assert record["mean_output"] == record["global_step"]
        assert record["checkpoint"] == f"model.ckpt-{record['global_step']}"
    return [record["global_step"] for record in records]


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
    found = [10, 20, 30, 40, 50]
    chosen = sidecar.choose(found, done, policy=policy, every_k_steps=20, final=50)
    assert chosen == expected


def test_the_policy_every_k_takes_no_other_before_the_end_is_known():
    assert sidecar.choose([10, 20, 30], [], policy="every_k", every_k_steps=20) == [20]


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
    assert world.sidecar(policy="all").run(is_once=True) == [10, 20]
    assert world.sidecar(policy="all").run(is_once=True) == []
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
    with pytest.raises(sidecar.TrainerGoneError, match="preempted at step 10 and did"):
        world.sidecar().run()


@pytest.mark.parametrize("has_begun", [False, True])
def test_it_does_not_wait_for_ever_for_a_trainer_that_is_gone(world, has_begun):
    if has_begun:
        world.says("running")()
    world.events = [(world.saves(10),)] + [()] * 10
    with pytest.raises(sidecar.TrainerGoneError, match=r"Nothing came .* for 110 s"):
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
    with pytest.raises(FileNotFoundError, match="finished at step 20, but there is no"):
        world.sidecar().run()
    assert scored(world) == [10]


def test_a_checkpoint_of_which_half_is_there_is_left_alone(world):
    path = save(world.model_dir, 10)
    for half in ("index", "data-00000-of-00001"):
        there, away = f"{path}.{half}", f"{world.model_dir}/away"
        tf.io.gfile.rename(there, away)
        assert world.sidecar().run(is_once=True) == []
        tf.io.gfile.rename(away, there)
    assert world.sidecar().run(is_once=True) == [10]


@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".index", ".data-*"])
def test_a_broken_checkpoint_is_skipped_until_it_is_written_anew(local, share, suffix):
    broken, whole = save(local.model_dir, 10), save(local.model_dir, 20)
    (name,) = tf.io.gfile.glob(f"{broken}{suffix}")
    truncate(broken, suffix, int(tf.io.gfile.stat(name).length * share))
    local.says("running")()
    local.then()
    local.then()
    local.then(local.says("finished", 20), local.saves(10))
    assert local.sidecar(policy="all").run() == [20, 10]
    assert scored(local) == [20, 10]
    assert checkpoints.is_complete(whole)


def test_a_flipped_bit_is_found(local, caplog):
    path = save(local.model_dir, 10)
    name = f"{path}.data-00000-of-00001"
    with open(name, "r+b") as file:
        file.seek(8)  # The last of its 24 bytes are the weights.
        before = file.read(16)
        file.seek(8)
        file.write(bytes([b ^ 1 for b in before]))
    local.then()
    assert local.sidecar().run(is_once=True) == []
    assert "Skipping" in caplog.text


def test_a_checkpoint_under_a_wrong_name_is_not_scored(world, caplog):
    save(world.model_dir, 10, says=20)
    world.then()
    assert world.sidecar().run(is_once=True) == []
    assert "it holds step 20, not that of its name" in caplog.text


def test_a_checkpoint_deleted_before_it_is_read_is_skipped(world, monkeypatch, caplog):
    paths = [save(world.model_dir, step) for step in (10, 20)]
    read = checkpoints.read

    def delete_and_read(path, group=""):
        if path == paths[0] and group == "weights/":  # The last look was fine.
            for name in tf.io.gfile.glob(f"{path}.*"):
                tf.io.gfile.remove(name)
        return read(path, group)

    monkeypatch.setattr(checkpoints, "read", delete_and_read)
    world.then()
    assert world.sidecar(policy="all").run(is_once=True) == [20]
    assert "Skipping" in caplog.text


def test_a_checkpoint_is_held_while_it_is_scored_and_no_longer(world):
    held = []
    book = leases.LeaseBook(world.model_dir, 60)

    def input_fn(params):
        held.append(book.held_steps())
        return linear.eval_input_fn(params)

    for step in (10, 20):
        save(world.model_dir, step)
    world.sidecar(policy="all", input_fn=input_fn).run(is_once=True)
    assert held == [{10}, {20}]
    assert book.held_steps() == set()


def test_the_trainer_does_not_delete_what_is_being_scored(world):
    save(world.model_dir, 0)
    there = []

    def input_fn(params):
        if not there:  # While 0 is scored, the trainer needs its place three times.
            run_trainer(world, keep_checkpoint_max=1)
            there.extend(checkpoints.steps(world.model_dir))
        return linear.eval_input_fn(params)

    assert world.sidecar(policy="all", input_fn=input_fn).run() == [0, 30]
    assert there == [0, 30]


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


def run_trainer(world, stop_reason=lambda: None, **settings):
    runner = linear.make_estimator(world.model_dir, **settings)
    train_spec = spec.TrainSpec(linear.train_input_fn, 30)
    with contextlib.suppress(interruptions.Interrupted):
        train_and_evaluate.train_and_evaluate(
            runner, train_spec, None, stop_reason=stop_reason
        )


def test_what_another_sidecar_scores_is_left_to_it(world):
    paths = [save(world.model_dir, step) for step in (10, 20)]
    with leases.hold(world.model_dir, paths[1], "eval"):
        assert world.sidecar().run(is_once=True) == []
        assert world.sidecar(policy="all").run(is_once=True) == [10]
    with leases.hold(world.model_dir, paths[1]):  # A reader of another kind.
        assert world.sidecar().run(is_once=True) == [20]


def test_what_a_dead_sidecar_was_at_is_scored_by_the_next(world):
    save(world.model_dir, 10)
    world.says("finished", 10)()
    tf.io.gfile.makedirs(f"{world.model_dir}/leases")
    with tf.io.gfile.GFile(f"{world.model_dir}/leases/10-eval-0.json", "w") as file:
        file.write("{}")
    world.then().then()
    assert world.sidecar().run() == [10]
    assert world.events == [] and world.now > leases.TIMEOUT_SECS


def test_what_the_trainer_is_about_to_delete_is_left_alone(world):
    paths = [save(world.model_dir, step) for step in (10, 20)]
    with leases.hold(world.model_dir, paths[0], "delete"):
        assert world.sidecar(policy="all").run(is_once=True) == [20]


def test_two_that_begin_at_once_do_not_both_score(world, monkeypatch):
    path = save(world.model_dir, 10)
    hold = leases.hold
    rival = hold(world.model_dir, path, "eval")

    def hold_second(*args):
        monkeypatch.setattr(leases, "hold", hold)
        rival.__enter__()  # After this one looked, before it took its own.
        return hold(*args)

    monkeypatch.setattr(leases, "hold", hold_second)
    world.then(lambda: rival.__exit__(None, None, None))
    assert world.sidecar().run(is_once=True) == [10]


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
    with pytest.raises(sidecar.StorageError, match="for 100 s storage says: No space"):
        world.sidecar().run()


def test_damaged_data_are_an_error_and_not_the_checkpoints_fault(world):
    save(world.model_dir, 10)

    def input_fn(params):
        def broken():
            raise tf.errors.DataLossError(None, None, "a corrupted record")

        data = linear.eval_input_fn(params)
        tail = tf.data.Dataset.from_generator(
            broken, output_signature=data.element_spec
        )
        return tf.data.Dataset.concatenate(data, tail)

    with pytest.raises(tf.errors.OpError, match="a corrupted record"):
        world.sidecar(input_fn=input_fn).run()
    assert scored(world) == []


def test_a_checkpoint_of_another_network_is_an_error(world):
    tensors = {"global_step": np.int64(10), "weights/other": np.zeros(2, np.float32)}
    checkpoints.save(world.model_dir, 10, tensors)
    with pytest.raises(ValueError, match="belongs to another configuration"):
        world.sidecar().run()


def test_nothing_is_traced_twice_and_nothing_stays(local):
    traced, num_objects = [], []

    def model_fn(features, labels, mode, network):
        traced.append(mode)
        return linear.model_fn(features, labels, mode, network)

    def input_fn(params):
        gc.collect()
        num_objects.append(len(gc.get_objects()))
        return linear.eval_input_fn(params)

    for step in range(7):
        save(local.model_dir, step)
    runner = linear.make_estimator(local.model_dir, fn=model_fn)
    scorer = local.sidecar(runner, policy="all", input_fn=input_fn)
    assert len(scorer.run(is_once=True)) == 7
    assert traced == ["eval"]
    # Seen: not one object more; 38 each time where the dataset was made to stay.
    assert max(num_objects[2:]) - min(num_objects[2:]) < 38


class Exporter:
    """Notes what it is given; fails as often as it is told."""

    name = "noted"

    def __init__(self, *errors):
        self.errors, self.exported = list(errors), []

    def export(self, estimator, base_dir, path, results, is_final):
        if self.errors:
            raise self.errors.pop()
        step = checkpoints.step_of(path)
        assert base_dir == f"{estimator.model_dir}/export/noted"
        assert step in leases.LeaseBook(estimator.model_dir).held_steps()
        assert results["global_step"] == step
        self.exported.append((step, is_final))


def test_what_is_scored_is_exported(world):
    for step in (10, 20, 30):
        save(world.model_dir, step)
    exporter = Exporter()
    world.sidecar(policy="all", max_steps=30, exporters=(exporter,)).run(is_once=True)
    assert exporter.exported == [(10, False), (20, False), (30, True)]


def test_the_final_step_is_what_the_trainer_says_it_is(world):
    save(world.model_dir, 10)
    world.says("finished", 10)()
    exporter = Exporter()
    world.sidecar(max_steps=30, exporters=(exporter,)).run()
    assert exporter.exported == [(10, True)]


def test_what_was_scored_but_not_exported_is_exported_by_the_next(world):
    for step in (10, 20):
        save(world.model_dir, step)
    dying, exporter = Exporter(KeyboardInterrupt()), Exporter()
    with pytest.raises(KeyboardInterrupt):
        world.sidecar(policy="all", exporters=(dying,)).run()
    world.sidecar(policy="latest", exporters=(exporter,)).run(is_once=True)
    assert exporter.exported == [(10, False), (20, False)]
    assert scored(world) == [10, 20]


def test_an_export_onto_a_full_disk_is_tried_again(world):
    save(world.model_dir, 10)
    full = tf.errors.ResourceExhaustedError(None, None, "No space left on device")
    exporter = Exporter(full, full)
    world.then().then()
    world.sidecar(exporters=(exporter,)).run(is_once=True)
    assert exporter.exported == [(10, False)] and scored(world) == [10]


def test_a_policy_that_does_not_exist_is_an_error(world):
    with pytest.raises(ValueError, match="policy is 'first'"):
        world.sidecar(policy="first")
    with pytest.raises(ValueError, match="every_k_steps is None"):
        world.sidecar(policy="every_k")
