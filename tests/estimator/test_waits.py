import threading

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.eager import context

import linear
import tool_processes
from retinanet_tpu.estimator import summaries, waits
from retinanet_tpu.estimator.cluster import preemption
from retinanet_tpu.estimator.model_dir import checkpoints

pytestmark = pytest.mark.long


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(waits, "STALL_SECS", 0.05)
    monkeypatch.setattr(waits, "_POLL_SECS", 0.01)


@pytest.fixture
def blocked():
    """Returns an event that data wait for; it is set at the end to free the threads."""
    event = threading.Event()
    yield event
    event.set()


def never():
    return None


class Stalling:
    """An input_fn whose data stall after some batches, until the end of a test."""

    def __init__(self, make_data, num_batches, event):
        self.make_data, self.num_batches, self.event = make_data, num_batches, event
        self.is_reached = threading.Event()

    def __call__(self, params):
        def wait(number):
            self.is_reached.set()
            self.event.wait()
            return number

        def pause(number, batch):
            return tf.numpy_function(wait, [number], tf.int64), batch

        numbered = self.make_data(params).enumerate()
        first = numbered.take(self.num_batches)
        data = first.concatenate(numbered.skip(self.num_batches).map(pause))
        return data.map(lambda number, batch: batch)

    def stop_reason(self):
        return "enough" if self.is_reached.is_set() else None


def test_every_call_runs_functions_with_the_options_that_are_set_now():
    def options():
        return context.context().function_call_options.config_proto_serialized

    waits.call(options, never)
    before = tf.config.optimizer.get_experimental_options()
    changed = not before.get("arithmetic_optimization", True)
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": changed})
    try:
        assert waits.call(options, never) == options()
    finally:
        tf.config.optimizer.set_experimental_options(
            {"arithmetic_optimization": not changed}
        )


def test_a_call_returns_and_raises_what_its_function_does():
    assert waits.call(lambda: 7, never) == 7
    assert waits.call(lambda: waits.call(lambda: 8, never), never) == 8
    with pytest.raises(KeyError, match="no such"):
        waits.call(lambda: {}["no such"], never)
    assert waits.call(lambda: 9, never) == 9


def test_a_call_that_does_not_return_is_given_up_for_a_reason(blocked):
    with pytest.raises(waits.GivenUpError, match="enough"):
        waits.call(blocked.wait, lambda: "enough")
    assert waits.call(lambda: 7, never) == 7


def test_progress_resets_a_stall(monkeypatch):
    now, moved, reasons = [0.0], [0], []
    monkeypatch.setattr(waits, "STALL_SECS", 1.0)
    monkeypatch.setattr(waits.time, "monotonic", lambda: now[0])
    stall = waits.Stall(lambda: reasons.append(1) or "enough", lambda: moved[0])
    for now[0], moved[0], expected in [
        (0.5, 1, None),
        (1.4, 1, None),
        (1.5, 2, None),
        (2.4, 2, None),
        (2.5, 2, "enough"),
    ]:
        assert stall.reason() == expected
    assert len(reasons) == 1


@pytest.mark.parametrize(("num_steps", "num_replicas"), [(0, 1), (6, 1), (6, 2)])
def test_steps_before_the_data_stall_are_saved(
    make_estimator, tmp_path, blocked, num_steps, num_replicas
):
    more = {"num_replicas": num_replicas, "iterations_per_loop": 30}
    more["save_checkpoints_steps"] = 30
    input_fn = Stalling(linear.train_input_fn, num_steps * num_replicas, blocked)
    runner = make_estimator(tmp_path / "a", **more)
    with pytest.raises(preemption.Preempted, match="enough") as stop:
        runner.train(input_fn, 30, stop_reason=input_fn.stop_reason)
    assert stop.value.step == num_steps
    assert ("nothing is saved" in str(stop.value)) == (num_steps == 0)
    assert checkpoints.steps(str(tmp_path / "a")) == [num_steps] * (num_steps > 0)
    if num_steps:
        resumed = make_estimator(tmp_path / "a", **more)
        straight = make_estimator(tmp_path / "b", **more)
        expected = checkpoints.read(straight.train(linear.train_input_fn, 30))
        got = checkpoints.read(resumed.train(linear.train_input_fn, 30))
        for name, value in expected.items():
            np.testing.assert_array_equal(got[name], value, err_msg=name)


