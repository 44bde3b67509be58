"""Connects each process of a run with process 0 over TCP, for their liveness.

Any program can connect to the port of process 0. A connection is therefore accepted
only if it begins with a random number, which the processes exchange by other means.
"""

import contextlib
import dataclasses
import secrets
import selectors
import socket
import time
from collections.abc import Callable

import numpy as np

# Returns the numbers of all processes, by index; all of them call it together.
Gather = Callable[[float], np.ndarray]

_WELCOME = b"welcome"  # The first line that process 0 sends.
_MAX_LINE = 100  # Bytes; longer lines are not from a process of this run.
# A gathered number may be float32, which represents integers of 24 bits exactly.
_TOKEN_BITS = 24
_NUM_TOKEN_PARTS = 3
# A machine that disappears closes no connection. The kernel detects it by probes after
# 5 + 3 * 5 = 20 s, or if a message remains unacknowledged for 20 s.
_TCP_OPTIONS = {
    "TCP_KEEPIDLE": 5,
    "TCP_KEEPINTVL": 5,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 20_000,  # Milliseconds.
}


@dataclasses.dataclass
class Peer:
    """A connection to another process."""

    index: int
    connection: socket.socket
    heard_at: float = dataclasses.field(default_factory=time.monotonic)
    partial: bytes = b""  # The beginning of a line.
    has_ended: bool = False  # The process sent its last message.

    def read(self) -> tuple[list[bytes], bool]:
        """Returns the new lines, and whether the connection ended."""
        try:
            data = self.connection.recv(4096)
        except (BlockingIOError, InterruptedError):
            return [], False
        except OSError:  # Reset, or the probes had no answer.
            return [], True
        self.heard_at = time.monotonic()
        *lines, self.partial = (self.partial + data).split(b"\n")
        return lines, not data or len(self.partial) > _MAX_LINE

    def send(self, *words: bytes | int) -> None:
        """Sends a line; errors are ignored, because `read` detects them too."""
        line = b" ".join(w if isinstance(w, bytes) else b"%d" % w for w in words)
        with contextlib.suppress(OSError):
            self.connection.send(line + b"\n")


def connect(
    count: int, index: int, chief_host: str, gather: Gather, timeout_secs: float
) -> list[Peer]:
    """Connects all processes; all of them must call this together.

    Args:
      count: The number of processes.
      index: The index of this process.
      chief_host: The host name or address of process 0.
      gather: Returns the numbers of all processes.
      timeout_secs: The time in which all processes must connect, in seconds.
    Returns:
      The connections of process 0 to all others; the only one of each other process.
    Raises:
      ConnectionError: Not all processes connected in time.
    """
    if index == 0:
        peers = _accept_workers(count, gather, timeout_secs)
    else:
        peers = [_connect_to_chief(index, chief_host, gather, timeout_secs)]
    for peer in peers:
        _detect_dead_machine(peer.connection)
    return peers


def _detect_dead_machine(connection: socket.socket) -> None:
    """Makes the kernel close a connection to a machine that does not answer."""
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _TCP_OPTIONS.items():
        if hasattr(socket, name):  # Linux has all of them.
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _accept_workers(count: int, gather: Gather, timeout_secs: float) -> list[Peer]:
    """Returns the connections of process 0 to all others.

    Raises:
      ConnectionError: Not all processes connected in time.
    """
    with _listen() as server:
        gather(server.getsockname()[1])
        token = _gather_token(0, gather)
        expected = {_hello(token, index): index for index in range(1, count)}
        peers = _accept(server, expected, time.monotonic() + timeout_secs)
    if missing := sorted(set(expected.values()) - set(peers)):
        for peer in peers.values():
            peer.connection.close()
        raise ConnectionError(
            f"Workers {missing} did not connect to worker 0 within {timeout_secs} s; "
            "restart all workers. Firewalls between them must let all ports through."
        )
    for peer in peers.values():
        peer.send(_WELCOME)
    return list(peers.values())


def _accept(
    server: socket.socket, expected: dict[bytes, int], deadline: float
) -> dict[int, Peer]:
    """Returns the connections that began with an expected line, by index.

    All other connections are closed, because any program can connect to the port.
    """
    peers: dict[int, Peer] = {}
    with selectors.DefaultSelector() as selector, contextlib.ExitStack() as strangers:
        server.setblocking(False)
        selector.register(server, selectors.EVENT_READ)
        while len(peers) < len(expected) and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.data is None:
                    with contextlib.suppress(BlockingIOError, ConnectionError):
                        connection = strangers.enter_context(server.accept()[0])
                        connection.setblocking(False)
                        peer = Peer(-1, connection)
                        selector.register(connection, selectors.EVENT_READ, peer)
                    continue
                lines, is_closed = key.data.read()
                if not lines and not is_closed:
                    continue
                selector.unregister(key.fileobj)
                index = expected.get(lines[0], -1) if lines else -1
                if index > 0 and index not in peers:
                    # The duplicate remains open when the stack closes the original.
                    peers[index] = Peer(index, key.data.connection.dup())
                key.data.connection.close()
    return peers


def _connect_to_chief(
    index: int, host: str, gather: Gather, timeout_secs: float
) -> Peer:
    """Returns the connection to process 0.

    Raises:
      ConnectionError: Process 0 does not answer, or other processes did not connect.
    """
    port = round(float(gather(0)[0]))
    token = _gather_token(index, gather)
    connection = None
    try:
        connection = socket.create_connection((host, port), timeout_secs)
        connection.sendall(_hello(token, index) + b"\n")
        # Without a buffer, because the messages of the monitor follow this line.
        with connection.makefile("rb", buffering=0) as lines:
            answer = lines.readline(_MAX_LINE)
    except OSError as error:
        if connection is not None:
            connection.close()
        raise ConnectionError(
            f"Worker {index} cannot connect to worker 0 at {host}:{port} within "
            f"{timeout_secs} s: {error}. Restart all workers; firewalls between them "
            "must let all ports through."
        ) from error
    if answer.rstrip() != _WELCOME:
        connection.close()
        raise ConnectionError(
            f"Worker 0 at {host}:{port} closed the connection of worker {index}, "
            "because another worker did not connect; restart all workers."
        )
    return Peer(0, connection)


def _listen() -> socket.socket:
    """Returns a listening socket on all interfaces and a free port."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 is compiled in, but turned off.
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, dualstack_ipv6=True
            )
    return socket.create_server(("", 0))


def _gather_token(index: int, gather: Gather) -> int:
    """Returns a random number of process 0, which only processes of the run receive."""
    token = 0
    for _ in range(_NUM_TOKEN_PARTS):
        part = secrets.randbits(_TOKEN_BITS) if index == 0 else 0
        token = (token << _TOKEN_BITS) + round(float(gather(part)[0]))
    return token


def _hello(token: int, index: int) -> bytes:
    """Returns the first line that a process sends to process 0."""
    return b"retinanet_tpu %d %d" % (token, index)
