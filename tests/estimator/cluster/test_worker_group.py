import json
import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf

import linear
import worker_processes
from retinanet_tpu.estimator.cluster import strategy, worker_group
from retinanet_tpu.estimator.model_dir import checkpoints

pytestmark = pytest.mark.long

LINEAR = pathlib.Path(linear.__file__).parent / "linear_worker.py"
CLUSTER = {"worker": ["a:1", "b:1"]}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Returns the reports of two workers and the model_dir of each."""
    directory = tmp_path_factory.mktemp("pair")
    dirs = [directory / "chief", directory / "other"]
    addresses = [f"localhost:{port}" for port in worker_processes.free_ports(2)]
    started = [
        worker_processes.Worker(
            str(LINEAR),
            str(model_dir),
            log=directory / f"{index}.log",
            tf_config=worker_processes.tf_config(addresses, index),
            num_devices=2,
        )
        for index, model_dir in enumerate(dirs)
    ]
    try:
        for worker in started:
            assert worker.wait(300) == 0, worker.tail()
    finally:
        for worker in started:
            worker.kill()
    reports = []
    for worker in started:
        lines = re.findall(r"^{.*}$", worker.log.read_text(), re.M)
        reports.append({k: v for x in lines for k, v in json.loads(x).items()})
    return reports, dirs


@pytest.fixture
def tf_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    return lambda text: monkeypatch.setenv("TF_CONFIG", text)


def test_without_a_cluster_there_is_one_worker(tf_config):
    assert worker_group.count_in_environment() == 1
    for text in ("", "{}", '{"cluster": {}}', '{"cluster": {"worker": ["a:1"]}}'):
        tf_config(text)
        assert worker_group.count_in_environment() == 1


def test_the_chief_is_one_of_the_workers(tf_config):
    cluster = {"chief": ["c:1"], "worker": ["a:1", "b:1"]}
    task = {"type": "worker", "index": 1}
    tf_config(json.dumps({"cluster": cluster, "task": task}))
    assert worker_group.count_in_environment() == 3


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "TF_CONFIG is not the JSON of a cluster"),
        ("[]", "TF_CONFIG is not the JSON of a cluster"),
        ('{"cluster": ["a:1"]}', "TF_CONFIG is not the JSON of a cluster"),
        ('{"cluster": {"worker": 2}}', "TF_CONFIG is not the JSON of a cluster"),
        ({"ps": ["p:1"], **CLUSTER}, r"TF_CONFIG contains \['ps'\]"),
        ((CLUSTER, "evaluator", 0), r"\['evaluator'\].*evaluate.py runs"),
        (
            (CLUSTER, "worker", 2),
            r"contains worker 2 as this task, but the cluster has.*'worker': 2",
        ),
        ((CLUSTER, "chief", 0), "contains chief 0 as this"),
        (CLUSTER, "contains None None as this"),
    ],
)
def test_an_invalid_tf_config_is_an_error(tf_config, config, message):
    if isinstance(config, dict):
        config = json.dumps({"cluster": config})
    if isinstance(config, tuple):
        cluster, kind, index = config
        task = {"type": kind, "index": index}
        config = json.dumps({"cluster": cluster, "task": task})
    tf_config(config)
    with pytest.raises(ValueError, match=message):
        strategy.make_strategy("cpu")
    assert strategy.make_strategy("cpu", single_process=True).num_replicas_in_sync == 1


def test_a_strategy_of_workers_must_be_made_before_tensorflow_starts(tf_config):
    tf.config.list_logical_devices()  # This starts TensorFlow.
    task = {"type": "worker", "index": 0}
    tf_config(json.dumps({"cluster": CLUSTER, "task": task}))
    with pytest.raises(ValueError, match="make_strategy must be called before"):
        strategy.make_strategy("cpu")


def test_a_single_worker_needs_no_other():
    alone = worker_group.Workers()
    assert (alone.count, alone.index, alone.is_chief) == (1, 0, True)
    assert alone.synchronized_stop_reason(lambda: None)() is None
    assert alone.synchronized_stop_reason(lambda: "enough")() == "enough"
    assert alone.any_worker(True) and not alone.any_worker(False)
    alone.check_same(3, "Three")
    alone.check_alone()


def test_each_worker_has_its_index(pair):
    for index, report in enumerate(pair[0]):
        assert (report["count"], report["index"]) == (2, index)
        assert report["is_chief"] == (index == 0)


def test_workers_exchange_numbers_and_stop_reasons(pair):
    for report in pair[0]:
        assert report["gathered"] == [10, 11]
        assert report["any"] == [True, False]
        assert re.match(r"The index must be.* but is \[0, 1\]", report["different"])
    assert [report["reason"] for report in pair[0]] == [
        "worker 1 was asked to stop",
        "enough",
    ]


def test_workers_train_the_weights_of_one_process_with_the_same_batch(pair, tmp_path):
    alone = linear.make_estimator(tmp_path).train(linear.train_input_fn, 12)
    expected = checkpoints.read(alone)
    trained = checkpoints.read(checkpoints.latest(str(pair[1][0])))
    assert trained.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(trained[name], value, rtol=1e-5)


def test_only_the_chief_writes(pair):
    chief, other = pair[1]
    assert checkpoints.steps(str(chief)) == [10, 12]
    assert list(chief.glob("events*")) and (chief / "run_state.json").exists()
    assert not other.exists()


def test_workers_that_see_different_checkpoints_stop_at_once(pair):
    for report in pair[0]:
        assert re.match(
            r"The step of the latest.* but is \[12, 0\]", report["elsewhere"]
        )


def test_workers_refuse_to_evaluate(pair):
    for report in pair[0]:
        assert re.search(
            "has 2 workers.*TrainingPlan.evaluate_during_training = False",
            report["evaluation"],
        )
