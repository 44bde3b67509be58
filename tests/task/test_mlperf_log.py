import json

import pytest

import toy_data
from retinanet_tpu import errors
from retinanet_tpu.estimator import train_and_evaluate
from retinanet_tpu.task import mlperf_log, run as run_module, summary

BINDINGS = (
    *toy_data.TWO_LEVELS,
    "EVAL_EVERY = 2",
    "TrainingPlan.num_visualized_images = 0",
    "TrainingPlan.early_stopping = @EarlyStopping()",
    "EarlyStopping.target = 1.0",
    "make_run.mlperf_log = @MLPerfLog()",
    "MLPerfLog.hyperparameters = {'opt_name': 'adam', 'opt_weight_decay': 0.01}",
)


def read(model_dir):
    """Returns the records of the log, each line of which must be one."""
    lines = (model_dir / mlperf_log.FILE).read_text().splitlines()
    assert all(line.startswith(":::MLLOG {") for line in lines)
    return [json.loads(line.removeprefix(":::MLLOG ")) for line in lines]


def values(records):
    return {record["key"]: record["value"] for record in records}


@pytest.mark.slow  # It trains.
def test_the_log_of_a_run_has_its_start_epochs_evaluations_and_end(tmp_path):
    data_dir = toy_data.write(tmp_path / "data")
    run = toy_data.make_run(tmp_path / "run", data_dir, *BINDINGS)
    train_spec, eval_spec = mlperf_log.add_log(run, run.eval_spec)
    train_and_evaluate.train_and_evaluate(run.estimator, train_spec, eval_spec)
    records = read(tmp_path / "run")
    epoch = ["block_start", "epoch_start", "epoch_stop", "block_stop"]
    epoch += ["eval_start", "eval_accuracy", "eval_stop"]
    keys = [record["key"] for record in records]
    start = keys.index("run_start")
    assert keys[0] == "init_start" and keys[start - 1] == "init_stop"
    assert keys[start:] == ["run_start", *epoch, *epoch, "run_stop"]
    assert [r["metadata"].get("epoch_num") for r in records if r["key"] in epoch] == [
        *(None, 1, 1, None, 1, 1, 1),
        *(None, 2, 2, None, 2, 2, 2),
    ]
    assert records[-1]["metadata"] == {"status": "aborted"}
    assert {
        "train_samples": toy_data.NUM_TRAIN,
        "eval_samples": toy_data.NUM_VAL,
        "global_batch_size": 8,
        "opt_name": "adam",
        "opt_weight_decay": 0.01,
        "cache_clear": False,
    }.items() <= values(records).items()
    times = [record["time_ms"] for record in records]
    assert times == sorted(times)
    lines = (tmp_path / "run/eval/eval.jsonl").read_text().splitlines()
    logged = [r["value"] for r in records if r["key"] == "eval_accuracy"]
    assert logged == [json.loads(line)["AP"] for line in lines]


def make_events(tmp_path):
    settings = run_module.MLPerfLog(hyperparameters={})
    writer = mlperf_log.Writer(str(tmp_path / mlperf_log.FILE), clock=lambda: 1.5)
    return mlperf_log.RunEvents(
        settings, writer, target=0.34, epoch_steps=10, max_steps=25, facts={"seed": 1}
    )


def test_the_target_ends_the_run_with_success(tmp_path):
    events = make_events(tmp_path)
    events.start(0)
    events.start(0)  # After the loss of a device; the run goes on.
    for step, ap in ((10, 0.33), (20, 0.34)):
        events.save("", step)
        events.evaluate(f"model.ckpt-{step}", {"AP": ap})
    records = read(tmp_path)
    keys = [record["key"] for record in records]
    assert keys.count("run_start") == 1 and keys.count("epoch_start") == 2
    assert keys[-1] == "run_stop"
    assert records[-1]["metadata"] == {"status": "success"}
    assert records[-1]["time_ms"] == 1500


def test_a_shorter_last_epoch_counts_and_other_saves_do_not(tmp_path):
    events = make_events(tmp_path)
    for step in (5, 20, 24, 25):
        events.save("", step)
    stops = [r for r in read(tmp_path) if r["key"] == "epoch_stop"]
    assert [stop["metadata"]["epoch_num"] for stop in stops] == [2, 3]


@pytest.mark.parametrize("binding", ["EVAL_EVERY = None", None])
def test_a_log_without_evaluations_of_the_trainer_is_an_error(tmp_path, binding):
    data_dir = toy_data.write(tmp_path / "data")
    bindings = [*BINDINGS, *([binding] if binding else [])]
    run = toy_data.make_run(tmp_path / "run", data_dir, *bindings)
    with pytest.raises(errors.UserError, match="MLPerfLog needs an evaluation"):
        mlperf_log.add_log(run, run.eval_spec if binding else None)


@pytest.mark.parametrize(
    "binding",
    [
        "EarlyStopping.target = None",
        "TrainingPlan.early_stopping = None",
        "EarlyStopping.metric = 'AP50'",
    ],
)
def test_a_log_without_an_ap_that_ends_the_run_is_an_error(tmp_path, binding):
    data_dir = toy_data.write(tmp_path / "data")
    run = toy_data.make_run(tmp_path / "run", data_dir, *BINDINGS, binding)
    for check in (mlperf_log.add_log, mlperf_log.check_settings):
        with pytest.raises(errors.UserError, match="MLPerfLog needs an AP that ends"):
            check(run, run.eval_spec)
    with pytest.raises(errors.UserError, match="MLPerfLog needs an AP that ends"):
        summary.summarize_run()


def test_a_run_without_the_setting_has_no_log(tmp_path):
    data_dir = toy_data.write(tmp_path / "data")
    run = toy_data.make_run(tmp_path / "run", data_dir)
    specs = mlperf_log.add_log(run, run.eval_spec)
    assert specs == (run.train_spec, run.eval_spec)
