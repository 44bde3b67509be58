import json

import pytest
import tensorflow as tf

import linear
from retinanet_tpu import errors
from retinanet_tpu.estimator import early_stopping, exporters, sidecar, spec
from retinanet_tpu.estimator.model_dir import checkpoints, run_state
from retinanet_tpu.estimator.train_and_evaluate import train_and_evaluate

# The loss falls, so its highest value is that of the first evaluation.
FIRST_IS_BEST = early_stopping.EarlyStopping(patience=3, metric="loss")
EVERY_5 = spec.EvalSpec(linear.eval_input_fn, every_steps=5)


def run(model_dir, stopping, eval_spec=EVERY_5, max_steps=50, listeners=(), **config):
    estimator = linear.make_estimator(
        model_dir, save_checkpoints_steps=5, keep_checkpoint_max=2, **config
    )
    train_spec = spec.TrainSpec(
        linear.train_input_fn, max_steps, tuple(listeners), stopping
    )
    return train_and_evaluate(estimator, train_spec, eval_spec)


def serving_fn(network, params):
    fn = tf.function(lambda x: {"y": network(x)})
    signature = fn.get_concrete_function(tf.TensorSpec([None, 3], tf.float32))
    return spec.Serving(network, {"serving_default": signature})


def state(model_dir):
    return run_state.read(str(model_dir))[:2]


def test_a_run_ends_after_as_many_worse_evaluations_as_its_patience(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    exporter = exporters.FinalExporter(serving_fn)
    results = run(tmp_path, FIRST_IS_BEST, EVERY_5._replace(exporters=(exporter,)))
    assert results["global_step"] == 20
    assert state(tmp_path) == ("finished", 20)
    assert "Ended at step 20: loss was best at step 5" in caplog.text
    (export,) = (tmp_path / "export/final").glob("[0-9]*")
    assert '"step": 20' in (tmp_path / "export/final/exports.json").read_text()
    assert export.is_dir()


def test_the_best_checkpoint_is_kept(tmp_path):
    run(tmp_path, FIRST_IS_BEST)
    assert checkpoints.steps(str(tmp_path)) == [5, 15, 20]


def test_a_run_that_improves_trains_to_its_last_step(tmp_path):
    falling = early_stopping.EarlyStopping(1, "loss", is_lower_better=True)
    run(tmp_path, falling, max_steps=30)
    assert state(tmp_path) == ("finished", 30)


def test_the_next_start_of_an_ended_run_trains_nothing(tmp_path):
    run(tmp_path, FIRST_IS_BEST)
    assert run(tmp_path, FIRST_IS_BEST) is None
    assert state(tmp_path) == ("finished", 20)
    # With more patience it goes on.
    run(tmp_path, early_stopping.EarlyStopping(5, "loss"))
    assert state(tmp_path) == ("finished", 30)


def test_evaluations_of_another_process_end_a_run(tmp_path):
    (tmp_path / "eval").mkdir()

    def evaluate_too(path, step):
        with open(tmp_path / "eval/eval.jsonl", "a") as file:
            file.write(json.dumps({"global_step": step, "AP": 1 / step}) + "\n")

    run(tmp_path, early_stopping.EarlyStopping(2), None, listeners=[evaluate_too])
    assert state(tmp_path) == ("finished", 15)


def test_a_sidecar_makes_the_final_export_of_a_run_that_ends_early(tmp_path):
    run(tmp_path, FIRST_IS_BEST)
    (tmp_path / "eval/eval.jsonl").unlink()
    ended = run_state.read(str(tmp_path))
    # The sidecar evaluates step 20 before the trainer writes that it has ended.
    run_state.write(str(tmp_path), ended._replace(state=run_state.RUNNING))
    exporter = exporters.FinalExporter(serving_fn)
    sidecar_run = sidecar.Sidecar(
        linear.make_estimator(tmp_path),
        EVERY_5._replace(exporters=(exporter,)),
        max_steps=50,
        sleep=lambda secs: run_state.write(str(tmp_path), ended),
    )
    assert sidecar_run.run() == [20, 20]
    assert '"step": 20' in (tmp_path / "export/final/exports.json").read_text()


@pytest.mark.parametrize(
    ("values", "is_lower_better", "best"),
    [
        ([0.1, 0.3, 0.2], False, 1),
        ([0.1, 0.3, 0.3], False, 1),
        ([0.2, 0.1, 0.1], True, 1),
        ([float("nan"), 0.0, None], False, 1),
        ([None, 5.0, float("inf")], True, 1),
        ([None, None], False, 0),
    ],
)
def test_the_best_evaluation_is_the_first_of_the_best_finite_number(
    values, is_lower_better, best
):
    rule = early_stopping.EarlyStopping(1, "x", is_lower_better)
    assert rule.best([{"x": value} for value in values]) == best


@pytest.mark.parametrize(
    ("values", "is_lower_better", "reached"),
    [
        ([0.1, 0.34, 0.5], False, 1),
        ([0.1, 0.33], False, None),
        ([None, float("nan"), 0.4], False, 2),
        ([0.5, 0.3, 0.2], True, 1),
        ([float("-inf"), None], True, None),
        ([], False, None),
    ],
)
def test_the_target_is_reached_by_the_first_evaluation_at_or_beyond_it(
    values, is_lower_better, reached
):
    rule = early_stopping.EarlyStopping(1, "x", is_lower_better, target=0.34)
    assert rule.reached([{"x": value} for value in values]) == reached


def test_a_run_ends_at_the_evaluation_that_reaches_the_target(tmp_path, caplog):
    caplog.set_level("INFO", logger="absl")
    run(tmp_path / "all", None, max_steps=20)
    records = map(json.loads, (tmp_path / "all/eval/eval.jsonl").open())
    losses = {record["global_step"]: record["loss"] for record in records}
    rule = early_stopping.EarlyStopping(9, "loss", True, target=losses[10])
    run(tmp_path / "run", rule, max_steps=20)
    assert state(tmp_path / "run") == ("finished", 10)
    assert "Ended at step 10: loss is" in caplog.text


@pytest.mark.parametrize("metric", ["AP", "checkpoint"])
def test_a_metric_that_is_no_number_of_an_evaluation_is_an_error(tmp_path, metric):
    message = f"metric is '{metric}', .*; use one of loss, mean_output, num_outputs"
    with pytest.raises(errors.UserError, match=message):
        run(tmp_path, early_stopping.EarlyStopping(3, metric))


def test_the_best_checkpoint_is_kept_if_its_result_is_late(tmp_path):
    (tmp_path / "eval").mkdir()

    def evaluate_too(path, step):
        # The sidecar is one checkpoint behind.
        record = {"global_step": step - 5, "AP": 1 / step}
        with open(tmp_path / "eval/eval.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n" if step > 5 else "")

    rule = early_stopping.EarlyStopping(4)
    run(tmp_path, rule, None, listeners=[evaluate_too], max_steps=40)
    assert checkpoints.steps(str(tmp_path))[0] == 5


def test_early_stopping_without_evaluations_is_an_error(tmp_path):
    only_at_the_end = EVERY_5._replace(every_steps=None)
    with pytest.raises(errors.UserError, match="set EVAL_EVERY"):
        run(tmp_path, FIRST_IS_BEST, only_at_the_end)


def test_a_patience_below_1_is_an_error():
    with pytest.raises(errors.UserError, match="patience is 0"):
        early_stopping.EarlyStopping(0)
