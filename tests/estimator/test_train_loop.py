import contextlib
import os

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import (
    checkpoint_saver,
    run_config,
    spec,
    summaries,
    train_loop,
    train_step,
)
from retinanet_tpu.estimator.cluster import preemption, strategy
from retinanet_tpu.estimator.engines import distribute, engine
from retinanet_tpu.estimator.model_dir import checkpoints, leases


@pytest.fixture
def loops(monkeypatch):
    """Returns a list that gets (step, scalars) of each reported loop."""
    reports = []

    def report_loop(self, step, num_steps, scalars, *, secs):
        reports.append((step, scalars))

    monkeypatch.setattr(summaries.LoopWriter, "report_loop", report_loop)
    return reports


def reason_at(step, loops):
    """Returns a stop_reason that has a reason once a step was reported."""
    return lambda: "enough" if loops and loops[-1][0] >= step else None


def assert_same(path, other):
    expected, got = checkpoints.read(path), checkpoints.read(other)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_a_reason_to_stop_saves_at_the_end_of_the_loop(make_estimator, tmp_path, loops):
    runner = make_estimator(tmp_path / "a")
    with pytest.raises(preemption.Preempted) as stop:
        runner.train(linear.train_input_fn, 23, stop_reason=reason_at(4, loops))
    assert stop.value.step == 4
    assert checkpoints.steps(str(tmp_path / "a")) == [4]
    resumed = make_estimator(tmp_path / "a").train(linear.train_input_fn, 23)
    straight = make_estimator(tmp_path / "b").train(linear.train_input_fn, 23)
    assert_same(straight, resumed)


def test_a_reason_before_the_first_step_saves_nothing(tmp_path):
    runner = linear.make_estimator(tmp_path)
    with pytest.raises(preemption.Preempted, match="step 0"):
        runner.train(linear.train_input_fn, 23, stop_reason=lambda: "enough")
    assert checkpoints.steps(str(tmp_path)) == []


def test_a_saved_step_is_not_saved_again(tmp_path, loops):
    saved = []
    runner = linear.make_estimator(tmp_path)
    with pytest.raises(preemption.Preempted, match="step 10"):
        runner.train(
            linear.train_input_fn,
            23,
            [lambda path, step: saved.append(step)],
            stop_reason=reason_at(10, loops),
        )
    assert saved == [10]


def bad_data_input_fn(bad_batches):
    """Returns an input_fn whose batches with these numbers are not finite."""

    def input_fn(params):
        def spoil(number, example):
            x, y = example
            is_bad = tf.reduce_any(number == bad_batches)
            return x, tf.where(is_bad, np.float32(np.inf), y)

        first = params["context"].first_step
        return linear.train_input_fn(params).enumerate(first).map(spoil)

    return input_fn


def clean_input_fn(skipped):
    """Returns an input_fn without the batches of some numbers."""

    def input_fn(params):
        numbered = linear.train_input_fn(
            params | {"context": params["context"]._replace(first_step=0)}
        ).enumerate()
        kept = numbered.filter(lambda i, _: tf.reduce_all(i != skipped))
        return kept.map(lambda _, example: example).skip(params["context"].first_step)

    return input_fn


def test_a_diverged_run_rolls_back_and_skips_the_data_since_then(
    make_estimator, tmp_path, caplog
):
    # Saved at 10 and 20. Batch 13 is bad: 10 to 13 are skipped, so that step 20
    # ends on batch 23; batches 25 and 30 are bad: 24 to 25, then 26 to 30.
    input_fn = bad_data_input_fn([13, 25, 30])
    runner = make_estimator(tmp_path / "a", max_rollbacks=3)
    path = runner.train(input_fn, 30)
    tensors = checkpoints.read(path)
    assert tensors["num_skipped"] == 4 + 2 + 5
    assert checkpoints.read(f"{tmp_path}/a/model.ckpt-20")["num_skipped"] == 4
    assert "loss is inf at step 14" in caplog.text and "Rolling back to" in caplog.text
    skipped = [10, 11, 12, 13, 24, 25, 26, 27, 28, 29, 30]
    straight = make_estimator(tmp_path / "b")
    expected = checkpoints.read(straight.train(clean_input_fn(skipped), 30))
    for name in set(expected) - {"num_skipped"}:
        np.testing.assert_array_equal(tensors[name], expected[name], err_msg=name)


def test_a_resumed_run_still_skips_the_skipped_data(make_estimator, tmp_path):
    input_fn = bad_data_input_fn([13])
    straight = make_estimator(tmp_path / "a", max_rollbacks=1)
    make_estimator(tmp_path / "b", max_rollbacks=1).train(input_fn, 20)
    resumed = make_estimator(tmp_path / "b", max_rollbacks=0)
    assert_same(straight.train(input_fn, 30), resumed.train(input_fn, 30))


