import gc

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu.estimator.model_dir import checkpoints, leases
from sidecar_scenario import (
    Exporter,
    SidecarScenario,
    evaluated_steps,
    run_trainer,
    save,
)


@pytest.fixture
def local(tmp_path):
    return SidecarScenario(str(tmp_path))


def truncate(path, suffix, length):
    (name,) = tf.io.gfile.glob(f"{path}{suffix}")
    with open(name, "r+b") as file:
        file.truncate(length)


def test_an_incomplete_checkpoint_is_not_evaluated(scenario):
    path = save(scenario.model_dir, 10)
    for half in ("index", "data-00000-of-00001"):
        there, away = f"{path}.{half}", f"{scenario.model_dir}/away"
        tf.io.gfile.rename(there, away)
        assert scenario.sidecar().run(once=True) == []
        tf.io.gfile.rename(away, there)
    assert scenario.sidecar().run(once=True) == [10]


@pytest.mark.long
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.9, 0.99])
@pytest.mark.parametrize("suffix", [".index", ".data-*"])
def test_a_corrupt_checkpoint_is_skipped_until_it_is_rewritten(local, share, suffix):
    broken, whole = save(local.model_dir, 10), save(local.model_dir, 20)
    (name,) = tf.io.gfile.glob(f"{broken}{suffix}")
    truncate(broken, suffix, int(tf.io.gfile.stat(name).length * share))
    local.trainer_state("running")()
    local.at_next_poll()
    local.at_next_poll()
    local.at_next_poll(local.trainer_state("finished", 20), local.save_checkpoint(10))
    assert local.sidecar(policy="all").run() == [20, 10]
    assert evaluated_steps(local) == [20, 10]
    assert checkpoints.is_complete(whole)


def test_a_flipped_bit_is_detected(local, caplog):
    path = save(local.model_dir, 10)
    name = f"{path}.data-00000-of-00001"
    with open(name, "r+b") as file:
        file.seek(8)  # The last of its 24 bytes are the weights.
        before = file.read(16)
        file.seek(8)
        file.write(bytes([b ^ 1 for b in before]))
    local.at_next_poll()
    assert local.sidecar().run(once=True) == []
    assert "Skipping" in caplog.text


def test_a_checkpoint_under_a_wrong_name_is_not_evaluated(scenario, caplog):
    save(scenario.model_dir, 10, stored_step=20)
    scenario.at_next_poll()
    assert scenario.sidecar().run(once=True) == []
    assert "it contains step 20, which is not the step in its name" in caplog.text


def test_a_checkpoint_deleted_before_it_is_read_is_skipped(
    scenario, monkeypatch, caplog
):
    paths = [save(scenario.model_dir, step) for step in (10, 20)]
    read = checkpoints.read

    def delete_and_read(path, group=""):
        if path == paths[0] and group == "weights/":  # The last check passed.
            for name in tf.io.gfile.glob(f"{path}.*"):
                tf.io.gfile.remove(name)
        return read(path, group)

    monkeypatch.setattr(checkpoints, "read", delete_and_read)
    scenario.at_next_poll()
    assert scenario.sidecar(policy="all").run(once=True) == [20]
    assert "Skipping" in caplog.text


def test_a_checkpoint_is_leased_only_while_it_is_evaluated(scenario):
    held = []
    book = leases.LeaseTable(scenario.model_dir, 60)

    def input_fn(params):
        held.append(book.held_steps())
        return linear.eval_input_fn(params)

    for step in (10, 20):
        save(scenario.model_dir, step)
    scenario.sidecar(policy="all", input_fn=input_fn).run(once=True)
    assert held == [{10}, {20}]
    assert book.held_steps() == set()


@pytest.mark.long
def test_the_trainer_does_not_delete_a_checkpoint_under_evaluation(scenario):
    save(scenario.model_dir, 0)
    there = []

    def input_fn(params):
        if not there:  # While 0 is evaluated, the trainer saves three times.
            run_trainer(scenario, keep_checkpoint_max=1)
            there.extend(checkpoints.steps(scenario.model_dir))
        return linear.eval_input_fn(params)

    assert scenario.sidecar(policy="all", input_fn=input_fn).run() == [0, 30]
    assert there == [0, 30]


def test_a_checkpoint_that_another_sidecar_evaluates_is_skipped(scenario):
    paths = [save(scenario.model_dir, step) for step in (10, 20)]
    with leases.lease_checkpoint(scenario.model_dir, paths[1], "eval"):
        assert scenario.sidecar().run(once=True) == []
        assert scenario.sidecar(policy="all").run(once=True) == [10]
    with leases.lease_checkpoint(
        scenario.model_dir, paths[1]
    ):  # A reader of another kind.
        assert scenario.sidecar().run(once=True) == [20]


