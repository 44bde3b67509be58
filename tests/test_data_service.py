import ctypes
import itertools
import os
import re
import signal
import socket
import time

import pytest
import tensorflow as tf
from absl import flags as absl_flags
from absl.testing import flagsaver

import tool_processes
import worker_processes
from retinanet_tpu import data_service as command
from retinanet_tpu.data import data_service

PATIENCE = 120  # s; a loaded machine is slow to start TensorFlow three times


@pytest.fixture(scope="module")
def tool():
    return command


class Part:
    """The command as a process with its log in a file."""

    def __init__(self, log, *flags):
        self._log = log
        log.write_text("")
        command = ("-m", "retinanet_tpu.data_service")
        self.process = tool_processes.Fork(*command, *flags, out=log, error=log)

    def port(self):
        """Returns the port once the server listens."""
        end = time.monotonic() + PATIENCE
        while not (match := re.search(r"grpc://\S+:(\d+)", self._log.read_text())):
            if self.process.poll() is not None or time.monotonic() > end:
                raise AssertionError(f"It did not start:\n{self._log.read_text()}")
            time.sleep(0.02)
        return int(match[1])


@pytest.fixture
def start(tmp_path):
    parts = []

    def start_one(*flags):
        parts.append(Part(tmp_path / f"{len(parts)}.log", *flags))
        return parts[-1]

    yield start_one
    for part in parts:
        part.process.send_signal(signal.SIGKILL)
        part.process.wait()


def counted(address):
    """Returns an iterator over whole numbers from a service."""
    count = tf.data.Dataset.range(2**62)
    return data_service.distribute(count, address).as_numpy_iterator()


def read(iterator, num):
    return list(itertools.islice(iterator, num))


def signal_another_thread(pid, number):
    """Sends a signal to a thread that is not the main one; the system may, too."""
    _, *others = sorted(map(int, os.listdir(f"/proc/{pid}/task")))
    send = ctypes.CDLL(None).tgkill
    # A thread may have ended since. The first ones are the oldest and remain.
    assert any(send(pid, thread, number) == 0 for thread in others)


@pytest.mark.long
def test_workers_may_die_and_join_and_a_signal_ends_the_rest(start):
    (port,) = worker_processes.free_ports(1)
    dispatcher = start("--role=dispatcher", f"--port={port}")
    assert dispatcher.port() == port
    flags = ("--role=worker", f"--dispatcher=localhost:{port}")
    workers = [start(*flags) for _ in range(3)]
    for worker in workers[:2]:
        worker.port()
    numbers = counted(f"grpc://localhost:{port}")
    seen = read(numbers, 100)
    workers[2].port()
    for worker in workers[:2]:  # Only the worker that joined remains.
        worker.process.send_signal(signal.SIGKILL)
        seen += read(numbers, 500)
    assert len(set(seen)) == len(seen)
    signal_another_thread(workers[2].process.pid, signal.SIGTERM)
    dispatcher.process.send_signal(signal.SIGTERM)
    for part in (workers[2], dispatcher):
        assert part.process.wait(PATIENCE) == 0


def test_a_dispatcher_with_a_work_dir_can_be_restarted(tool, tmp_path):
    (port,), work_dir = worker_processes.free_ports(1), str(tmp_path)
    dispatcher = tool.start_dispatcher(port, work_dir)
    worker = tool.start_worker(0, f"localhost:{port}")
    numbers = counted(f"grpc://localhost:{port}")
    seen = read(numbers, 100)
    dispatcher.stop()
    dispatcher = tool.start_dispatcher(port, work_dir)
    seen += read(numbers, 500)
    assert len(set(seen)) == len(seen)
    del worker


def test_a_port_in_use_or_a_missing_dispatcher_is_an_error(tool):
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} .*another --port"):
            tool.start_dispatcher(port, None)
    dispatcher = tool.start_dispatcher(0, None)
    address = dispatcher.target.removeprefix("grpc://")
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=rf"port {port} .*another --port"):
            tool.start_worker(port, address)
    with pytest.raises(ValueError, match=r"No dispatcher .*--role=dispatcher"):
        (port,) = worker_processes.free_ports(1)
        tool.start_worker(0, f"localhost:{port}")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--role is missing"),
        ({"role": "worker"}, "--dispatcher=HOST:PORT"),
        ({"role": "worker", "dispatcher": "a:1", "work_dir": "b"}, "no --work_dir"),
        ({"role": "worker", "dispatcher": "host"}, "HOST:PORT"),
        ({"role": "dispatcher", "dispatcher": "a:1"}, "is this a worker"),
    ],
)
def test_contradicting_flags_are_errors(tool, settings, message):
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS.mark_as_parsed()
    with (
        flagsaver.flagsaver(**settings),
        pytest.raises(ValueError, match=message),
    ):
        tool.main()