def test_the_number_of_rollbacks_is_limited(make_estimator, tmp_path, caplog):
    runner = make_estimator(tmp_path, max_rollbacks=2)
    with pytest.raises(train_step.DivergedError, match="inf at step 11"):
        runner.train(bad_data_input_fn(list(range(10, 99))), 30)
    assert caplog.text.count("Rolling back to") == 2
    assert checkpoints.steps(str(tmp_path)) == [10]


def test_without_a_checkpoint_there_is_no_rollback(make_estimator, tmp_path):
    runner = make_estimator(tmp_path, max_rollbacks=2)
    with pytest.raises(train_step.DivergedError, match="inf at step 3"):
        runner.train(bad_data_input_fn([2]), 30)


def test_a_corrupt_checkpoint_is_skipped_and_rewritten(tmp_path):
    straight = linear.make_estimator(tmp_path / "a").train(linear.train_input_fn, 23)
    runner = linear.make_estimator(tmp_path / "b", keep_checkpoint_max=2)
    shards = []
    runner.train(linear.train_input_fn, 20, [lambda path, step: shards.append(path)])
    tf.io.gfile.remove(f"{shards[1]}.data-00000-of-00001")
    with tf.io.gfile.GFile(f"{shards[1]}.data-00000-of-00001", "w") as file:
        file.write("cut short")
    again = linear.make_estimator(tmp_path / "b", keep_checkpoint_max=1)
    assert_same(straight, again.train(linear.train_input_fn, 23))
    assert checkpoints.steps(str(tmp_path / "b")) == [23]


@pytest.mark.parametrize("lost", [".index", ".data-00000-of-00001", "all"])
def test_a_run_does_not_restart_over_lost_checkpoints(tmp_path, lost):
    linear.make_estimator(tmp_path).train(linear.train_input_fn, 10)
    names = [n for n in os.listdir(tmp_path) if n.startswith("model.ckpt-")]
    for name in names:
        if lost == "all" or name.endswith(lost):
            os.remove(tmp_path / name)
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(errors.UserError, match=r"model\.ckpt-10.*restore.*--model_dir"):
        linear.make_estimator(tmp_path).train(linear.train_input_fn, 20)
    assert sorted(os.listdir(tmp_path)) == before
    os.remove(tmp_path / "checkpoint")
    if lost == ".data-00000-of-00001":
        os.remove(tmp_path / "model.ckpt-10.index")
    linear.make_estimator(tmp_path).train(linear.train_input_fn, 10)


def test_a_checkpoint_that_is_being_read_is_deleted_later(tmp_path):
    with contextlib.ExitStack() as reader:
        steps = {}

        def listen(path, step):
            steps[step] = checkpoints.steps(str(tmp_path))
            if step == 10:
                reader.enter_context(leases.lease_checkpoint(str(tmp_path), path))
            if step == 30:
                reader.close()

        runner = linear.make_estimator(tmp_path, keep_checkpoint_max=1)
        runner.train(linear.train_input_fn, 50, [listen])
    assert steps == {10: [10], 20: [10, 20], 30: [10, 30], 40: [40], 50: [50]}


def test_a_corrupt_newer_checkpoint_does_not_delete_an_older_one(tmp_path):
    state = train_step.TrainState(linear.Linear(), linear.Descent(linear.Linear()))
    settings = run_config.RunConfig(save_checkpoints_steps=1, keep_checkpoint_max=1)
    saver = checkpoint_saver.Saver(str(tmp_path), settings, first_step=0)
    checkpoints.save(
        str(tmp_path), 9, {"global_step": np.int64(9)}
    )  # Stands for a corrupt one.
    for step in (3, 5):
        state.step = step
        saver.save(state)
        assert checkpoints.steps(str(tmp_path)) == [step, 9]


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_deterministic_runs_have_the_same_bits(tmp_path, num_replicas):
    def settings(**more):
        return {"num_replicas": num_replicas, **more}

    plain = linear.make_estimator(tmp_path / "a", **settings())
    runs = [
        linear.make_estimator(tmp_path / name, **settings(deterministic=True))
        for name in ("b", "c")
    ]
    expected = checkpoints.read(plain.train(linear.train_input_fn, 12))
    paths = [run.train(linear.train_input_fn, 12) for run in runs]
    assert_same(*paths)
    for name, value in checkpoints.read(paths[0]).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-6, err_msg=name)


def test_gradients_of_a_reused_weight_are_added_two_at_a_time():
    with tf.name_scope("net"):
        weight = replicas.make_variable([1.0, 2.0], name="weight", trainable=True)
    network = tf.Module()
    network.weight = weight
    state = train_step.TrainState(network, linear.Descent(network))

    def model_fn(features, network):
        used = [factor * network.weight for factor in (1.0, 10.0, 100.0, 1000.0)]
        loss = tf.add_n([tf.reduce_sum(features * w) for w in used])
        return spec.TPUEstimatorSpec(spec.ModeKeys.TRAIN, loss=loss)

    for deterministic, widest in ((False, 4), (True, 2)):
        step_fn = train_step.make_step_fn(
            state, model_fn, dict, deterministic=deterministic
        )
        graph = tf.function(step_fn).get_concrete_function(
            tf.TensorSpec([2]), tf.TensorSpec([], tf.int64)
        )
        sums = [op for op in graph.graph.get_operations() if op.type == "AddN"]
        vectors = [op for op in sums if op.outputs[0].shape.rank == 1]
        assert max(len(op.inputs) for op in vectors) == widest
        before = weight.numpy()
        graph(tf.constant([1.0, 2.0]), tf.constant(0, tf.int64))
        np.testing.assert_allclose(weight, before - 0.1 * 1111 * np.array([1.0, 2.0]))


