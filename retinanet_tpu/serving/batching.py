"""Many images through an exported model: read ahead, put together by size, timed.

  meter = stream.Meter("predict", len(paths))
  images = enumerate(stream.ahead(read, paths))
  for batch, found in stream.detect(artifact, images, batch_size=8, meter=meter):
      ...

Batches come in another order than the images; their ids say which are which.
"""

import collections
import concurrent.futures
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import tqdm
from absl import logging

from retinanet_tpu import errors, look_ahead, structures
from retinanet_tpu.serving import artifacts

# Decoders let go of Python's lock, so that as many images are decoded at once.
_NUM_WORKERS = 4
# Of a batch, which models hold as float32: 200 MB then.
_MAX_PIXELS = 1 << 24
# Batches' worth of images that may wait for more of their size.
_MAX_WAITING = 4
_LOG_LINES = 10


class Batch(NamedTuple):
    """Images of one size."""

    ids: tuple[int, ...]
    pictures: np.ndarray  # uint8 [B, H, W, 3]


class Meter:
    """Counts and times images, and tells how far it is.

    On a terminal a bar does, elsewhere about ten lines of the log.
    """

    def __init__(self, name: str, total: int):
        """Starts the clock.

        Args:
          name: of the command, for bar and log.
          total: images to come at most.
        """
        self._name, self._total = name, total
        self._batches = []  # (images, seconds of the model) of each
        self._bar = tqdm.tqdm(desc=name, total=total, unit=" images", disable=None)
        self._start_secs = time.perf_counter()

    @property
    def num_pictures(self) -> int:
        """Returns how many images came."""
        return sum(count for count, _ in self._batches)

    @property
    def rate(self) -> float:
        """Returns images a second, reading and all."""
        return self.num_pictures / (time.perf_counter() - self._start_secs)

    @property
    def model_rate(self) -> float:
        """Returns images a second of the model, 0 before there were any.

        Where there are more, the first batch is left out, for it prepares the model.
        """
        batches = self._batches[1:] or self._batches
        secs = sum(secs for _, secs in batches)
        return sum(count for count, _ in batches) / secs if secs else 0.0

    def add(self, num_pictures: int, model_secs: float) -> None:
        """Counts a batch and the time that the model took for it."""
        before = self.num_pictures
        self._batches.append((num_pictures, model_secs))
        self._bar.update(num_pictures)
        step = max(1, self._total // _LOG_LINES)
        if self._bar.disable and before // step != self.num_pictures // step:
            logging.info("%s | %s", self._name, self)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()

    def __str__(self) -> str:
        """Returns how far it is and how fast, as the log has it."""
        return (
            f"{self.num_pictures}/{self._total} images | {self.rate:.1f} images/s, "
            f"{self.model_rate:.1f} of the model alone"
        )


def ahead(fn: Callable[[Any], Any], items: Iterable) -> Iterator:
    """Yields fn of each item in order, worked out in threads while others are used.

    Args:
      fn: safe to run in threads; what it raises is raised here.
      items: taken one by one in the caller's thread, a few more than are used.
    """
    with concurrent.futures.ThreadPoolExecutor(_NUM_WORKERS) as workers:
        yield from look_ahead.map_ordered(workers, fn, items, ahead=2 * _NUM_WORKERS)


def by_size(
    pictures: Iterable[tuple[int, np.ndarray]], batch_size: int
) -> Iterator[Batch]:
    """Puts images of equal size together, holding back only a few batches.

    Args:
      images: id and uint8 [H, W, 3] of each.
      batch_size: images of a batch at most; of very large ones fewer fit.
    """
    waiting = collections.defaultdict(list)
    for image_id, picture in pictures:
        size = picture.shape[:2]
        waiting[size].append((image_id, picture))
        shares = {size: _fullness(group, batch_size) for size, group in waiting.items()}
        if shares[size] >= 1:
            yield _batch(waiting.pop(size))
        elif sum(shares.values()) >= _MAX_WAITING:
            yield _batch(waiting.pop(max(shares, key=shares.get)))
    yield from map(_batch, waiting.values())


def detect(
    artifact: artifacts.Artifact,
    pictures: Iterable[tuple[int, np.ndarray]],
    *,
    batch_size: int,
    meter: Meter,
    skip_fn: Callable[[Batch, errors.UserError], None] | None = None,
) -> Iterator[tuple[Batch, structures.Detections]]:
    """Yields batches of images, not in their order, and what was found in them.

    Args:
      artifact: finds it.
      images: id and uint8 [H, W, 3] of each.
      batch_size: images of a batch at most.
      meter: counts the images and times the artifact.
      skip_fn: Called for a batch that the artifact refuses; None raises the error.
    Raises:
      UserError: The artifact refuses a batch.
    """
    for batch in by_size(pictures, batch_size):
        start_secs = time.perf_counter()
        try:
            found = artifact.detect(batch.pictures)
        except errors.UserError as error:
            if skip_fn is None:
                named = ", ".join(map(str, batch.ids))
                raise errors.UserError(f"Image ids {named}: {error}") from error
            skip_fn(batch, error)
            continue
        meter.add(len(batch.ids), time.perf_counter() - start_secs)
        yield batch, found


def _fullness(group: list[tuple[int, np.ndarray]], batch_size: int) -> float:
    """Returns how much of a batch the images are, 1 for a full one."""
    height, width = group[0][1].shape[:2]
    return len(group) / max(1, min(batch_size, _MAX_PIXELS // (height * width)))


def _batch(group: list[tuple[int, np.ndarray]]) -> Batch:
    ids, pictures = zip(*group, strict=True)
    return Batch(ids, np.stack(pictures))
