import contextlib
import json

import numpy as np
import pytest
import tensorflow as tf

import linear
from retinanet_tpu import errors
from retinanet_tpu.estimator import (
    exporters,
    spec,
    summaries,
    train_and_evaluate,
    train_step,
)
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints, run_state


def run(runner, max_steps=25, *, listeners=(), eval_spec=None, **more):
    train_spec = spec.TrainSpec(linear.train_input_fn, max_steps, tuple(listeners))
    return train_and_evaluate.train_and_evaluate(runner, train_spec, eval_spec, **more)


def make_runner(model_dir, **more):
    return linear.make_estimator(model_dir, restart_secs=0, **more)


def evaluated_steps(model_dir):
    return [r["global_step"] for r in summaries.read_evaluations(f"{model_dir}/eval")]


def serving_fn(network, params):
    fn = tf.function(lambda x: {"y": network(x)})
    signature = fn.get_concrete_function(tf.TensorSpec([None, 3], tf.float32))
    return spec.Serving(network, {"serving_default": signature})


class Failing:
    """A listener that fails at the first saves of some steps."""

    def __init__(self, steps, error=tf.errors.UnavailableError):
        self._steps, self._error = list(steps), error

    def __call__(self, path, step):
        if step in self._steps:
            self._steps.remove(step)
            raise self._error(None, None, "the worker was reset")


@pytest.mark.parametrize("error", [tf.errors.UnavailableError, tf.errors.AbortedError])
def test_after_a_loss_of_the_devices_the_run_ends_with_the_same_bits(tmp_path, error):
    run(make_runner(tmp_path / "a"))
    runner = make_runner(tmp_path / "b")
    strategies = []
    runner._strategy_fn = lambda: strategies.append(runner.strategy) or runner.strategy
    run(runner, listeners=[Failing([10, 10, 20], error)])
    assert len(strategies) == 2  # Step 10 is saved once.
    expected = checkpoints.read(checkpoints.latest(str(tmp_path / "a")))
    got = checkpoints.read(checkpoints.latest(str(tmp_path / "b")))
    for name, value in expected.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
    assert run_state.read(str(tmp_path / "b"))[:2] == ("finished", 25)


def test_device_losses_without_progress_are_limited(tmp_path, caplog):
    def input_fn(params):
        raise tf.errors.UnavailableError(None, None, "no such worker")

    runner = make_runner(tmp_path, max_restarts=2)
    with pytest.raises(tf.errors.UnavailableError, match="no such worker"):
        train_and_evaluate.train_and_evaluate(
            runner, spec.TrainSpec(input_fn, 25), None
        )
    assert caplog.text.count("Lost the devices") == 2
    assert run_state.read(str(tmp_path))[:2] == ("failed", 0)


def test_progress_resets_the_count_of_device_losses(tmp_path):
    runner = make_runner(tmp_path, max_restarts=1, save_checkpoints_steps=4)
    run(runner, listeners=[Failing([4, 8, 12, 16])])
    assert run_state.read(str(tmp_path))[:2] == ("finished", 25)


def test_a_preempted_run_records_it_and_finishes_after_a_restart(tmp_path):
    reasons = iter([None, None, "signal SIGTERM"])
    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        run(make_runner(tmp_path), stop_reason=lambda: next(reasons))
    assert run_state.read(str(tmp_path))[:2] == ("preempted", 8)
    run(make_runner(tmp_path))
    assert run_state.read(str(tmp_path))[:2] == ("finished", 25)


def test_a_trainer_that_lost_its_claim_saves_nothing_more(tmp_path):
    state = run_state.RunState("running", 10, 99, claim="another")

    def claim(path, step):
        run_state.write(str(tmp_path), state)

    with pytest.raises(run_state.ClaimLostError, match="since step 10 is not saved"):
        run(make_runner(tmp_path), listeners=[claim])
    assert checkpoints.steps(str(tmp_path)) == [10]
    assert run_state.read(str(tmp_path)) == state


def test_prepare_runs_only_in_the_only_trainer_of_a_complete_run(tmp_path):
    prepared = []

    def prepare():
        prepared.append(run_state.read(str(tmp_path)).state)
        raise KeyError

    with pytest.raises(KeyError):
        run(make_runner(tmp_path), prepare=prepare)
    assert prepared == ["running"]
    run_state.write(str(tmp_path), run_state.RunState("preempted", 7, 99))
    with pytest.raises(errors.UserError, match="lacks the checkpoint of step 7"):
        run(make_runner(tmp_path), prepare=prepare)
    assert prepared == ["running"]


@pytest.mark.parametrize("is_diverged", [True, False])
def test_a_failed_run_records_it(tmp_path, is_diverged):
    error = train_step.DivergedError("inf", 7) if is_diverged else ValueError("no")

    def fail(path, step):
        raise error

    with pytest.raises(type(error)):
        run(make_runner(tmp_path), listeners=[fail])
    assert run_state.read(str(tmp_path))[:2] == ("failed", 10)


