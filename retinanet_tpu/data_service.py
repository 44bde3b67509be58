"""Starts a dispatcher or a worker of a tf.data service.

  python -m retinanet_tpu.data_service --role=dispatcher --port=5050 --work_dir=DIR
  python -m retinanet_tpu.data_service --role=worker --dispatcher=HOST:5050

One dispatcher, then a worker on each machine that shall help, at any time; training
uses them with --gin_param="DATA_SERVICE_ADDRESS = 'grpc://HOST:5050'". Workers read
DATA_DIR under the trainer's path. When one dies, the others go on; without any, and
without the dispatcher, training waits. With a --work_dir a dispatcher may be killed and
started again on its port while a run goes on. SIGTERM or Ctrl-C ends either, with exit
code 0.

There are no passwords: who reaches the ports can run programs as this user. Keep them
within a network of your own.
"""

import retinanet_tpu.startup.cpu

import os
import re
import signal
import socket
import threading

import tensorflow as tf
from absl import flags, logging

from retinanet_tpu import errors
from retinanet_tpu.data import data_service
from retinanet_tpu.startup import guard

_ROLE = flags.DEFINE_enum("role", None, ["dispatcher", "worker"], "What to start.")
_PORT = flags.DEFINE_integer(
    "port", 0, "To listen on; 0 takes a free one.", lower_bound=0, upper_bound=65535
)
_DISPATCHER = flags.DEFINE_string("dispatcher", None, "HOST:PORT; of workers.")
_WORK_DIR = flags.DEFINE_string(
    "work_dir", None, "Folder for what a dispatcher must know to start again."
)


def start_dispatcher(
    port: int, work_dir: str | None
) -> tf.data.experimental.service.DispatchServer:
    """Starts a dispatcher and logs its address.

    Args:
      port: to listen on; 0 for a free one.
      work_dir: where its state is kept; None keeps none.
    Raises:
      UserError: the port is taken.
    """
    config = tf.data.experimental.service.DispatcherConfig(
        port=port, work_dir=work_dir, fault_tolerant_mode=work_dir is not None
    )
    server = _listening(tf.data.experimental.service.DispatchServer, config)
    found = server.target.rpartition(":")[2]
    logging.info("dispatcher | grpc://%s:%s", socket.gethostname(), found)
    return server


def start_worker(
    port: int, dispatcher: str
) -> tf.data.experimental.service.WorkerServer:
    """Starts a worker and logs its address.

    Args:
      port: to listen on; 0 for a free one.
      dispatcher: HOST:PORT.
    Raises:
      UserError: the port is taken, or the dispatcher does not answer.
    """
    own_host = data_service.connect(f"grpc://{dispatcher}")
    own_host = f"[{own_host}]" if ":" in own_host else own_host
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher,
        worker_address=f"{own_host}:{port or '%port%'}",
        port=port,
    )
    server = _listening(tf.data.experimental.service.WorkerServer, config)
    found = server._address.rpartition(":")[2]  # Nothing public has it.
    logging.info("worker | grpc://%s:%s of %s", own_host, found, dispatcher)
    return server


def _listening(make_server, config):
    try:
        return make_server(config)
    except (RuntimeError, tf.errors.OpError) as cause:
        raise errors.UserError(
            f"The server could not listen on port {config.port} ({cause}); if another "
            "program has it, choose another --port."
        ) from cause


def main() -> None:
    """Runs the command."""
    role, dispatcher, work_dir = _ROLE.value, _DISPATCHER.value, _WORK_DIR.value
    if role is None:
        raise errors.UserError("--role is missing: dispatcher or worker.")
    is_address = re.fullmatch(r"[^\s/]+:\d+", dispatcher or "")
    if role == "worker" and (not is_address or work_dir):
        raise errors.UserError(
            "A worker takes --dispatcher=HOST:PORT, and no --work_dir."
        )
    if role == "dispatcher" and dispatcher:
        raise errors.UserError("A dispatcher takes no --dispatcher; is this a worker?")
    is_over = threading.Event()  # Not server.join(), in which Python hears no signal.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: is_over.set())
    server = (  # Held, or it stops.
        start_worker(_PORT.value, dispatcher)
        if role == "worker"
        else start_dispatcher(_PORT.value, work_dir)
    )
    is_over.wait()
    logging.info("%s | stopped %s", role, server)
    # At once: a worker's end waits for its readers, and they for a lost dispatcher.
    os._exit(0)


if __name__ == "__main__":
    guard.run(main)
