"""Tests of evaluations whose metrics are computed while the trainer trains on."""

import threading
import types

import pytest

import linear
from retinanet_tpu import errors
from retinanet_tpu.estimator import spec, summaries, train_and_evaluate
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints, run_state

TIMEOUT_SECS = 60
NO_SETTINGS = types.MappingProxyType({})


class Metric:
    """A metric_fn that can wait for the trainer, and fail."""

    def __init__(self, *, waits=False, error=None):
        self.has_started = threading.Event()
        self.may_end = threading.Event()
        self.has_failed = threading.Event()
        self.has_timed_out = False
        self.error = error
        self._waits = waits

    def __call__(self, batches):
        self.has_started.set()
        if self._waits:
            self.has_timed_out |= not self.may_end.wait(TIMEOUT_SECS)
        if self.error is not None:
            self.has_failed.set()
            raise self.error
        return linear.mean_output(batches)


class Exporter:
    """An exporter that records its calls, and can fail."""

    name = "test"

    def __init__(self, error=None):
        self.error = error
        self.steps = []

    def export(self, estimator, export_path, checkpoint_path, eval_result, is_final):
        self.steps.append((checkpoints.step_of(checkpoint_path), is_final))
        if self.error is not None:
            raise self.error


def run(model_dir, metric, *, exporters=(), listeners=(), settings=NO_SETTINGS, **more):
    def model_fn(features, labels, mode, network):
        result = linear.model_fn(features, labels, mode, network)
        if mode != spec.ModeKeys.EVAL:
            return result
        return result._replace(eval_metrics=(metric, result.eval_metrics[1]))

    estimator = linear.make_estimator(model_dir, fn=model_fn, **settings)
    return train_and_evaluate.train_and_evaluate(
        estimator,
        spec.TrainSpec(linear.train_input_fn, 25, tuple(listeners)),
        spec.EvalSpec(linear.eval_input_fn, every_steps=10, exporters=exporters),
        **more,
    )


def evaluated_steps(model_dir):
    return [r["global_step"] for r in summaries.read_evaluations(f"{model_dir}/eval")]


def test_the_trainer_trains_while_metrics_are_computed(tmp_path):
    metric, exporter = Metric(waits=True), Exporter()
    loops = []

    def stop_reason():  # Called before each loop; loops have 4 steps.
        loops.extend([1] if metric.has_started.is_set() else [])
        if len(loops) == 2:
            metric.may_end.set()

    result = run(tmp_path, metric, exporters=(exporter,), stop_reason=stop_reason)
    assert not metric.has_timed_out
    assert result["global_step"] == 25 and result["num_outputs"] == linear.NUM_EXAMPLES
    assert evaluated_steps(tmp_path) == [10, 20, 25]
    assert exporter.steps == [(10, False), (20, False), (25, True)]


@pytest.mark.parametrize("error", [errors.UserError("no image"), OSError("no image")])
def test_a_metric_that_fails_loses_no_steps_and_is_repeated(tmp_path, error):
    metric = Metric(waits=True, error=error)
    loops = []

    def stop_reason():  # The metric fails after a loop of four steps.
        loops.extend([1] if metric.has_started.is_set() else [])
        if len(loops) == 2:
            metric.may_end.set()
            metric.has_failed.wait(TIMEOUT_SECS)

    with pytest.raises(type(error), match="no image"):
        run(tmp_path, metric, stop_reason=stop_reason)
    assert evaluated_steps(tmp_path) == []
    assert checkpoints.steps(str(tmp_path)) == [10, 14]
    assert run_state.read(str(tmp_path))[:2] == ("failed", 14)
    run(tmp_path, Metric())
    assert evaluated_steps(tmp_path) == [10, 20, 25]


def test_an_exporter_that_fails_loses_no_steps_and_is_repeated(tmp_path):
    with pytest.raises(OSError, match="disk full"):
        run(tmp_path, Metric(), exporters=(Exporter(OSError("disk full")),))
    steps = checkpoints.steps(str(tmp_path))
    assert steps == [10, 20] and evaluated_steps(tmp_path) == [10]
    exporter = Exporter()
    run(tmp_path, Metric(), exporters=(exporter,))
    assert exporter.steps == [(10, False), (20, False), (25, True)]


