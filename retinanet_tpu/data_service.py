"""Starts a dispatcher or a worker of a tf.data service.

  python -m retinanet_tpu.data_service --role=dispatcher --port=5050 --work_dir=DIR
  python -m retinanet_tpu.data_service --role=worker --dispatcher=HOST:5050

Start one dispatcher, then a worker on each machine that helps, at any time. Training
uses them with --gin_param="DATA_SERVICE_ADDRESS = 'grpc://HOST:5050'". Workers read
DATA_DIR under the trainer's path. If one dies, the others continue. Without workers, or
without the dispatcher, training waits. With a --work_dir, a dispatcher can be killed
and restarted on its port during a run. SIGTERM or Ctrl-C ends either, with exit code 0.

There are no passwords: anyone who can connect to the ports can run programs as this
user. Keep the ports within a private network.
"""

import retinanet_tpu.startup.cpu

import os
import re
import signal
import socket
from collections.abc import Callable
from typing import TypeVar

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.data import data_service
from retinanet_tpu.startup import guard

_ROLE = flags.DEFINE_enum(
    "role", None, ["dispatcher", "worker"], "The kind of server to start."
)
_PORT = flags.DEFINE_integer(
    "port",
    0,
    "The port to listen on; 0 for a free one.",
    lower_bound=0,
    upper_bound=65535,
)
_DISPATCHER = flags.DEFINE_string(
    "dispatcher", None, "The HOST:PORT of the dispatcher of a worker."
)
_WORK_DIR = flags.DEFINE_string(
    "work_dir",
    None,
    "The directory for a dispatcher's state, to restart it.",
)


_Config = TypeVar(
    "_Config",
    tf.data.experimental.service.DispatcherConfig,
    tf.data.experimental.service.WorkerConfig,
)
_Server = TypeVar(
    "_Server",
    tf.data.experimental.service.DispatchServer,
    tf.data.experimental.service.WorkerServer,
)


def start_dispatcher(
    port: int, work_dir: str | None
) -> tf.data.experimental.service.DispatchServer:
    """Starts a dispatcher and logs its address.

    Args:
      port: The port to listen on; 0 for a free one.
      work_dir: The directory for its state; None keeps no state.
    Raises:
      UserError: The port is in use.
    """
    config = tf.data.experimental.service.DispatcherConfig(
        port=port, work_dir=work_dir, fault_tolerant_mode=work_dir is not None
    )
    server = _start(tf.data.experimental.service.DispatchServer, config)
    actual_port = server.target.rpartition(":")[2]
    logging.info("dispatcher | grpc://%s:%s", socket.gethostname(), actual_port)
    return server


def start_worker(
    port: int, dispatcher: str
) -> tf.data.experimental.service.WorkerServer:
    """Starts a worker and logs its address.

    Args:
      port: The port to listen on; 0 for a free one.
      dispatcher: The HOST:PORT of the dispatcher.
    Raises:
      UserError: The port is in use, or the dispatcher does not answer.
    """
    own_host = data_service.connect(f"grpc://{dispatcher}")
    own_host = f"[{own_host}]" if ":" in own_host else own_host
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher,
        worker_address=f"{own_host}:{port or '%port%'}",
        port=port,
    )
    server = _start(tf.data.experimental.service.WorkerServer, config)
    # No public attribute contains the port.
    actual_port = server._address.rpartition(":")[2]
    logging.info("worker | grpc://%s:%s of %s", own_host, actual_port, dispatcher)
    return server


def _start(server_fn: Callable[[_Config], _Server], config: _Config) -> _Server:
    try:
        return server_fn(config)
    except (RuntimeError, tf.errors.OpError) as cause:
        raise errors.UserError(
            f"The server could not listen on port {config.port} ({cause}); if another "
            "program uses it, choose another --port."
        ) from cause


def main() -> None:
    """Runs the command."""
    role = _ROLE.value
    if role is None:
        raise errors.UserError("--role is missing: dispatcher or worker.")
    start_fn = _worker_fn() if role == "worker" else _dispatcher_fn()
    stop_signals = _receive_stop_signals()
    server = start_fn()  # The reference keeps the server alive.
    os.read(stop_signals, 1)  # In server.join() Python receives no signal.
    logging.info("%s | stopped %s", role, server)
    # Immediately, since a worker's end waits for its readers, and they for a lost
    # dispatcher.
    os._exit(0)


def _receive_stop_signals() -> int:
    """Returns a file descriptor that becomes readable with SIGTERM or SIGINT.

    Waiting for a threading.Event would miss a signal that another thread than the main
    one receives: Python runs handlers in the main thread, which would still be waiting.
    """
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    signal.set_wakeup_fd(writable)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)  # The wake-up is enough.
    return readable


def _worker_fn() -> Callable[[], tf.data.experimental.service.WorkerServer]:
    """Returns the function that starts the worker of the flags."""
    dispatcher = _DISPATCHER.value or ""
    if not re.fullmatch(r"[^\s/]+:\d+", dispatcher) or _WORK_DIR.value:
        raise errors.UserError(
            "A worker takes --dispatcher=HOST:PORT, and no --work_dir."
        )
    return lambda: start_worker(_PORT.value, dispatcher)


def _dispatcher_fn() -> Callable[[], tf.data.experimental.service.DispatchServer]:
    """Returns the function that starts the dispatcher of the flags."""
    if _DISPATCHER.value:
        raise errors.UserError("A dispatcher takes no --dispatcher; is this a worker?")
    return lambda: start_dispatcher(_PORT.value, _WORK_DIR.value)


if __name__ == "__main__":
    guard.run(main)
