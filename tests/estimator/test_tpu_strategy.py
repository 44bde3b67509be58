"""The connection to a TPU; TensorFlow's calls that need one are replaced."""

import functools
import signal
import types

import pytest
import tensorflow as tf
from absl import logging

import commands
import linear
import toy_data
from retinanet_tpu import evaluate
from retinanet_tpu.estimator import gin_files, spec, train_and_evaluate
from retinanet_tpu.estimator.cluster import strategy, tpu_nodes
from retinanet_tpu.estimator.model_dir import run_state
from retinanet_tpu.task import cli, configurables

POD = "grpc://10.0.0.2:8470,grpc://10.0.0.3:8470"


class TPUs:
    """Records the calls of TensorFlow in order; each TPU is a CPU."""

    def __init__(self, monkeypatch):
        self.calls, self.hosts = [], []
        tpus = self

        def connect(resolver):
            self.calls.append("connect")

        def initialize(resolver):
            self.calls.append("initialize")
            self.hosts.append(resolver.cluster_spec().as_dict().get("worker", []))
            return types.SimpleNamespace(mesh_shape=[2, 2, 1, 2])

        class TPUStrategy(tf.distribute.OneDeviceStrategy):
            def __init__(self, resolver):
                tpus.calls.append("strategy")
                super().__init__("cpu:0")

        tpu = tf.tpu.experimental
        monkeypatch.setattr(tf.config, "experimental_connect_to_cluster", connect)
        monkeypatch.setattr(tpu, "initialize_tpu_system", initialize)
        monkeypatch.setattr(tf.distribute, "TPUStrategy", TPUStrategy)


@pytest.fixture
def tpus(monkeypatch):
    return TPUs(monkeypatch)


@pytest.fixture
def look_ups(monkeypatch):
    """Records the requests to the Cloud TPU API, which always finds a pod."""
    requests = []

    def wait_until_ready(name, **settings):
        requests.append((name, settings))
        return POD

    monkeypatch.setattr(tpu_nodes, "wait_until_ready", wait_until_ready)
    return requests


def test_a_tpu_vms_own_tpu_is_neither_looked_up_nor_connected_to(
    tpus, look_ups, caplog
):
    caplog.set_level("INFO")
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.INFO)
    assert strategy.make_strategy("tpu").num_replicas_in_sync == 1
    logging.set_verbosity(verbosity)
    assert tpus.calls == ["initialize", "strategy"]
    assert tpus.hosts == [[]] and not look_ups
    assert "TPU local: mesh [2, 2, 1, 2]" in caplog.text


def test_an_address_is_connected_to_and_not_looked_up(tpus, look_ups):
    strategy.make_strategy("tpu", tpu="grpc://10.0.0.9:8470")
    assert tpus.calls == ["connect", "initialize", "strategy"]
    assert tpus.hosts == [["10.0.0.9:8470"]] and not look_ups


def test_a_name_is_looked_up_and_all_hosts_connected_to(tpus, look_ups):
    strategy.make_strategy("tpu", tpu="my-pod", tpu_zone="here-1a", tpu_wait_secs=7)
    settings = {"zone": "here-1a", "project": None, "wait_secs": 7}
    assert look_ups == [("my-pod", settings | {"may_change_version": False})]
    assert tpus.calls == ["connect", "initialize", "strategy"]
    assert tpus.hosts == [["10.0.0.2:8470", "10.0.0.3:8470"]]


def parse(device, *bindings):
    """Configures the tiny network on a device; returns the whole configuration."""
    files = [toy_data.GIN_CONFIGS / name for name in ("quickstart.gin", device)]
    settings = [*toy_data.TINY, *toy_data.TWO_LEVELS, *bindings]
    return gin_files.parse(
        list(map(str, files)), settings, known=configurables.CONFIGURABLES
    )


@pytest.mark.parametrize("device", ["device/tpu_node.gin", "device/tpu_pod.gin"])
def test_the_gin_files_pass_the_name_and_do_not_change_the_tpu(device, tpus, look_ups):
    parse(device, "TPU_NAME = 'my-tpu'")
    configurables.make_run(None)
    ((name, settings),) = look_ups
    assert name == "my-tpu" and settings["may_change_version"] is False
    assert len(tpus.hosts) == 1