def test_a_preempted_trainer_saves_before_the_metrics_end(tmp_path):
    metric, exporter = Metric(waits=True), Exporter()
    saved, loops = [], []

    def stop_reason():
        loops.extend([1] if metric.has_started.is_set() else [])
        return "SIGTERM" if len(loops) > 1 else None

    def listener(path, step):
        saved.append(step)
        if len(saved) == 2:
            metric.may_end.set()

    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        run(
            tmp_path,
            metric,
            exporters=(exporter,),
            listeners=[listener],
            stop_reason=stop_reason,
        )
    assert not metric.has_timed_out and exporter.steps == []
    assert evaluated_steps(tmp_path) == [10]
    assert run_state.read(str(tmp_path))[:2] == ("preempted", saved[-1])
    run(tmp_path, Metric(), exporters=(exporter,))
    assert exporter.steps == [(10, False), (20, False), (25, True)]


def test_a_trainer_that_waits_for_metrics_can_be_preempted(tmp_path):
    metric = Metric(waits=True)
    saved = []

    def stop_reason():  # Step 20 waits for the metrics of step 10.
        if len(saved) == 2:
            metric.may_end.set()
            return "SIGTERM"

    with pytest.raises(preemption.Preempted, match="SIGTERM"):
        run(
            tmp_path,
            metric,
            listeners=[lambda path, step: saved.append(step)],
            stop_reason=stop_reason,
        )
    assert saved == [10, 20] and evaluated_steps(tmp_path) == [10]
    assert run_state.read(str(tmp_path))[:2] == ("preempted", 20)


def test_a_checkpoint_is_kept_until_it_is_exported(tmp_path):
    class ReadingExporter(Exporter):
        def export(self, estimator, export_path, checkpoint_path, *more):
            assert checkpoints.is_complete(checkpoint_path)
            super().export(estimator, export_path, checkpoint_path, *more)

    metric, exporter = Metric(waits=True), ReadingExporter()
    saved = []

    def listener(path, step):
        saved.append(step)
        if step == 12:
            metric.may_end.set()

    settings = {"keep_checkpoint_max": 1, "save_checkpoints_steps": 2}
    run(
        tmp_path,
        metric,
        exporters=(exporter,),
        listeners=[listener],
        settings=settings,
    )
    assert exporter.steps == [(10, False), (20, False), (25, True)]
    assert not metric.has_timed_out
    assert checkpoints.steps(str(tmp_path)) == [25]


def test_a_run_resumes_with_an_exporter_of_a_new_metric(tmp_path, caplog):
    class StrictExporter(Exporter):
        def export(self, estimator, export_path, checkpoint_path, eval_result, final):
            if "new" not in eval_result:
                raise errors.UserError("the results have no new metric")
            super().export(estimator, export_path, checkpoint_path, eval_result, final)

    metric = Metric()
    loops = []

    def stop_reason():
        loops.extend([1] if metric.has_started.is_set() else [])
        return "SIGTERM" if len(loops) > 1 else None

    with pytest.raises(preemption.Preempted):
        run(tmp_path, metric, stop_reason=stop_reason)
    assert evaluated_steps(tmp_path) == [10]
    assert checkpoints.steps(str(tmp_path)) == [10, 14]
    exporter = StrictExporter()

    class NewMetric(Metric):
        def __call__(self, batches):
            return super().__call__(batches) | {"new": 1.0}

    run(tmp_path, NewMetric(), exporters=(exporter,))
    assert "the results have no new metric" in caplog.text
    assert exporter.steps == [(20, False), (25, True)]


def test_an_error_of_the_training_is_raised_even_if_the_metric_fails(tmp_path, caplog):
    metric = Metric(waits=True, error=errors.UserError("no such image"))

    def stop_reason():
        if metric.has_started.is_set():
            metric.may_end.set()
            raise KeyError("the training failed")

    with pytest.raises(KeyError, match="the training failed"):
        run(tmp_path, metric, stop_reason=stop_reason)
    assert "no such image" in caplog.text
