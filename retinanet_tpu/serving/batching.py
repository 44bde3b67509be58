"""Runs an exported model on many images: reads ahead, batches by size, measures time.

  meter = batching.Meter("predict", len(paths))
  images = enumerate(batching.map_in_threads(read, paths))
  batches = batching.detect_batches(artifact, images, batch_size=8, meter=meter)
  for batch, detections in batches:
      ...

Batches are not in the order of the images; their ids identify the images.
"""

import collections
import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import numpy as np
import tqdm
from absl import logging

from retinanet_tpu import errors, look_ahead, structures
from retinanet_tpu.serving import artifacts

Item = TypeVar("Item")
Result = TypeVar("Result")

# Image decoders release Python's global lock, so this many images are decoded at once.
_NUM_WORKERS = 4
# Pixels of a batch. Models store them as float32, which takes 200 MB.
MAX_PIXELS = 1 << 24
# Full batches' worth of images that may wait for more images of their size.
_MAX_WAITING = 4
_LOG_LINES = 10
_LOG_STEP = 100  # Images between two lines if the total is unknown.


class Batch(NamedTuple):
    """Images of one size."""

    ids: tuple[int, ...]
    images: np.ndarray  # uint8 [B, H, W, 3]


# Called for a batch that the artifact rejects.
SkipFn = Callable[[Batch, errors.UserError], None]


class Meter:
    """A counter and timer of images.

    On a terminal it displays a progress bar, elsewhere it logs about ten lines.
    """

    def __init__(self, name: str, total: int | None, *, unit: str = "images"):
        """Initializes the meter and starts its clock.

        Args:
          name: The name of the command, for the bar and the log.
          total: The greatest number of images; None if it is unknown.
          unit: The plural of what is counted.
        """
        self._name = name
        self._total = total
        self._unit = unit
        self._first = (0, 0.0)  # Images of the first batch and seconds of the model.
        self._later = (0, 0.0)  # The same of all later batches.
        self._bar = tqdm.tqdm(desc=name, total=total, unit=f" {unit}", disable=None)
        self._start_secs = time.perf_counter()

    @property
    def num_images(self) -> int:
        """Returns the number of images so far."""
        return self._first[0] + self._later[0]

    @property
    def rate(self) -> float:
        """Returns images per second, including the time to read them."""
        return self.num_images / (time.perf_counter() - self._start_secs)

    @property
    def model_rate(self) -> float:
        """Returns images per second of the model alone, 0 before the first batch.

        The first batch is left out if there are more, because it prepares the model.
        """
        count, secs = self._later if self._later[0] else self._first
        return count / secs if secs else 0.0

    def add(self, num_images: int, model_secs: float) -> None:
        """Adds a batch.

        Args:
          num_images: The number of images in the batch.
          model_secs: The seconds that the model needed for the batch.
        """
        before = self.num_images
        if before:
            count, secs = self._later
            self._later = count + num_images, secs + model_secs
        else:
            self._first = num_images, model_secs
        self._bar.update(num_images)
        step = max(1, self._total // _LOG_LINES) if self._total else _LOG_STEP
        if self._bar.disable and before // step != self.num_images // step:
            logging.info("%s | %s", self._name, self)

    def close(self) -> None:
        """Ends the progress bar."""
        self._bar.close()

    def __str__(self) -> str:
        """Returns progress and rates as one line for the log."""
        total = "" if self._total is None else f"/{self._total}"
        return (
            f"{self.num_images}{total} {self._unit} | {self.rate:.1f} {self._unit}/s, "
            f"{self.model_rate:.1f} of the model alone"
        )


def map_in_threads(
    fn: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """Yields fn of each item in order, computed ahead in threads.

    Args:
      fn: A thread-safe function; its errors are raised here.
      items: The items. They are read in the caller's thread, a few ahead of the
        results.
    """
    with concurrent.futures.ThreadPoolExecutor(_NUM_WORKERS) as workers:
        yield from look_ahead.map_ordered(workers, fn, items, ahead=2 * _NUM_WORKERS)


def batch_by_size(
    images: Iterable[tuple[int, np.ndarray]], batch_size: int
) -> Iterator[Batch]:
    """Batches images of equal size, holding back only a few batches.

    Args:
      images: The id and uint8 [H, W, 3] of each image.
      batch_size: The most images of a batch; batches of very large images are smaller.
    """
    waiting = collections.defaultdict(list)
    for image_id, image in images:
        size = image.shape[:2]
        waiting[size].append((image_id, image))
        shares = {size: _fullness(group, batch_size) for size, group in waiting.items()}
        if shares[size] >= 1:
            yield _make_batch(waiting.pop(size))
        elif sum(shares.values()) >= _MAX_WAITING:
            fullest = max(shares, key=lambda size: shares[size])
            yield _make_batch(waiting.pop(fullest))
    yield from map(_make_batch, waiting.values())


def detect_batches(
    artifact: artifacts.Artifact,
    images: Iterable[tuple[int, np.ndarray]],
    *,
    batch_size: int,
    meter: Meter,
    skip_fn: SkipFn | None = None,
) -> Iterator[tuple[Batch, structures.Detections]]:
    """Yields batches of images, not in their order, and their detections.

    Args:
      artifact: The exported model.
      images: The id and uint8 [H, W, 3] of each image.
      batch_size: The most images of a batch.
      meter: The meter that counts the images and times the artifact.
      skip_fn: Called for a batch that the artifact rejects; None raises the error.
    Raises:
      UserError: The artifact rejects a batch.
    """
    for batch in batch_by_size(images, batch_size):
        start_secs = time.perf_counter()
        try:
            detections = artifact.detect(batch.images)
        except errors.UserError as error:
            if skip_fn is None:
                ids = ", ".join(map(str, batch.ids))
                raise errors.UserError(f"Image ids {ids}: {error}") from error
            skip_fn(batch, error)
            continue
        meter.add(len(batch.ids), time.perf_counter() - start_secs)
        yield batch, detections


def most_images(height: int, width: int, batch_size: int) -> int:
    """Returns the most images of a size in a batch: batch_size, or less if it is large.

    Args:
      height: The height of the images, px.
      width: The width of the images, px.
      batch_size: The most images of a batch.
    """
    return max(1, min(batch_size, MAX_PIXELS // (height * width)))


def log_warning(message: str, *args: object) -> None:
    """Logs a warning without breaking the progress bar."""
    with tqdm.tqdm.external_write_mode():
        logging.warning(message, *args)


def _fullness(group: list[tuple[int, np.ndarray]], batch_size: int) -> float:
    """Returns which part of a full batch the images are, 1 for a full one."""
    height, width = group[0][1].shape[:2]
    return len(group) / most_images(height, width, batch_size)


def _make_batch(group: list[tuple[int, np.ndarray]]) -> Batch:
    ids, images = zip(*group, strict=True)
    return Batch(ids, np.stack(images))