def test_the_checkpoint_of_a_dead_sidecar_is_evaluated_by_the_next(scenario):
    save(scenario.model_dir, 10)
    scenario.trainer_state("finished", 10)()
    tf.io.gfile.makedirs(f"{scenario.model_dir}/leases")
    with tf.io.gfile.GFile(f"{scenario.model_dir}/leases/10-eval-0.json", "w") as file:
        file.write("{}")
    scenario.at_next_poll().at_next_poll()
    assert scenario.sidecar().run() == [10]
    assert scenario.events == [] and scenario.now > leases.TIMEOUT_SECS


def test_a_checkpoint_about_to_be_deleted_is_skipped(scenario):
    paths = [save(scenario.model_dir, step) for step in (10, 20)]
    with leases.lease_checkpoint(scenario.model_dir, paths[0], "delete"):
        assert scenario.sidecar(policy="all").run(once=True) == [20]


def test_two_sidecars_that_start_together_evaluate_once(scenario, monkeypatch):
    path = save(scenario.model_dir, 10)
    hold = leases.lease_checkpoint
    rival = hold(scenario.model_dir, path, "eval")

    def lease_second(*args):
        monkeypatch.setattr(leases, "lease_checkpoint", hold)
        rival.__enter__()  # After this one's check, before its own lease.
        return hold(*args)

    monkeypatch.setattr(leases, "lease_checkpoint", lease_second)
    scenario.at_next_poll(lambda: rival.__exit__(None, None, None))
    assert scenario.sidecar().run(once=True) == [10]


def test_corrupt_data_are_an_error_and_not_a_corrupt_checkpoint(scenario):
    save(scenario.model_dir, 10)

    def input_fn(params):
        def broken():
            raise tf.errors.DataLossError(None, None, "a corrupted record")

        data = linear.eval_input_fn(params)
        tail = tf.data.Dataset.from_generator(
            broken, output_signature=data.element_spec
        )
        return tf.data.Dataset.concatenate(data, tail)

    with pytest.raises(tf.errors.OpError, match="a corrupted record"):
        scenario.sidecar(input_fn=input_fn).run()
    assert evaluated_steps(scenario) == []


def test_a_checkpoint_of_another_network_is_an_error(scenario):
    tensors = {"global_step": np.int64(10), "weights/other": np.zeros(2, np.float32)}
    checkpoints.save(scenario.model_dir, 10, tensors)
    with pytest.raises(ValueError, match="belongs to another configuration"):
        scenario.sidecar().run()


@pytest.mark.long
def test_nothing_is_traced_twice_and_no_objects_accumulate(local):
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
    sidecar = local.sidecar(runner, policy="all", input_fn=input_fn)
    assert len(sidecar.run(once=True)) == 7
    assert traced == ["eval"]
    # Measured: no object more; 38 per evaluation if the dataset is kept alive.
    assert max(num_objects[2:]) - min(num_objects[2:]) < 38


def test_evaluated_checkpoints_are_exported(scenario):
    for step in (10, 20, 30):
        save(scenario.model_dir, step)
    exporter = Exporter()
    scenario.sidecar(policy="all", max_steps=30, exporters=(exporter,)).run(once=True)
    assert exporter.exported == [(10, False), (20, False), (30, True)]


def test_an_evaluated_but_unexported_checkpoint_is_exported_by_the_next(scenario):
    for step in (10, 20):
        save(scenario.model_dir, step)
    dying, exporter = Exporter(KeyboardInterrupt()), Exporter()
    with pytest.raises(KeyboardInterrupt):
        scenario.sidecar(policy="all", exporters=(dying,)).run()
    scenario.sidecar(policy="latest", exporters=(exporter,)).run(once=True)
    assert exporter.exported == [(10, False), (20, False)]
    assert evaluated_steps(scenario) == [10, 20]


def test_an_export_onto_a_full_disk_is_retried(scenario):
    save(scenario.model_dir, 10)
    full = tf.errors.ResourceExhaustedError(None, None, "No space left on device")
    exporter = Exporter(full, full)
    scenario.at_next_poll().at_next_poll()
    scenario.sidecar(exporters=(exporter,)).run(once=True)
    assert exporter.exported == [(10, False)] and evaluated_steps(scenario) == [10]
