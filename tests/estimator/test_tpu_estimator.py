import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu import replicas
from retinanet_tpu.estimator import spec, train_and_evaluate, train_step
from retinanet_tpu.estimator.model_dir import checkpoints


def _weights(path):
    return checkpoints.read(path, "weights/")


@pytest.mark.parametrize("jit_compile", [False, True])
def test_training_reduces_the_loss_and_ends_at_max_steps(tmp_path, jit_compile):
    runner = linear.make_estimator(tmp_path, jit_compile=jit_compile)
    path = runner.train(linear.train_input_fn, 25)
    assert checkpoints.step_of(path) == 25
    assert checkpoints.read(path)["slots/count"] == 25
    np.testing.assert_allclose(
        _weights(path)["linear/matrix"][:, 0], [1, 2, 3], atol=0.1
    )


def test_saves_are_on_time_even_if_loops_do_not_divide_the_interval(
    make_estimator, tmp_path
):
    saved = []
    runner = make_estimator(tmp_path, keep_checkpoint_max=2)
    runner.train(linear.train_input_fn, 25, [lambda path, step: saved.append(step)])
    assert saved == [10, 20, 25]
    assert checkpoints.steps(str(tmp_path)) == [20, 25]


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_bit(make_estimator, tmp_path):
    straight = make_estimator(tmp_path / "a").train(linear.train_input_fn, 23)
    make_estimator(tmp_path / "b").train(linear.train_input_fn, 13)
    resumed = make_estimator(tmp_path / "b").train(linear.train_input_fn, 23)
    expected, got = checkpoints.read(straight), checkpoints.read(resumed)
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("num_replicas", [2, 4, 8])
def test_the_update_does_not_depend_on_the_number_of_replicas(tmp_path, num_replicas):
    one = linear.make_estimator(tmp_path / "one").train(linear.train_input_fn, 12)
    runner = linear.make_estimator(tmp_path / "many", num_replicas=num_replicas)
    many = runner.train(linear.train_input_fn, 12)
    for name, value in _weights(one).items():
        np.testing.assert_allclose(_weights(many)[name], value, rtol=1e-5, err_msg=name)


def test_a_finished_run_is_skipped(tmp_path):
    first = linear.make_estimator(tmp_path).train(linear.train_input_fn, 12)

    def broken_input_fn(params):
        raise AssertionError("A finished run reads no data.")

    assert linear.make_estimator(tmp_path).train(broken_input_fn, 12) == first


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(
    make_estimator, tmp_path
):
    def model_fn(features, labels, mode, network):
        result = linear.model_fn(features, labels, mode, network)
        bad = tf.where(tf.reduce_sum(network.bias) > 0.3, np.nan, 1.0) * result.loss
        return result._replace(loss=bad, scalars={"fine": 1.0, "bad-loss": bad})

    runner = make_estimator(tmp_path, fn=model_fn)
    with pytest.raises(train_step.DivergedError, match=r"bad-loss is nan at step \d+"):
        runner.train(linear.train_input_fn, 25)
    for step in checkpoints.steps(str(tmp_path)):
        values = checkpoints.read(checkpoints.path_of(str(tmp_path), step))
        assert all(np.isfinite(value).all() for value in values.values())


@pytest.mark.parametrize("num_replicas", [1, 2])
def test_evaluation_reads_every_example_once(make_estimator, tmp_path, num_replicas):
    runner = make_estimator(tmp_path, num_replicas=num_replicas)
    path = runner.train(linear.train_input_fn, 10)

    def eval_input_fn(params):
        size = params["batch_size"] * params["context"].num_of_replicas_per_host
        data = tf.data.Dataset.from_tensor_slices(linear.examples()).batch(
            size, drop_remainder=True
        )
        return data.rebatch(params["batch_size"], drop_remainder=True)

    results = runner.evaluate(eval_input_fn)
    x, y = linear.examples()
    weights = _weights(path)
    outputs = x @ weights["linear/matrix"] + weights["linear/bias"]
    assert results["num_outputs"] == linear.NUM_EXAMPLES
    np.testing.assert_allclose(results["mean_output"], outputs.mean(), rtol=1e-4)
    np.testing.assert_allclose(results["loss"], np.mean((outputs - y) ** 2), rtol=1e-3)
    assert results["global_step"] == 10


