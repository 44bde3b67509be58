"""A world that a test plays to a sidecar, look by look.

Checkpoint N of the linear model has N as its bias, so that N is its score.
"""

import contextlib
import functools

import numpy as np

import linear
from retinanet_tpu.estimator import sidecar, spec, summaries, train_and_evaluate
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints, leases, run_state


class World:
    """What happens while a sidecar sleeps: one event each time, 10 s apart."""

    def __init__(self, model_dir):
        self.model_dir, self.events, self.now, self.beat = model_dir, [], 0.0, 0

    def sleep(self, secs):
        assert 0 < secs <= 10
        self.now += 10
        assert self.events, "The sidecar waits for what never comes."
        for action in self.events.pop(0):
            action()

    def then(self, *actions):
        self.events.append(actions)
        return self

    def says(self, state, step=0):
        """Returns the event that the trainer says something new."""

        def say():
            self.beat += 1
            state_now = run_state.RunState(state, step, self.beat)
            run_state.write(self.model_dir, state_now)

        return say

    def saves(self, step):
        return functools.partial(save, self.model_dir, step)

    def sidecar(self, estimator=None, **more):
        input_fn = more.pop("input_fn", linear.eval_input_fn)
        exporters = more.pop("exporters", ())
        return sidecar.Sidecar(
            estimator or linear.make_estimator(self.model_dir),
            spec.EvalSpec(input_fn, exporters=exporters),
            max_steps=more.pop("max_steps", 1000),
            timeout_secs=100,
            preemption_secs=1000,
            clock=lambda: self.now,
            sleep=self.sleep,
            **more,
        )


def save(model_dir, step, says=None):
    tensors = {
        "weights/linear/matrix": np.zeros([3, 1], np.float32),
        "weights/linear/bias": np.array([step], np.float32),
        "slots/count": np.float32(0),
        "global_step": np.int64(step if says is None else says),
    }
    return checkpoints.save(model_dir, step, tensors)


def scored(world):
    """Returns the steps in the order of their lines, each with the score of its own."""
    records = summaries.read_evaluations(f"{world.model_dir}/eval")
    for record in records:
        assert record["mean_output"] == record["global_step"]
        assert record["checkpoint"] == f"model.ckpt-{record['global_step']}"
    return [record["global_step"] for record in records]


def run_trainer(world, stop_reason=lambda: None, **settings):
    runner = linear.make_estimator(world.model_dir, **settings)
    train_spec = spec.TrainSpec(linear.train_input_fn, 30)
    with contextlib.suppress(preemption.Preempted):
        train_and_evaluate.train_and_evaluate(
            runner, train_spec, None, stop_reason=stop_reason
        )


class Exporter:
    """Notes what it is given; fails as often as it is told."""

    name = "noted"

    def __init__(self, *errors):
        self.errors, self.exported = list(errors), []

    def export(self, estimator, base_dir, path, results, is_final):
        if self.errors:
            raise self.errors.pop()
        step = checkpoints.step_of(path)
        assert base_dir == f"{estimator.model_dir}/export/noted"
        assert step in leases.LeaseTable(estimator.model_dir).held_steps()
        assert results["global_step"] == step
        self.exported.append((step, is_final))
