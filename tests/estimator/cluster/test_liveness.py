import concurrent.futures
import contextlib
import functools
import pathlib
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import liveness_worker
from retinanet_tpu.estimator.cluster import liveness, peers
from retinanet_tpu.exit_codes import ExitCode

SECS = 20  # More than any of these tests takes.
WORKER = pathlib.Path(liveness_worker.__file__)


def make_gathers(count):
    """Returns a gather function for each of several threads."""
    numbers, barrier = np.zeros(count), threading.Barrier(count)

    def gather(index, number):
        numbers[index] = number
        barrier.wait(SECS)
        result = numbers.copy()
        barrier.wait(SECS)
        return result

    return [functools.partial(gather, index) for index in range(count)]


class Losses:
    """Records the calls of on_lost."""

    def __init__(self):
        self.calls = []
        self.is_called = threading.Event()

    def __call__(self, index):
        self.calls.append((index, threading.current_thread().name))
        self.is_called.set()


def start(count, make, gathers=None):
    """Returns make(index, gather) of all processes, each called in its own thread."""
    gathers = gathers or make_gathers(count)
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(make, i, gather) for i, gather in enumerate(gathers)]
    return [future.result(SECS) for future in futures]


def start_monitors(count, *, num_raw=0, gathers=None, **options):
    """Returns monitors and their losses; the last num_raw processes have none.

    Those are represented by their connection to process 0.
    """
    losses = [Losses() for _ in range(count)]

    def make(index, gather):
        if index >= count - num_raw:
            return peers.connect(count, index, "127.0.0.1", gather, SECS)[0]
        return liveness.Liveness(
            count, index, "127.0.0.1", gather, losses[index], **options
        )

    return start(count, make, gathers), losses


def close_all(monitors):
    with concurrent.futures.ThreadPoolExecutor(len(monitors)) as pool:
        for future in [pool.submit(monitor.close) for monitor in monitors]:
            future.result(SECS)


def test_a_lost_worker_is_reported_once_to_all_others():
    (chief, worker, raw), losses = start_monitors(3, num_raw=1)
    assert not chief.is_lost and not worker.is_lost
    raw.connection.close()
    assert chief.wait_lost(SECS) and worker.wait_lost(SECS)
    for loss in losses[:2]:
        assert loss.is_called.wait(SECS) and loss.calls == [(2, "liveness")]
    assert chief.is_lost and worker.is_lost
    close_all([chief, worker])


def test_the_loss_of_the_chief_is_reported_by_all_workers():
    losses = [Losses(), Losses()]

    def make(index, gather):
        if index == 0:
            return peers.connect(3, 0, "127.0.0.1", gather, SECS)
        return liveness.Liveness(3, index, "127.0.0.1", gather, losses[index - 1])

    connections, *_ = start(3, make)
    for peer in connections:
        peer.connection.close()
    for loss in losses:
        assert loss.is_called.wait(SECS) and [index for index, _ in loss.calls] == [0]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_processes_that_say_goodbye_are_not_lost(order):
    monitors, losses = start_monitors(3)
    closing = [threading.Thread(target=monitors[index].close) for index in order]
    for thread in closing:
        thread.start()
    for thread in closing:
        thread.join(SECS)
    assert not any(loss.calls for loss in losses)
    assert not any(monitor.is_lost for monitor in monitors)
    monitors[0].close()  # Again, as in a finally block.


def test_the_chief_waits_for_the_end_of_the_workers():
    (chief, worker), _ = start_monitors(2)
    closing = threading.Thread(target=chief.close)
    closing.start()
    closing.join(0.1)
    assert closing.is_alive()
    worker.close()
    closing.join(SECS)
    assert not closing.is_alive()


def test_the_chief_waits_only_a_limited_time():
    (chief, raw), losses = start_monitors(2, num_raw=1, grace_secs=-0.9)
    chief.close()
    assert not losses[0].calls
    raw.connection.close()


def test_a_goodbye_arrives_even_if_messages_were_not_read():
    for _ in range(10):
        (chief, worker), losses = start_monitors(2, ping_secs=1e-4)
        worker.close()
        assert not chief.wait_lost(0.02) and not losses[0].calls
        chief.close()


def test_a_process_that_fails_alone_is_lost_after_the_grace_period():
    (chief, worker, failing), losses = start_monitors(3, grace_secs=0.1)
    failing.fail()
    assert chief.wait_lost(SECS) and worker.wait_lost(SECS)
    assert losses[0].is_called.wait(SECS) and losses[0].calls[0][0] == 2
    assert losses[1].is_called.wait(SECS) and losses[1].calls[0][0] == 2


def test_processes_that_fail_together_are_not_lost():
    monitors, losses = start_monitors(3)
    for monitor in monitors[::-1]:
        monitor.fail()  # The last is the chief, which waits for no one.
    assert not any(loss.calls for loss in losses)


def test_a_silent_process_is_lost():
    (chief, raw), losses = start_monitors(
        2, num_raw=1, ping_secs=0.02, silence_secs=0.1
    )
    raw.send(b"ping")
    assert losses[0].is_called.wait(SECS) and losses[0].calls[0][0] == 1
    raw.connection.close()
    chief.close()


def test_messages_keep_a_connection_alive():
    monitors, losses = start_monitors(3, ping_secs=0.05, silence_secs=1)
    assert not monitors[0].wait_lost(1.2)
    close_all(monitors)
    assert not any(loss.calls for loss in losses)


