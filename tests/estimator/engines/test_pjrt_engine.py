"""Compares the engine of PJRT with that of tf.distribute on the linear model.

`make_estimator` in conftest.py runs many tests of the estimator on both engines.
"""

import re

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu import errors, replicas
from retinanet_tpu.estimator import summaries, train_step, warm_start
from retinanet_tpu.estimator.cluster import strategy
from retinanet_tpu.estimator.engines import engine, pjrt_engine
from retinanet_tpu.estimator.model_dir import checkpoints

pytest.importorskip("jax")


class Momentum(linear.Descent):
    """Descent with a slot for each weight."""

    def __init__(self, network, rate=0.05):
        super().__init__(network, rate)
        self._slots = []
        for weight in self._weights:
            path = replicas.variable_path(weight)
            slot = replicas.make_variable(tf.zeros(weight.shape), name="momentum")
            self._slots.append(slot)
            self.variables[f"slots/{path}/momentum"] = slot

    def apply(self, gradients, step):
        moved = []
        for gradient, slot in zip(gradients, self._slots, strict=True):
            slot.assign(0.9 * slot + gradient)
            moved.append(slot.read_value())
        return super().apply(moved, step)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Returns a function that trains, and returns the checkpoint and all scalars."""
    reports = []

    def report_loop(self, step, num_steps, scalars, *, secs):
        reports.append((step, num_steps, dict(scalars)))

    def train(name, last, **settings):
        reports.clear()
        settings = {"update_fn": Momentum} | settings
        runner = linear.make_estimator(tmp_path / name, **settings)
        path = runner.train(linear.train_input_fn, last)
        return checkpoints.read(path), list(reports)

    monkeypatch.setattr(summaries.LoopWriter, "report_loop", report_loop)
    return train


def assert_close(got, expected):
    """Compares tensors and scalars; measured: at most 1.3e-6 of a value."""
    assert got[0].keys() == expected[0].keys()
    for name, value in expected[0].items():
        np.testing.assert_allclose(
            got[0][name], value, rtol=5e-6, atol=1e-6, err_msg=name
        )
    for ours, theirs in zip(got[1], expected[1], strict=True):
        assert ours[:2] == theirs[:2] and list(ours[2]) == list(theirs[2])
        for name in set(theirs[2]) - {"input-wait"}:
            np.testing.assert_allclose(ours[2][name], theirs[2][name], rtol=1e-5)


@pytest.mark.parametrize(
    "num_replicas",
    [1, 2, *(pytest.param(n, marks=pytest.mark.long) for n in (4, 8))],
)
def test_twenty_steps_equal_those_of_tf_distribute(train, num_replicas):
    # The loops have 4, 4, 2, 4, 4, 2 steps: the last one before a save is shorter.
    expected = train("a", 20, num_replicas=num_replicas)
    got = train("b", 20, num_replicas=num_replicas, engine="pjrt")
    assert [num_steps for _, num_steps, _ in got[1]] == [4, 4, 2, 4, 4, 2]
    assert_close(got, expected)


@pytest.mark.long
@pytest.mark.parametrize(
    "before, after", [("tf.distribute", "pjrt"), ("pjrt", "tf.distribute")]
)
def test_a_run_may_change_engine_and_devices_at_a_checkpoint(train, before, after):
    tensors, reports = train("straight", 23)
    train("changed", 13, num_replicas=2, engine=before)
    got = train("changed", 23, num_replicas=4, engine=after)
    assert [step for step, _, _ in got[1]] == [17, 20, 23]
    # The last loop is the same, from step 20 to 23.
    assert_close((got[0], got[1][-1:]), (tensors, reports[-1:]))


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_a_resumed_run_has_the_bits_of_a_straight_one(train, num_replicas):
    settings = {"num_replicas": num_replicas, "engine": "pjrt"}
    straight, _ = train("straight", 23, **settings)
    train("resumed", 13, **settings)
    resumed, _ = train("resumed", 23, **settings)
    for name, value in straight.items():
        np.testing.assert_array_equal(resumed[name], value, err_msg=name)


def test_all_devices_have_the_same_bits_after_training(tmp_path, monkeypatch):
    loops = []
    make_loop = pjrt_engine.PjrtEngine.make_loop

    def keep(self, *args):
        loops.append(make_loop(self, *args))
        return loops[-1]

    monkeypatch.setattr(pjrt_engine.PjrtEngine, "make_loop", keep)
    runner = linear.make_estimator(
        tmp_path, num_replicas=8, engine="pjrt", update_fn=Momentum
    )
    path = runner.train(linear.train_input_fn, 20)
    updated, _ = loops[0].function._on_devices
    assert len(updated) == len(checkpoints.read(path)) - 2  # Without the counters.
    for array in updated:
        first, *others = [np.asarray(s.data) for s in array.addressable_shards]
        assert len(others) == 7
        for other in others:
            assert first.tobytes() == other.tobytes()


@pytest.mark.long
def test_new_weights_are_evaluated_after_each_save(tmp_path):
    results = {}
    for name in ("tf.distribute", "pjrt"):
        runner = linear.make_estimator(tmp_path / name, num_replicas=2, engine=name)
        found = results.setdefault(name, [])

        def listen(path, step, found=found, runner=runner):
            found.append(runner.evaluate(linear.eval_input_fn))

        runner.train(linear.train_input_fn, 20, [listen])
    for got, expected in zip(results["pjrt"], results["tf.distribute"], strict=True):
        assert got == pytest.approx(expected, rel=1e-4)
    assert results["pjrt"][0]["loss"] != results["pjrt"][1]["loss"]


def test_predictions_of_several_devices_keep_their_order(tmp_path):
    linear.make_estimator(tmp_path).train(linear.train_input_fn, 10)

    def input_fn(params):
        data = tf.data.Dataset.from_tensor_slices(linear.examples()[0])
        return data.batch(params["batch_size"], drop_remainder=True)

    def outputs(**settings):
        batches = linear.make_estimator(tmp_path, **settings).predict(input_fn)
        return np.concatenate([batch["outputs"] for batch in batches])

    expected = outputs()
    assert len(expected) == linear.NUM_EXAMPLES
    for num_replicas in (1, 2, 8):
        got = outputs(engine="pjrt", num_replicas=num_replicas)
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_a_warm_start_is_that_of_tf_distribute(train, tmp_path):
    train("old", 10)
    settings = warm_start.WarmStartSettings(str(tmp_path / "old"))
    expected = train("a", 12, warm_start_from=settings)
    got = train("b", 12, warm_start_from=settings, engine="pjrt", num_replicas=2)
    assert_close(got, expected)


def test_batches_without_a_static_shape_are_an_error(tmp_path):
    def input_fn(params):
        return tf.data.Dataset.from_tensor_slices(linear.examples()).repeat().batch(4)

    runner = linear.make_estimator(tmp_path, engine="pjrt")
    message = r"shape \(None, 3\).*static shapes.*drop_remainder=True"
    with pytest.raises(errors.UserError, match=message):
        runner.train(input_fn, 10)


def test_a_step_that_is_no_xla_program_is_an_error_with_the_line(tmp_path):
    def model_fn(features, labels, mode, network):
        zero = tf.numpy_function(lambda: np.float32(0), [], tf.float32)
        features = features + tf.ensure_shape(zero, [])
        return linear.model_fn(features, labels, mode, network)

    runner = linear.make_estimator(tmp_path, engine="pjrt", fn=model_fn)
    message = r"no XLA program: PyFunc has no kernel.*test_pjrt_engine\.py:\d+"
    with pytest.raises(errors.UserError, match=message):
        runner.train(linear.train_input_fn, 10)


def test_data_that_end_within_a_loop_are_an_error_with_the_step(tmp_path):
    runner = linear.make_estimator(tmp_path, num_replicas=2, engine="pjrt")
    with pytest.raises(errors.UserError, match=r"ended before step 3; .*repeat\(\)"):
        # Five batches are enough for two steps of two replicas.
        runner.train(lambda params: linear.train_input_fn(params).take(5), 10)
    assert checkpoints.steps(str(tmp_path)) == []


def test_steps_read_the_number_of_the_step(train):
    _, reports = train("a", 10, engine="pjrt", num_replicas=2)
    rates = [scalars["learning-rate"] for _, _, scalars in reports]
    assert rates == [3, 7, 9]  # Descent reports the number of the last step.


def make_loop(num_replicas=1):
    """Returns a state, its loop and the strategy."""
    made = strategy.make_strategy(
        "cpu", engine="pjrt", num_devices=num_replicas, compilation_cache=""
    )
    with made.scope():
        network = linear.Linear()
        state = train_step.TrainState(network, linear.Descent(network))
    step_fn = train_step.make_step_fn(state, linear.model_fn, dict)
    return state, pjrt_engine.PjrtEngine(made).make_loop(state, step_fn), made


def batches(made):
    x, y = linear.examples()
    data = tf.data.Dataset.from_tensor_slices((x, y)).repeat()
    data = data.batch(4, drop_remainder=True)
    return iter(made.distribute_datasets_from_function(lambda context: data))


def test_progress_follows_the_batches_and_the_steps():
    _, loop, made = make_loop(2)
    loop.reset(7)
    assert not loop.progress().is_waiting
    seen = []

    def watched():
        for batch in batches(made):
            seen.append(loop.progress())
            yield batch

    loop(watched(), 7, 3)
    # While a batch is fetched, all steps before it are dispatched.
    assert [p.num_done for p in seen] == [7, 8, 9]
    assert all(p.is_waiting and p.is_between_steps for p in seen)
    assert loop.progress() == engine.Progress((10,), 10)


def test_variables_on_the_host_are_assigned_only_by_a_download():
    state, loop, made = make_loop(2)
    loop(batches(made), 0, 3)
    assert state.network.bias.numpy() == 0
    values = state.tensors()  # Downloads.
    assert values["slots/count"] == 3 and values["weights/linear/bias"] != 0
    # What is assigned on the host is read again only after a discard.
    state.network.bias.assign([5.0])
    loop(batches(made), 3, 1)
    assert state.tensors()["weights/linear/bias"] < 2
    state.network.bias.assign([5.0])
    loop.function.discard()
    loop(batches(made), 4, 1)
    assert state.tensors()["weights/linear/bias"] > 2


def test_a_saved_value_is_not_changed_by_later_steps():
    state, loop, made = make_loop()
    data = batches(made)
    loop(data, 0, 2)
    saved = state.tensors()
    copies = {name: np.array(value) for name, value in saved.items()}
    loop(data, 2, 5)
    for name, value in copies.items():
        np.testing.assert_array_equal(saved[name], value, err_msg=name)


def test_a_loop_is_compiled_once_and_logs_its_program(caplog):
    caplog.set_level("INFO", logger="absl")
    _, loop, made = make_loop(2)
    data = batches(made)
    results = [loop(data, 4 * i, 4) for i in range(3)]
    assert [result.num_traces for result in results] == [1, 1, 1]
    lines = re.findall(r"PJRT \| train \| 2 x cpu \| program [0-9a-f]{16}", caplog.text)
    assert len(lines) == 1
