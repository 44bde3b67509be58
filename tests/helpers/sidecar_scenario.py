"""Plays a scenario to a sidecar: one event each time the sidecar polls.

Checkpoint N of the linear model has N as its bias, so that its mean output is N.
"""

import contextlib
from collections.abc import Callable

import numpy as np

import linear
from retinanet_tpu.estimator import sidecar, spec, summaries, train_and_evaluate
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints, leases, run_state


class SidecarScenario:
    """The events between the polls of a sidecar, which are 10 s apart.

    Attributes:
      model_dir: The directory of the run.
      events: The events that remain, each a sequence of functions to call.
      now: The clock of the sidecar, in seconds.
    """

    def __init__(self, model_dir: str):
        self.model_dir = model_dir
        self.events = []
        self.now = 0.0
        self._beat = 0

    def at_next_poll(self, *actions: Callable[[], object]) -> "SidecarScenario":
        """Appends an event; without actions nothing happens before that poll."""
        self.events.append(actions)
        return self

    def trainer_state(self, state: str, step: int = 0) -> Callable[[], None]:
        """Returns an action in which the trainer writes its state."""

        def write():
            self._beat += 1
            new_state = run_state.RunState(state, step, self._beat)
            run_state.write(self.model_dir, new_state)

        return write

    def save_checkpoint(self, step: int) -> Callable[[], None]:
        """Returns an action in which the trainer saves a checkpoint."""
        return lambda: save(self.model_dir, step)

    def sidecar(self, estimator=None, **settings):
        """Returns a sidecar that runs on this scenario's clock."""
        input_fn = settings.pop("input_fn", linear.eval_input_fn)
        exporters = settings.pop("exporters", ())
        return sidecar.Sidecar(
            estimator or linear.make_estimator(self.model_dir),
            spec.EvalSpec(input_fn, exporters=exporters),
            max_steps=settings.pop("max_steps", 1000),
            timeout_secs=100,
            preemption_secs=1000,
            clock=lambda: self.now,
            sleep=self._sleep,
            **settings,
        )

    def _sleep(self, secs):
        assert 0 < secs <= 10
        self.now += 10
        assert self.events, "The sidecar still waits after the last event."
        for action in self.events.pop(0):
            action()


def save(model_dir: str, step: int, stored_step: int | None = None) -> str:
    """Saves a checkpoint of the linear model; returns its path prefix.

    Args:
      model_dir: The directory of the run.
      step: The step in the name of the checkpoint, and the bias.
      stored_step: The global step in the checkpoint, by default `step`.
    """
    tensors = {
        "weights/linear/matrix": np.zeros([3, 1], np.float32),
        "weights/linear/bias": np.array([step], np.float32),
        "slots/count": np.float32(0),
        "global_step": np.int64(step if stored_step is None else stored_step),
    }
    return checkpoints.save(model_dir, step, tensors)


def evaluated_steps(scenario: SidecarScenario) -> list[int]:
    """Returns the evaluated steps in their order; checks the results of each."""
    records = summaries.read_evaluations(f"{scenario.model_dir}/eval")
    for record in records:
        assert record["mean_output"] == record["global_step"]
        assert record["checkpoint"] == f"model.ckpt-{record['global_step']}"
    return [record["global_step"] for record in records]


def run_trainer(scenario, stop_reason=lambda: None, **settings):
    """Trains the linear model until step 30 or until there is a reason to stop."""
    runner = linear.make_estimator(scenario.model_dir, **settings)
    train_spec = spec.TrainSpec(linear.train_input_fn, 30)
    with contextlib.suppress(preemption.Preempted):
        train_and_evaluate.train_and_evaluate(
            runner, train_spec, None, stop_reason=stop_reason
        )


class Exporter:
    """Records its calls; the first calls raise the given errors."""

    name = "noted"

    def __init__(self, *errors: Exception):
        self.errors = list(errors)
        self.exported = []

    def export(self, estimator, base_dir, path, results, is_final):
        if self.errors:
            raise self.errors.pop()
        step = checkpoints.step_of(path)
        assert base_dir == f"{estimator.model_dir}/export/noted"
        assert step in leases.LeaseTable(estimator.model_dir).held_steps()
        assert results["global_step"] == step
        self.exported.append((step, is_final))
