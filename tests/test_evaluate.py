"""Tests the command `evaluate` on checkpoints of an untrained network."""

import os
import re
import signal
import threading

import pytest
import tensorflow as tf
from absl import flags, logging
from absl.testing import flagsaver

import toy_data
from retinanet_tpu import evaluate
from retinanet_tpu.data import pipeline
from retinanet_tpu.estimator import sidecar, summaries, tpu_estimator, train_step
from retinanet_tpu.estimator.model_dir import run_state
from retinanet_tpu.task import cli

BINDINGS = (*toy_data.TWO_LEVELS, "TrainingPlan.num_visualized_images = 0")


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return toy_data.write(tmp_path_factory.mktemp("data"))


@pytest.fixture
def model_dir(tmp_path, data_dir):
    """Returns the directory of a run on a TPU, finished at step 4."""
    run = toy_data.make_run(tmp_path / "run", data_dir, *BINDINGS)
    network = run.make_network()
    state = train_step.TrainState(network, run.update_fn(network))
    (tmp_path / "run").mkdir()
    for state.step in (2, 4):
        state.save(str(tmp_path / "run"))
    tpu = "make_strategy.device = 'tpu'"
    text = toy_data.parse(data_dir, *BINDINGS, tpu)
    (tmp_path / "run" / cli.CONFIG_FILE).write_text(text)
    write_state(tmp_path / "run", run_state.FINISHED)
    return tmp_path / "run"


def write_state(model_dir, state, beat=1):
    run_state.write(str(model_dir), run_state.RunState(state, 4, beat))


@pytest.fixture
def main():
    """Returns a function that runs the command with flags."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    verbosity = logging.get_verbosity()
    handlers = {number: signal.getsignal(number) for number in numbers}

    def run(model_dir, **settings):
        if not flags.FLAGS.is_parsed():
            flags.FLAGS(["test"])
        with flagsaver.flagsaver(model_dir=str(model_dir), **settings):
            evaluate.main()

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.set_verbosity(verbosity)


def evaluated_steps(model_dir):
    records = summaries.read_evaluations(f"{model_dir}/eval")
    return [record["global_step"] for record in records]


@pytest.mark.long
def test_a_finished_run_is_evaluated_once_and_then_logged(model_dir, main, caplog):
    logging.set_verbosity(logging.INFO)
    main(model_dir, policy="every_k", every_k_steps=2)
    assert evaluated_steps(model_dir) == [2, 4]
    assert "is already evaluated" not in caplog.text
    main(model_dir)
    main(model_dir, once=True)
    assert evaluated_steps(model_dir) == [2, 4]
    assert (
        caplog.text.count("model.ckpt-4 is already evaluated\n Average Precision") == 2
    )


@pytest.mark.long
def test_a_given_checkpoint_is_evaluated_again(model_dir, main):
    before = {"global_step": 2, "AP": 0.123}
    summaries.write_evaluation(f"{model_dir}/eval", "model.ckpt-2", before, secs=1)
    main(model_dir, checkpoint=f"{model_dir}/model.ckpt-2")
    (record,) = summaries.read_evaluations(f"{model_dir}/eval")
    assert record["global_step"] == 2 and record["AP"] != 0.123
    assert not os.listdir(model_dir / "leases")


@pytest.fixture
def no_evaluation(monkeypatch):
    """Makes the sidecar select no checkpoints."""
    monkeypatch.setattr(sidecar, "select_steps", lambda *args, **kwargs: [])


@pytest.mark.long
@pytest.mark.parametrize(
    ("state", "code", "sentence"),
    [
        (run_state.RUNNING, 3, "No heartbeat from the trainer of .* for 1 s; its"),
        (run_state.PREEMPTED, 3, "was preempted at step 4 and has not resumed for 1"),
        (run_state.FAILED, 4, "failed at step 4; its checkpoints are evaluated"),
    ],
)
def test_a_trainer_that_does_not_finish_has_an_exit_code_and_a_message(
    model_dir, main, no_evaluation, capsys, state, code, sentence
):
    write_state(model_dir, state)
    with pytest.raises(SystemExit) as ended:
        main(model_dir, timeout_secs=1, preemption_secs=1)
    assert ended.value.code == code
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "error: " in x]
    assert re.search(sentence, line)


def test_waiting_for_a_run_to_start_times_out(tmp_path, main, capsys):
    with pytest.raises(SystemExit) as ended:
        main(tmp_path, timeout_secs=1)
    assert ended.value.code == 3
    assert "config.gin did not appear within 1 s" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_releases_the_lease(model_dir, main, monkeypatch, name, code):
    def evaluate_and_be_stopped(self, *args, **kwargs):
        assert os.listdir(model_dir / "leases")
        os.kill(os.getpid(), getattr(signal, name))

    monkeypatch.setattr(tpu_estimator.TPUEstimator, "evaluate", evaluate_and_be_stopped)
    with pytest.raises(SystemExit) as ended:
        main(model_dir)
    assert ended.value.code == code
    assert not os.listdir(model_dir / "leases") and evaluated_steps(model_dir) == []


def test_sigterm_is_handled_while_waiting_for_data(model_dir, main, monkeypatch):
    is_over = threading.Event()

    def wait():
        os.kill(os.getpid(), signal.SIGTERM)
        is_over.wait()

    def stall(*batch):
        tf.py_function(wait, [], [])
        return batch

    def leave(code):
        raise SystemExit(code)

    make_dataset = pipeline.make_eval_dataset
    monkeypatch.setattr(
        pipeline, "make_eval_dataset", lambda *x, **y: make_dataset(*x, **y).map(stall)
    )
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit) as ended:
        main(model_dir)
    is_over.set()
    assert ended.value.code == 143
    assert not os.listdir(model_dir / "leases") and evaluated_steps(model_dir) == []


@pytest.mark.parametrize("content", [b'{"global_step": 4}', b'{"global_step": "4"}'])
def test_a_line_without_results_is_an_error(model_dir, main, no_evaluation, content):
    (model_dir / "eval").mkdir()
    (model_dir / "eval" / "eval.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=r"eval\.jsonl lacks results of step 4"):
        main(model_dir, once=True)


def test_every_k_needs_its_number(model_dir, main):
    with pytest.raises(ValueError, match="every_k_steps is None"):
        main(model_dir, policy="every_k")
