"""Tests a worker, and the connection to it."""

import multiprocessing
import os
import threading
import types

import numpy as np
import pytest

from retinanet_tpu import errors
from retinanet_tpu.benchmarking import candidates, processes, worker
from retinanet_tpu.serving import artifacts

ONNX = candidates.Candidate("ONNX", "a/model.onnx", 1)


class FakeModel:
    """A model that fails for some batch sizes."""

    def measure(self, batch_size, secs):
        if batch_size == 2:
            raise errors.UserError("two are too many")
        if batch_size == 3:
            raise KeyError("three")
        return worker.Turn((secs,), batch_size)


@pytest.fixture
def process():
    """Returns a process whose worker is a thread of this one."""
    here, there = multiprocessing.Pipe()
    thread = threading.Thread(target=worker.serve, args=(there, FakeModel()))
    thread.start()
    result = processes.Process.__new__(processes.Process)
    result._connection = here
    result._process = types.SimpleNamespace(
        join=thread.join, is_alive=thread.is_alive, exitcode=-9
    )
    yield result
    result.close()
    assert not thread.is_alive()
    there.close()


def test_results_and_errors_of_a_worker_arrive(process):
    with pytest.raises(errors.UserError, match=r"^two are too many$"):
        process.measure(2, 1.0)
    with pytest.raises(errors.UserError, match=r"^KeyError: 'three'$"):
        process.measure(3, 1.0)
    assert process.measure(4, 0.5) == worker.Turn((0.5,), 4)


def test_the_end_of_a_process_is_an_error(process):
    here, there = multiprocessing.Pipe()
    there.close()
    process._connection.close()
    process._connection = here
    with pytest.raises(errors.UserError, match=r"ended with exit code -9; -9 usually"):
        process.measure(1, 1.0)


def test_a_turn_times_batches_until_its_end_after_one_to_warm_up(monkeypatch):
    now = [0.0]

    def detect(images):
        assert len(images) == 2
        now[0] += 0.3

    monkeypatch.setattr(
        worker,
        "time",
        types.SimpleNamespace(
            perf_counter=lambda: now[0], process_time=lambda: 2 * now[0]
        ),
    )
    model = worker.Worker(ONNX, None)
    model._images = np.zeros([8, 4, 4, 3], np.uint8)
    model._artifact = types.SimpleNamespace(detect=detect)
    turn = model.measure(2, 1.0)
    assert turn.secs == pytest.approx([0.3] * 4)
    assert turn.cpu_secs == pytest.approx(2.4)
    assert len(model.measure(2, 0.0).secs) == 1


def test_memory_is_the_peak_above_that_before_the_load(tmp_path, monkeypatch):
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmHWM:\t  20000 kB\nVmRSS:\t  10000 kB\n")
    monkeypatch.setattr(worker, "_STATUS", status)
    monkeypatch.setattr(worker, "_CLEAR_REFS", tmp_path / "absent" / "clear_refs")

    def load(path, num_threads):
        status.write_text("Name:\tpython\nVmHWM:\t  50000 kB\nVmRSS:\t  20000 kB\n")
        return types.SimpleNamespace(detect=lambda images: None)

    monkeypatch.setattr(artifacts, "load", load)
    model = worker.Worker(ONNX, None)
    model.load(np.zeros([1, 4, 4, 3], np.uint8))
    assert model.memory_mb() == pytest.approx(30.72)
    monkeypatch.setattr(worker, "_STATUS", tmp_path / "absent")
    assert model.memory_mb() is None


def test_memory_that_was_freed_before_the_load_is_not_counted(monkeypatch):
    if not os.access(worker._CLEAR_REFS, os.W_OK):
        pytest.skip("The peak of a process cannot be reset here.")
    images = np.ones([1, 4, 4, 3], np.uint8)
    before = np.ones(200_000_000, np.uint8)  # Above any earlier peak of this test.
    high_mb = worker._status_mb("VmHWM")
    del before
    loaded = []

    def load(path, num_threads):
        loaded.append(np.ones(60_000_000, np.uint8))
        return types.SimpleNamespace(detect=lambda images: None)

    monkeypatch.setattr(artifacts, "load", load)
    model = worker.Worker(ONNX, None)
    model.load(images)
    assert 55 < model.memory_mb() < 100 and worker._status_mb("VmHWM") < high_mb