def test_each_evaluation_is_a_json_line(tmp_path):
    runner = linear.make_estimator(tmp_path)
    train_and_evaluate.train_and_evaluate(
        runner,
        spec.TrainSpec(linear.train_input_fn, 25),
        spec.EvalSpec(linear.eval_input_fn, every_steps=20),
    )
    lines = (tmp_path / "eval" / "eval.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["global_step"] for record in records] == [20, 25]
    assert records[0]["checkpoint"] == "model.ckpt-20"
    assert records[1]["num_outputs"] == linear.NUM_EXAMPLES
    assert list((tmp_path / "eval").glob("events.*"))


def test_a_finished_run_is_not_evaluated_again(tmp_path):
    train_spec = spec.TrainSpec(linear.train_input_fn, 10)
    for _ in range(2):
        runner = linear.make_estimator(tmp_path)
        train_and_evaluate.train_and_evaluate(
            runner, train_spec, spec.EvalSpec(linear.eval_input_fn)
        )
    assert len((tmp_path / "eval" / "eval.jsonl").read_text().splitlines()) == 1


def test_a_given_checkpoint_is_evaluated_instead_of_the_latest(tmp_path):
    runner = linear.make_estimator(tmp_path)
    runner.train(linear.train_input_fn, 20)
    path = checkpoints.path_of(str(tmp_path), 10)
    assert (
        runner.evaluate(linear.eval_input_fn, checkpoint_path=path)["global_step"] == 10
    )


def test_averages_are_evaluated_if_there_are_any(make_estimator, tmp_path):
    class Averaged(linear.Descent):
        def __init__(self, network):
            super().__init__(network)
            for v in network.variables:
                name = f"averages/{replicas.variable_path(v)}"
                self.variables[name] = tf.Variable(tf.zeros(v.shape))

    runner = make_estimator(tmp_path, update_fn=Averaged)
    runner.train(linear.train_input_fn, 10)
    assert runner.evaluate(linear.eval_input_fn)["mean_output"] == 0


def test_predictions_are_those_of_the_checkpoint(make_estimator, tmp_path):
    runner = make_estimator(tmp_path)
    weights = _weights(runner.train(linear.train_input_fn, 10))
    x, _ = linear.examples()

    def input_fn(params):
        data = tf.data.Dataset.from_tensor_slices(x)
        return data.batch(params["batch_size"], drop_remainder=True)

    outputs = np.concatenate([batch["outputs"] for batch in runner.predict(input_fn)])
    expected = x @ weights["linear/matrix"] + weights["linear/bias"]
    np.testing.assert_allclose(outputs, expected, rtol=1e-5, atol=1e-5)


def test_an_export_appears_whole_under_a_ten_digit_name(tmp_path):
    runner = linear.make_estimator(tmp_path)
    runner.train(linear.train_input_fn, 10)

    def serving_fn(network, params):
        fn = tf.function(lambda x: {"y": network(x)})
        signature = fn.get_concrete_function(tf.TensorSpec([None, 3], tf.float32))
        return spec.Serving(
            network, {"serving_default": signature}, {"names.txt": "a b"}
        )

    path = runner.export_saved_model(f"{tmp_path}/export/latest", serving_fn)
    assert pathlib.Path(path).name.isdigit() and len(pathlib.Path(path).name) == 10
    assert not list((tmp_path / "export" / "latest").glob("temp-*"))
    assert (pathlib.Path(path) / "assets.extra" / "names.txt").read_text() == "a b"
    served = tf.saved_model.load(path).signatures["serving_default"]
    weights = _weights(checkpoints.latest(str(tmp_path)))
    np.testing.assert_allclose(
        served(tf.ones([1, 3]))["y"][0],
        weights["linear/matrix"].sum() + weights["linear/bias"],
        rtol=1e-5,
    )


def test_a_checkpoint_of_another_network_is_an_error_with_names(tmp_path):
    checkpoints.save(
        str(tmp_path),
        3,
        {"global_step": np.int64(3), "weights/other": np.zeros(2, np.float32)},
    )
    with pytest.raises(ValueError, match=r"another configuration; 4 variables differ"):
        linear.make_estimator(tmp_path).train(linear.train_input_fn, 10)


def test_evaluating_without_a_checkpoint_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="No checkpoint in"):
        linear.make_estimator(tmp_path).evaluate(linear.eval_input_fn)


def test_a_batch_that_replicas_cannot_divide_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="batch of 8 does not divide by 3 replicas"):
        linear.make_estimator(tmp_path, num_replicas=3)


def test_a_save_interval_beyond_the_run_is_an_error(tmp_path):
    runner = linear.make_estimator(tmp_path, save_checkpoints_steps=100)
    with pytest.raises(ValueError, match="never fires"):
        runner.train(linear.train_input_fn, 50)


@pytest.mark.parametrize("every_steps", [15, 40])
def test_an_evaluation_that_is_never_due_is_an_error(tmp_path, every_steps):
    with pytest.raises(ValueError, match="never be due"):
        train_and_evaluate.train_and_evaluate(
            linear.make_estimator(tmp_path),
            spec.TrainSpec(linear.train_input_fn, 30),
            spec.EvalSpec(linear.eval_input_fn, every_steps=every_steps),
        )


def test_model_fn_gets_its_arguments_by_name(tmp_path):
    def model_fn(mode, network, labels, features, unknown):
        raise AssertionError("never called")

    with pytest.raises(ValueError, match=r"requires the arguments \['unknown'\]"):
        linear.make_estimator(tmp_path, fn=model_fn).train(linear.train_input_fn, 10)


def test_the_batch_size_in_params_is_per_replica(make_estimator, tmp_path):
    inputs = []

    def input_fn(params):
        inputs.append((params["batch_size"], params["context"].num_replicas))
        return linear.train_input_fn(params)

    make_estimator(tmp_path, num_replicas=2).train(input_fn, 10)
    assert inputs == [(4, 2)]


def test_a_run_needs_no_local_files(tmp_path):
    model_dir = f"ram://{tmp_path.name}/run"
    runner = linear.make_estimator(model_dir)
    results = train_and_evaluate.train_and_evaluate(
        runner,
        spec.TrainSpec(linear.train_input_fn, 25),
        spec.EvalSpec(linear.eval_input_fn, every_steps=20),
    )
    assert results["global_step"] == 25
    with tf.io.gfile.GFile(f"{model_dir}/eval/eval.jsonl") as file:
        assert len(file.read().splitlines()) == 2


def test_weights_that_are_not_finite_are_not_saved(make_estimator, tmp_path):
    class Exploding(linear.Descent):
        def apply(self, gradients, step):
            scalars = super().apply(gradients, step)
            self._count.assign(tf.where(step == 9, np.inf, self._count))
            return scalars

    runner = make_estimator(tmp_path, update_fn=Exploding)
    with pytest.raises(train_step.DivergedError, match="slots/count; no checkpoint"):
        runner.train(linear.train_input_fn, 25)
    assert checkpoints.steps(str(tmp_path)) == []