def test_the_kernel_closes_connections_to_machines_that_disappeared():
    ends, _ = start_monitors(2, num_raw=1)
    connection = ends[1].connection
    assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    for name, value in peers._TCP_OPTIONS.items():
        option = getattr(socket, name)
        assert connection.getsockopt(socket.IPPROTO_TCP, option) == value
    connection.close()


def test_strangers_are_ignored():
    gathers, strangers = make_gathers(2), []

    def gather(number):
        result = gathers[0](number)
        if not strangers:  # The first number is the port.
            for garbage in [
                b"",
                b"GET / HTTP/1.1\r\n\r\n",
                b"x" * 100_000,
                b"retinanet_tpu 123 1\n",
                b"retinanet_tpu 123 1",
                b"\n\n\xff\n",
            ]:
                stranger = socket.create_connection(("127.0.0.1", int(result[0])))
                strangers.append(stranger)
                stranger.sendall(garbage)
            closed = socket.create_connection(("127.0.0.1", int(result[0])))
            closed.close()
        return result

    monitors, losses = start_monitors(2, gathers=[gather, gathers[1]])
    for stranger in strangers:
        stranger.settimeout(SECS)
        with contextlib.suppress(ConnectionResetError):
            assert stranger.recv(1) == b""
        stranger.close()
    with pytest.raises(ConnectionRefusedError):
        port = monitors[1]._peers[0].connection.getpeername()[1]
        socket.create_connection(("127.0.0.1", port))
    assert not any(loss.calls for loss in losses)
    close_all(monitors)


def test_a_worker_that_does_not_connect_is_an_error_of_all():
    def make(index, gather):
        if index == 2:
            for _ in range(1 + peers._NUM_TOKEN_PARTS):
                gather(0)
            return None
        with pytest.raises(ConnectionError) as error:
            secs = SECS if index else 0.3
            peers.connect(3, index, "127.0.0.1", gather, secs)
        return str(error.value)

    chief, worker, _ = start(3, make)
    assert "Workers [2] did not connect" in chief
    assert "because another worker did not connect" in worker


def test_an_unreachable_chief_is_an_error():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(ConnectionError, match="Worker 1 cannot connect to worker 0"):
        peers.connect(2, 1, "127.0.0.1", lambda _: np.array([port, 0]), 5)


def test_numbers_may_be_gathered_as_float32():
    gathers = [
        lambda number, gather=gather: gather(np.float32(number)).astype(np.float32)
        for gather in make_gathers(2)
    ]
    monitors, _ = start_monitors(2, gathers=gathers)
    close_all(monitors)


def test_a_single_process_has_nothing_to_monitor():
    monitor = liveness.Liveness(1, 0, "unknown.invalid", None)
    assert not monitor.is_lost and not monitor.wait_lost(0)
    monitor.close()
    monitor.fail()


def test_a_start_that_takes_too_long_ends_the_process(monkeypatch):
    messages, is_over = [], threading.Event()

    def exit_fn(message):
        messages.append(message)
        is_over.set()

    monkeypatch.setattr(liveness, "_exit", exit_fn)
    with liveness.limit_start(SECS):
        pass
    with liveness.limit_start(0.01):
        assert is_over.wait(SECS)
    assert messages == [
        "The workers did not all connect within 0.01 s; restart all workers."
    ]


class Processes:
    """Real processes with monitors, between which this relays the gathered numbers."""

    def __init__(self, stack, count):
        self.processes = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, str(WORKER), str(index), str(count)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for index in range(count)
        ]
        for process in self.processes:
            stack.callback(process.kill)
        for _ in range(1 + peers._NUM_TOKEN_PARTS):
            numbers = [process.stdout.readline().strip() for process in self.processes]
            for index in range(count):
                self.command(index, " ".join(numbers))
        for process in self.processes:
            assert process.stdout.readline() == "ready\n"

    def command(self, index, line):
        self.processes[index].stdin.write(line + "\n")
        self.processes[index].stdin.flush()

    def ends(self):
        """Returns the exit code and the standard error of each process."""
        outputs = [process.communicate(timeout=SECS)[1] for process in self.processes]
        return [(p.returncode, o) for p, o in zip(self.processes, outputs, strict=True)]


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_process_ends_the_others_with_code_42(victim):
    with contextlib.ExitStack() as stack:
        group = Processes(stack, 3)
        group.processes[victim].kill()
        end = (ExitCode.PREEMPTED, f"Worker {victim} was lost; restart all workers.\n")
        expected = [end] * 3
        expected[victim] = (-signal.SIGKILL, "")
        assert group.ends() == expected


def test_exit_codes_remain_if_all_end_by_themselves():
    with contextlib.ExitStack() as stack:
        group = Processes(stack, 3)
        for index in range(3):
            group.command(index, "close")
        assert group.ends() == [(0, "")] * 3


@pytest.mark.parametrize("failing", [0, 1])
def test_the_failure_of_one_process_ends_the_others_with_code_42(failing):
    with contextlib.ExitStack() as stack:
        group = Processes(stack, 2)
        group.command(failing, "fail")
        codes = [code for code, _ in group.ends()]
        assert codes == ([1, 42] if failing == 0 else [42, 1])


def test_the_monitor_ends_a_process_that_aborts():
    with contextlib.ExitStack() as stack:
        group = Processes(stack, 2)
        group.command(1, "abort")
        assert group.processes[1].stdout.readline() == "aborting\n"
        group.processes[0].kill()
        assert group.ends()[1][0] == ExitCode.PREEMPTED