def test_a_slow_step_is_not_a_stall(tmp_path, blocked):
    begun = threading.Event()

    def slow():
        begun.set()
        blocked.wait(0.5)
        return np.float32(0)

    def model_fn(features, labels, mode, network):
        zero = tf.ensure_shape(tf.numpy_function(slow, [], tf.float32), [])
        return linear.model_fn(features + zero, labels, mode, network)

    runner = linear.make_estimator(tmp_path, fn=model_fn, iterations_per_loop=2)
    with pytest.raises(preemption.Preempted):
        runner.train(
            linear.train_input_fn,
            10,
            stop_reason=lambda: "enough" if begun.is_set() else None,
        )
    assert checkpoints.steps(str(tmp_path)) == [2]


def test_a_stop_that_cannot_be_saved_is_still_a_stop(
    make_estimator, tmp_path, monkeypatch, caplog
):
    def full_disk(*args):
        raise tf.errors.ResourceExhaustedError(None, None, "No space left")

    def report_loop(self, step, num_steps, scalars, *, secs):
        reported.append(step)

    reported = []
    runner = make_estimator(tmp_path)
    runner.train(linear.train_input_fn, 10)
    monkeypatch.setattr(summaries.LoopWriter, "report_loop", report_loop)
    monkeypatch.setattr(checkpoints, "save", full_disk)
    with pytest.raises(preemption.Preempted) as stop:
        runner.train(
            linear.train_input_fn,
            20,
            stop_reason=lambda: "enough" if reported else None,
        )
    assert str(stop.value) == (
        "Stopped at step 14; the newest checkpoint is of step 10: enough."
    )
    assert "Step 14 could not be saved: No space left" in caplog.text


def test_an_evaluation_whose_data_stall_is_interrupted(
    make_estimator, tmp_path, blocked
):
    make_estimator(tmp_path).train(linear.train_input_fn, 10)
    input_fn = Stalling(linear.eval_input_fn, 2, blocked)
    with pytest.raises(preemption.Preempted, match="step 10, which is saved"):
        make_estimator(tmp_path).evaluate(input_fn, stop_reason=input_fn.stop_reason)
    assert not (tmp_path / "eval" / "eval.jsonl").exists()


@pytest.mark.parametrize("is_given_up", [False, True])
def test_a_process_keeps_its_exit_code_after_a_given_up_call(is_given_up):
    script = f"""
import os, threading
from retinanet_tpu.estimator import waits
try:
    waits.call(threading.Event().wait if {is_given_up} else int, lambda: "enough")
except waits.GivenUpError:
    pass
print("in the buffer")
os.close(1)
waits.leave(42)
"""
    done = tool_processes.run_python("-c", script)
    assert done.returncode == 42, done.stderr


@pytest.mark.parametrize("ends", [True, False])
def test_a_finished_process_keeps_its_exit_code_while_an_iterator_is_deleted(ends):
    # Python's own exit ends threads within C++, which aborts the process.
    script = f"""
import atexit, os, threading
from retinanet_tpu.estimator import waits
waits._RELEASE_SECS = 0.1

class Iterator:
    def __del__(self, wait=threading.Event().wait):
        wait(0.001 if {ends} else None)

waits.release([Iterator()])
atexit.register(print, "exit handlers")
print("in the buffer")
waits.finish(3)
"""
    done = tool_processes.run_python("-c", script)
    assert done.returncode == 3, done.stderr
    printed = ["in the buffer", "exit handlers"] if ends else ["in the buffer"]
    assert done.stdout.splitlines() == printed
