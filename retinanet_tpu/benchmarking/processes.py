"""Runs each model in a process of its own.

In one process the runtimes disturb each other: TensorFlow's number of threads is that
of the process, its idle threads and those of onnxruntime spin for a while after each
batch, and the peak memory of a single model cannot be read.
"""

import multiprocessing
from collections.abc import Sequence
from typing import Any

import numpy as np

from retinanet_tpu import errors, structures
from retinanet_tpu.benchmarking import candidates, worker
from retinanet_tpu.serving import annotated_images

_END_SECS = 10  # TensorFlow's threads end within a second.


class Process:
    """A model in another process. Its methods are those of `worker.Model`."""

    def __init__(self, candidate: candidates.Candidate, num_threads: int | None):
        """Starts the process.

        Args:
          candidate: The model.
          num_threads: The number of CPU threads; None leaves it to the runtimes.
        """
        # TensorFlow does not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, there = context.Pipe()
        self._process = context.Process(
            target=worker.run_process, args=(there, candidate, num_threads), daemon=True
        )
        self._process.start()
        there.close()  # So that the end of the process ends a wait for its answer.

    def load(self, images: np.ndarray) -> worker.Loaded:
        """See `worker.Model`."""
        loaded: worker.Loaded = self._call("load", images)
        return loaded

    def detect(
        self, files: Sequence[annotated_images.ImageFile]
    ) -> dict[int, structures.Detections]:
        """See `worker.Model`."""
        detections: dict[int, structures.Detections] = self._call("detect", files)
        return detections

    def measure(self, batch_size: int, secs: float) -> worker.Turn:
        """See `worker.Model`."""
        turn: worker.Turn = self._call("measure", batch_size, secs)
        return turn

    def memory_mb(self) -> float | None:
        """See `worker.Model`."""
        memory_mb: float | None = self._call("memory_mb")
        return memory_mb

    def close(self) -> None:
        """See `worker.Model`."""
        self._connection.close()
        self._process.join(_END_SECS)
        if self._process.is_alive():
            self._process.kill()

    def _call(self, name: str, *arguments: Any) -> Any:
        """Returns the result of a method of the worker, or raises its error."""
        try:
            self._connection.send((name, arguments))
            error, result = self._connection.recv()
        except (EOFError, OSError) as ended:
            self._process.join(_END_SECS)
            raise errors.UserError(
                f"its process ended with exit code {self._process.exitcode}; -9 "
                "usually means that the memory did not suffice."
            ) from ended
        if error is not None:
            raise errors.UserError(error)
        return result
