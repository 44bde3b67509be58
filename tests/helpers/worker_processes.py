"""Starts workers as processes of this machine, with logical CPUs as replicas."""

import json
import pathlib
import socket

import processes
import tool_processes
import toy_data

_WORKER = pathlib.Path(__file__).parent / "worker.py"


class Worker(processes.Process):
    """A process that runs a module or file as one of several workers."""

    def __init__(
        self,
        target: str,
        *flags: str,
        log: pathlib.Path,
        tf_config: str,
        num_devices: int,
    ):
        """Starts the process.

        Args:
          target: The module or file.
          *flags: The flags of the command line.
          log: The file for the output.
          tf_config: The value of TF_CONFIG.
          num_devices: The number of logical CPUs of the worker.
        """
        self.log = log
        log.write_text("")
        self._popen = tool_processes.Fork(
            _WORKER,
            num_devices,
            target,
            *flags,
            out=log,
            error=log,
            env=processes.ENVIRONMENT | {"TF_CONFIG": tf_config},
        )


class Team(processes.Run):
    """A model_dir and the workers that train in it."""

    def __init__(self, model_dir, data_dir, *bindings: str, count: int = 2):
        super().__init__(model_dir, data_dir, *bindings)
        self.addresses = [f"localhost:{port}" for port in free_ports(count)]

    def start(self, *flags: str, num_devices: int) -> list[Worker]:
        """Starts the trainer on every worker."""
        indices = range(len(self.addresses))
        return [self.start_one(i, *flags, num_devices=num_devices) for i in indices]

    def start_one(self, index: int, *flags: str, num_devices: int) -> Worker:
        """Starts the trainer on one worker."""
        gin_files = [
            toy_data.GIN_CONFIGS / name
            for name in ("quickstart.gin", "device/cpu_workers.gin")
        ]
        worker = Worker(
            "retinanet_tpu.train",
            *(f"--gin_file={path}" for path in gin_files),
            *(f"--gin_param={binding}" for binding in self.bindings),
            f"--model_dir={self.model_dir}",
            *flags,
            log=self.model_dir.parent / f"worker{index}-{len(self.processes)}.log",
            tf_config=tf_config(self.addresses, index),
            num_devices=num_devices,
        )
        self.processes.append(worker)
        return worker


def tf_config(addresses: list[str], index: int) -> str:
    """Returns the TF_CONFIG of the worker with an index."""
    task = {"type": "worker", "index": index}
    return json.dumps({"cluster": {"worker": addresses}, "task": task})


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine that are not in use."""
    sockets = [socket.create_server(("localhost", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