def test_the_input_wait_is_the_idle_time_of_the_device():
    # A batch at 1 s, 0.5 s of work; the next arrived meanwhile; the third 2 s later.
    times = np.array([[1.0, 1.5], [1.2, 2.0], [4.0, 4.5]])
    assert engine.input_wait(times) == pytest.approx((1 + 0 + 2) / 4.5)


def busy(x, rounds):
    """Returns x after work that no optimizer can remove."""
    return tf.while_loop(
        lambda i, _: i < rounds, lambda i, y: (i + 1, tf.sin(y)), (0, x)
    )[1]


def test_each_loop_reports_its_input_wait(make_estimator, tmp_path, loops):
    def slow_input_fn(params):
        data = linear.train_input_fn(params)
        return data.map(lambda x, y: (x + 0 * busy(x, 1000), y))

    def fast_input_fn(params):
        return linear.train_input_fn(params).prefetch(8)

    def slow_model_fn(features, labels, mode, network):
        extra = tf.reduce_sum(0 * busy(features, 20_000))
        result = linear.model_fn(features, labels, mode, network)
        scalars = {"loss": result.loss + tf.stop_gradient(extra)}
        return result._replace(scalars=scalars)

    def median_wait(name, input_fn, model_fn):
        loops.clear()
        make_estimator(tmp_path / name, fn=model_fn).train(input_fn, 24)
        return np.median([scalars["input-wait"] for _, scalars in loops[2:]])

    of_slow_input = median_wait("input", slow_input_fn, linear.model_fn)
    of_slow_model = median_wait("model", fast_input_fn, slow_model_fn)
    assert 0 <= of_slow_model < of_slow_input - 0.1 <= 0.9


def test_saves_evaluations_and_rollbacks_trace_nothing_twice(
    make_estimator, tmp_path, monkeypatch
):
    traced = []

    def model_fn(features, labels, mode, network):
        traced.append(mode)
        return linear.model_fn(features, labels, mode, network)

    runner = make_estimator(tmp_path, fn=model_fn, max_rollbacks=1)
    counts = []
    monkeypatch.setattr(
        train_loop.logging, "warning", lambda *args: counts.append(args)
    )
    runner.train(
        bad_data_input_fn([15]),
        45,
        [lambda path, step: runner.evaluate(linear.eval_input_fn)],
    )
    assert sorted(traced) == ["eval", "train"]
    assert not [args for args in counts if "traced" in args[0]]


def test_a_loop_that_is_traced_again_is_counted():
    cpu = strategy.make_strategy("cpu")
    state = train_step.TrainState(linear.Linear(), linear.Descent(linear.Linear()))

    def model_fn(features, network):
        loss = tf.reduce_mean(network(features))
        return spec.TPUEstimatorSpec(spec.ModeKeys.TRAIN, loss=loss)

    network = state.network
    state.update = linear.Descent(network)
    step_fn = train_step.make_step_fn(state, model_fn, dict)
    run_loop = distribute.DistributeLoop(cpu, step_fn)
    counts = []
    for width in (2, 2, 4):
        data = tf.data.Dataset.from_tensors(tf.ones([width, 3])).repeat()
        counts.append(run_loop(iter(data), 0, 3).num_traces)
    assert counts == [1, 1, 2]


def test_two_variables_with_one_name_are_an_error(tmp_path):
    network = tf.Module()
    network.weights = [replicas.make_variable(1.0, name="weight") for _ in range(2)]
    with pytest.raises(ValueError, match=r"Several variables .* named weight"):
        train_step.TrainState(network, linear.Descent(network)).save(str(tmp_path))


def test_a_loss_that_is_not_finite_is_detected_even_if_not_reported(
    make_estimator, tmp_path
):
    def model_fn(features, labels, mode, network):
        result = linear.model_fn(features, labels, mode, network)
        return result._replace(loss=result.loss * np.nan, scalars={"other": 1.0})

    runner = make_estimator(tmp_path)
    runner._model_fn = model_fn
    with pytest.raises(train_step.DivergedError, match="loss is nan at step 1"):
        runner.train(linear.train_input_fn, 10)


def test_finite_training_data_are_an_error(make_estimator, tmp_path):
    runner = make_estimator(tmp_path)
    with pytest.raises(ValueError, match=r"ended before step 4; .*repeat\(\)"):
        runner.train(lambda params: linear.train_input_fn(params).take(3), 10)