def test_a_gin_file_without_a_name_requires_one():
    with pytest.raises(ValueError, match="%TPU_NAME is used, but never set"):
        parse("device/tpu_pod.gin")


def test_the_gin_file_of_a_tpu_vm_uses_its_own_tpu(tpus, look_ups):
    parse("device/tpu_vm.gin")
    configurables.make_run(None)
    assert tpus.hosts == [[]] and not look_ups


@pytest.fixture
def evaluate_once():
    """Runs the sidecar's command; there is no checkpoint to evaluate."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(model_dir):
        with pytest.raises(FileNotFoundError, match="No checkpoint"):
            commands.run(evaluate.main, model_dir, None, once=True)

    yield run
    signal.signal(signal.SIGTERM, handler)


def test_the_sidecar_of_a_run_on_a_tpu_never_touches_it(
    tmp_path, tpus, look_ups, evaluate_once
):
    data_dir = toy_data.write(tmp_path / "data")
    text = parse("device/tpu_node.gin", "TPU_NAME = 'a'", f"DATA_DIR = '{data_dir}'")
    (tmp_path / cli.CONFIG_FILE).write_text(text)
    run_state.write(str(tmp_path), run_state.RunState(run_state.FINISHED, 0, 1))
    evaluate_once(tmp_path)
    assert not look_ups and not tpus.calls
    # The trainer connects to it with the same file.
    gin_files.parse(
        [str(tmp_path / cli.CONFIG_FILE)], [], known=configurables.CONFIGURABLES
    )
    configurables.make_run(None)
    assert len(look_ups) == len(tpus.hosts) == 1


class Preempted:
    """A listener that loses the TPU at the first save."""

    def __init__(self, happen):
        self._happen, self.steps = happen, []

    def __call__(self, path, step):
        self.steps.append(step)
        if len(self.steps) == 1:
            self._happen()
            raise tf.errors.UnavailableError(None, None, "Socket closed")


@pytest.fixture
def cloud(monkeypatch, tmp_path):
    pytest.importorskip("cloud_tpu_client")
    import fake_cloud_tpu

    with fake_cloud_tpu.serve(monkeypatch, tmp_path) as cloud:
        wait = functools.partial(
            tpu_nodes.wait_until_ready, clock=cloud.clock, sleep=cloud.sleep
        )
        monkeypatch.setattr(tpu_nodes, "wait_until_ready", wait)
        cloud.node = fake_cloud_tpu.node
        cloud.set_answers(cloud.node(version=tf.__version__))
        yield cloud


def train(model_dir, happen):
    """Trains on the TPU by name; returns the steps that were saved."""
    runner = linear.make_estimator(model_dir, restart_secs=0)
    tpu = {"tpu": "my-tpu", "tpu_zone": "here-1a", "tpu_project": "mine"}
    runner._strategy_fn = functools.partial(strategy.make_strategy, "tpu", **tpu)
    runner.reconnect()
    lost = Preempted(happen)
    train_spec = spec.TrainSpec(linear.train_input_fn, 20, saving_listeners=[lost])
    train_and_evaluate.train_and_evaluate(runner, train_spec, None)
    return lost.steps


def test_after_a_preemption_the_run_resumes_on_the_recreated_tpu(tmp_path, tpus, cloud):
    def preempt():
        ours = tf.__version__
        coming, anew = cloud.node("CREATING", ours), cloud.node(version=ours, hosts=2)
        cloud.set_answers(cloud.node("PREEMPTED", ours), 404, coming, anew)

    assert train(tmp_path, preempt) == [10, 20]
    assert tpus.hosts == [["10.0.0.2:8470"], ["10.0.0.2:8470", "10.0.0.3:8470"]]


def test_a_tpu_that_never_returns_ends_the_run_in_time(tmp_path, tpus, cloud):
    def preempt():
        cloud.set_answers(cloud.node("PREEMPTED", tf.__version__))

    with pytest.raises(TimeoutError, match=r"PREEMPTED.*gcloud compute tpus delete"):
        train(tmp_path, preempt)
    assert cloud.secs == 1200
    assert run_state.read(str(tmp_path))[:2] == ("failed", 10)
    assert len(tpus.hosts) == 1 and not cloud.changes