@pytest.mark.long
def test_an_interrupted_evaluation_is_repeated(tmp_path):
    is_evaluating = []

    def eval_input_fn(params):
        is_evaluating.append(True)
        return linear.eval_input_fn(params)

    eval_spec = spec.EvalSpec(eval_input_fn, every_steps=10)
    with pytest.raises(preemption.Preempted):
        run(
            make_runner(tmp_path),
            eval_spec=eval_spec,
            stop_reason=lambda: "enough" if is_evaluating else None,
        )
    assert evaluated_steps(tmp_path) == []
    assert run_state.read(str(tmp_path))[:2] == ("preempted", 10)
    run(make_runner(tmp_path), eval_spec=eval_spec)
    assert evaluated_steps(tmp_path) == [10, 20, 25]
    assert run(make_runner(tmp_path), eval_spec=eval_spec) is None
    assert evaluated_steps(tmp_path) == [10, 20, 25]


class KilledError(Exception):
    """Simulates the end of the process."""


@pytest.mark.long
def test_a_missing_export_is_made_at_the_next_start(tmp_path, monkeypatch):
    eval_spec = spec.EvalSpec(
        linear.eval_input_fn,
        every_steps=10,
        exporters=(
            exporters.BestExporter(serving_fn, metric="loss", is_lower_better=True),
            exporters.FinalExporter(serving_fn),
        ),
    )

    def killed(*args, **kwargs):
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(exporters, "export_saved_model", killed)
        run(make_runner(tmp_path), eval_spec=eval_spec)
    run(make_runner(tmp_path), eval_spec=eval_spec)
    assert evaluated_steps(tmp_path) == [10, 20, 25]
    for name in ("best", "final"):
        (listed,) = exporters.list_exports(f"{tmp_path}/export/{name}")
        assert listed.step == 25  # The loss of this model falls all the time.
    losses = {
        r["global_step"]: r["loss"]
        for r in summaries.read_evaluations(f"{tmp_path}/eval")
    }
    (best,) = exporters.list_exports(f"{tmp_path}/export/best")
    assert best.value == losses[25] == min(losses.values())


def test_a_run_with_exports_needs_no_local_files(tmp_path):
    model_dir = f"ram://{tmp_path.name}/run"
    eval_spec = spec.EvalSpec(
        linear.eval_input_fn,
        every_steps=10,
        exporters=(exporters.LatestExporter(serving_fn, exports_to_keep=1),),
    )
    with contextlib.suppress(KilledError):
        run(
            make_runner(model_dir, keep_checkpoint_max=2),
            eval_spec=eval_spec,
            listeners=[Failing([20], lambda *args: KilledError())],
        )
    assert run_state.read(model_dir)[:2] == ("failed", 20)
    runner = make_runner(model_dir, keep_checkpoint_max=2)
    assert run(runner, eval_spec=eval_spec)["global_step"] == 25
    assert checkpoints.steps(model_dir) == [20, 25]
    assert evaluated_steps(model_dir) == [10, 20, 25]
    assert run_state.read(model_dir)[:2] == ("finished", 25)
    (listed,) = exporters.list_exports(f"{model_dir}/export/latest")
    with tf.io.gfile.GFile(f"{model_dir}/export/latest/exports.json") as file:
        assert json.loads(file.read()) == [listed._asdict()]
    served = tf.saved_model.load(f"{model_dir}/export/latest/{listed.version}")
    weights = checkpoints.read(f"{model_dir}/model.ckpt-25", "weights/")
    np.testing.assert_allclose(
        served.signatures["serving_default"](x=tf.eye(3))["y"],
        weights["linear/matrix"] + weights["linear/bias"],
        rtol=1e-5,
    )


def test_exporters_of_one_name_are_an_error_before_the_first_step(tmp_path):
    pair = (exporters.LatestExporter(serving_fn, "x"),) * 2
    with pytest.raises(ValueError, match="give each its own name"):
        run(
            make_runner(tmp_path),
            eval_spec=spec.EvalSpec(linear.eval_input_fn, exporters=pair),
        )


@pytest.mark.slow
def test_evaluations_do_not_increase_the_memory_of_a_trainer(tmp_path):
    def eval_input_fn(params):
        ballast = tf.ones([2_000_000])  # 8 MB, for as long as the dataset lives.
        data = linear.eval_input_fn(params)
        return data.map(lambda x, y: (x * ballast[0], y))

    def record_memory(path, step):
        with open("/proc/self/statm") as file:
            resident.append(int(file.read().split()[1]) * 4096)

    resident = []
    run(
        make_runner(tmp_path, save_checkpoints_steps=1, keep_checkpoint_max=1),
        max_steps=14,
        listeners=[record_memory],
        eval_spec=spec.EvalSpec(eval_input_fn, every_steps=1),
    )
    assert max(resident[8:]) - resident[4] < 24e6, resident
