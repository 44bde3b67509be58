"""Loads one model in this process, and measures it on request."""

import retinanet_tpu.startup.cpu

import contextlib
import multiprocessing.connection
import os
import pathlib
import re
import signal
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from absl import flags, logging

from retinanet_tpu import detector, errors, structures
from retinanet_tpu.benchmarking import candidates
from retinanet_tpu.serving import annotated_images, artifacts, batching, runtimes

# Linux writes the memory of a process there. `resource.getrusage` also counts the
# process that started it.
_STATUS = pathlib.Path("/proc/self/status")
_CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")
_BATCH_SIZE = 8  # Images of one size, when detections are compared.


class Loaded(NamedTuple):
    """The time until a model is ready.

    Attributes:
      load_secs: The seconds that the load took.
      first_secs: The seconds of the first image. Some runtimes prepare the model then.
    """

    load_secs: float
    first_secs: float


class Turn(NamedTuple):
    """The times of some batches in a row.

    Attributes:
      secs: The seconds of each batch.
      cpu_secs: The CPU seconds of all batches, of all threads.
    """

    secs: tuple[float, ...]
    cpu_secs: float


class Model(Protocol):
    """A model, here or in another process. Each method raises UserError."""

    def load(self, images: np.ndarray) -> Loaded:
        """Loads the model and detects in the first image.

        Args:
          images: uint8 [B, H, W, 3], the images that `measure` uses.
        """

    def detect(
        self, files: Sequence[annotated_images.ImageFile]
    ) -> dict[int, structures.Detections]:
        """Returns the detections in images by id, each as a batch of one.

        Args:
          files: The files of the images.
        """

    def measure(self, batch_size: int, secs: float) -> Turn:
        """Times one batch after the other, after one that is not timed.

        Args:
          batch_size: The number of images of a batch.
          secs: The duration; at least one batch is timed.
        """

    def memory_mb(self) -> float | None:
        """Returns the peak memory since before the load; None if it is unknown."""

    def close(self) -> None:
        """Ends the process of the model."""


class Worker:
    """A model in this process. Its methods are those of `Model`."""

    def __init__(self, candidate: candidates.Candidate, num_threads: int | None):
        """Initializes the worker without loading the model.

        Args:
          candidate: The model.
          num_threads: The number of CPU threads; None leaves it to the runtimes.
        """
        self._candidate = candidate
        self._num_threads = num_threads
        self._initial_mb = 0.0
        self._images = np.zeros([0, 1, 1, 3], np.uint8)
        self._artifact: artifacts.Artifact

    def load(self, images: np.ndarray) -> Loaded:
        """See `Model`."""
        if self._num_threads is not None:
            # TFLite files too: TensorFlow resizes their images.
            runtimes.set_tensorflow_threads(self._num_threads)
        self._images = images
        self._initial_mb = _reset_peak_mb()
        path = self._candidate.path
        start_secs = time.perf_counter()
        if self._candidate.is_checkpoint:
            self._artifact = detector.load_artifact(path, label="--checkpoint=")
        else:
            self._artifact = artifacts.load(path, num_threads=self._num_threads)
        loaded_secs = time.perf_counter()
        self._artifact.detect(images[:1])
        end_secs = time.perf_counter()
        return Loaded(loaded_secs - start_secs, end_secs - loaded_secs)

    def detect(
        self, files: Sequence[annotated_images.ImageFile]
    ) -> dict[int, structures.Detections]:
        """See `Model`."""
        meter = batching.Meter(f"benchmark | {self._candidate.name}", len(files))
        results = {}
        for detections, image_ids in annotated_images.detect(
            self._artifact, files, batch_size=_BATCH_SIZE, meter=meter
        ):
            for row, image_id in enumerate(image_ids.tolist()):
                values = (np.asarray(x)[row : row + 1] for x in detections)
                results[image_id] = structures.Detections(*values)
        meter.close()
        return results

    def measure(self, batch_size: int, secs: float) -> Turn:
        """See `Model`."""
        images = self._images[:batch_size]
        self._artifact.detect(images)  # The other models have replaced the CPU caches.
        turn_secs = []
        start_cpu_secs = time.process_time()
        end_secs = time.perf_counter() + secs
        while True:
            start_secs = time.perf_counter()
            self._artifact.detect(images)
            now_secs = time.perf_counter()
            turn_secs.append(now_secs - start_secs)
            if now_secs >= end_secs:
                return Turn(tuple(turn_secs), time.process_time() - start_cpu_secs)

    def memory_mb(self) -> float | None:
        """See `Model`."""
        peak_mb = _status_mb("VmHWM")
        return None if peak_mb is None else peak_mb - self._initial_mb

    def close(self) -> None:
        """See `Model`."""


def run_process(
    connection: multiprocessing.connection.Connection,
    candidate: candidates.Candidate,
    num_threads: int | None,
) -> None:
    """Runs a process of a model until the other side closes the connection.

    Args:
      connection: The connection.
      candidate: The model.
      num_threads: The number of CPU threads; None leaves it to the runtimes.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # The command ends its processes.
    os.dup2(2, 1)  # Libraries print to stdout, which is for the table.
    # Otherwise the first process that uses a GPU reserves all of its memory.
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    flags.FLAGS.mark_as_parsed()  # absl warns of logs before that.
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    serve(connection, Worker(candidate, num_threads))


def serve(connection: multiprocessing.connection.Connection, model: Model) -> None:
    """Answers requests until the other side closes the connection.

    A request is the name of a method of `Model` and its arguments. An answer is None
    and the result, or the text of an error and None.

    Args:
      connection: The connection.
      model: The model.
    """
    answer: tuple[str | None, Any]
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer = (None, getattr(model, name)(*arguments))
        except errors.UserError as error:
            answer = (str(error), None)
        except Exception as error:  # The runtimes' errors have no common class.
            logging.exception("benchmark | unexpected error")
            answer = (f"{type(error).__name__}: {error}", None)
        with contextlib.suppress(BrokenPipeError):  # The command was interrupted.
            connection.send(answer)


def _reset_peak_mb() -> float:
    """Makes the memory of now the peak of this process, and returns it in MB.

    Otherwise the peak contains the import and the images on their way to this process.
    """
    with contextlib.suppress(OSError):  # Not Linux, or a container forbids it.
        _CLEAR_REFS.write_text("5")  # Source: proc(5), "Reset the peak resident set".
    # The peak cannot be told from the load if it was not reset, so it is the start.
    return _status_mb("VmHWM") or 0.0


def _status_mb(key: str) -> float | None:
    """Returns a number of Linux's status of this process, in MB; None elsewhere."""
    if not _STATUS.exists():
        return None
    match = re.search(rf"^{key}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(match[1]) * 1024 / 1e6 if match else None
