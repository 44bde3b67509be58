"""How long a run takes on a slice, and what it asks of the machines around it.

Arithmetic on what the compiler counted and on what hosts were measured to do. Times of
devices are lower bounds, divided by the share of them that is taken to be reached.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.estimator.run_config import RunConfig
from retinanet_tpu.xla import roofline

_HOP_SECS = 1e-6  # From a chip to the next, however short the message; not measured.
_SAVE_SECS = 600  # RunConfig's own interval where the run names none.


class Work(NamedTuple):
    """What a replica does in a training step, and what it tells the others."""

    images: int
    flops: float
    hbm_bytes: float
    fixed_bytes: float  # of hbm_bytes: weights and slots, however many images
    reduced_bytes: float  # gradients, which are exchanged once
    num_exchanges: int  # one after the other, nearly all of them a few numbers


class StepTime(NamedTuple):
    """How long a training step takes; the exchange is taken to wait for the rest."""

    images: int  # of all replicas
    device_secs: float
    exchange_secs: float

    @property
    def images_per_sec(self) -> float:
        """The rate of all replicas."""
        return self.images / (self.device_secs + self.exchange_secs)

    @property
    def exchange_share(self) -> float:
        """The part of the step that is spent in exchanges."""
        return self.exchange_secs / (self.device_secs + self.exchange_secs)


class Scaled(NamedTuple):
    """A step on another slice, or with another batch."""

    name: str
    num_devices: int
    time: StepTime
    efficiency: float  # images/s of a device, of those it did alone at the first batch


class Saving(NamedTuple):
    """What a run writes."""

    num_saves: int
    interval_secs: float
    written_bytes: float
    kept_bytes: float


def exchange_secs(work: Work, target: roofline.Accelerator) -> float:
    """Returns the least time for the exchanges of a step.

    Rings send 2 (n - 1) / n of the bytes from each of n chips, over all links of the
    chip that has the fewest, and the numbers of each exchange go through all sides of
    the slice and back. What the two cores of a chip tell each other costs nothing.
    """
    net = roofline.interconnect(target)
    if net.num_chips == 1:
        return 0.0
    sent = 2 * (net.num_chips - 1) / net.num_chips * work.reduced_bytes
    waiting = work.num_exchanges * 2 * net.num_hops * _HOP_SECS
    return sent / net.bytes_per_sec + waiting


def step_time(
    work: Work,
    target: roofline.Accelerator,
    *,
    images: int | None = None,
    efficiency: float = 1.0,
) -> StepTime:
    """Returns how long a step takes on a slice.

    Args:
      work: of a replica.
      target: the slice.
      images: of a replica, if not those of `work`; arithmetic and maps grow with them.
      efficiency: in (0, 1], the share of the device's bound that is reached.
    """
    images = work.images if images is None else images
    ratio = images / work.images
    hbm_bytes = work.fixed_bytes + ratio * (work.hbm_bytes - work.fixed_bytes)
    bound = roofline.roofline(ratio * work.flops, hbm_bytes, target.device)
    return StepTime(
        images * target.num_devices,
        bound.secs / efficiency,
        exchange_secs(work, target),
    )


def reached_efficiency(
    work: Work, target: roofline.Accelerator, images_per_sec: float
) -> float:
    """Returns the share of the device's bound that a measured rate stands for.

    Raises:
      UserError: the rate is above the bound.
    """
    bound = step_time(work, target)
    left = bound.images / images_per_sec - bound.exchange_secs
    if left < bound.device_secs:
        raise errors.UserError(
            f"{images_per_sec:,.0f} images/s is more than the bound of "
            f"{bound.images_per_sec:,.0f}; was it measured on this slice, with this "
            "batch and network?"
        )
    return bound.device_secs / left


def scaled(
    work: Work,
    target: roofline.Accelerator,
    *,
    efficiency: float = 1.0,
    batch_size: int | None = None,
    max_images: float = math.inf,
) -> list[Scaled]:
    """Returns the step on every slice of a generation, the smallest first.

    Args:
      work: of a replica.
      target: any slice of the generation.
      efficiency: see step_time.
      batch_size: of all replicas, the same on each slice; slices that cannot share it
        out are left out. None for as many images on each replica as in `work`.
      max_images: of a replica; slices where it would have more are left out.
    """
    step = step_time(work, target, efficiency=efficiency)
    alone = work.images / step.device_secs
    found = []
    for name, other in roofline.ACCELERATORS.items():
        count = other.num_devices
        images, rest = divmod(batch_size or work.images * count, count)
        is_like = roofline.generation(other) == roofline.generation(target)
        if not is_like or rest or images > max_images:
            continue
        time = step_time(work, other, images=images, efficiency=efficiency)
        share = time.images_per_sec / count / alone
        found.append(Scaled(name, count, time, share))
    return sorted(found, key=lambda row: row.num_devices)


def last_at_least(rows: Iterable[Scaled], share: float) -> Scaled | None:
    """Returns the largest slice before the first that is less efficient, or None."""
    good = list(itertools.takewhile(lambda row: row.efficiency >= share, rows))
    return good[-1] if good else None


def saving(
    run_config: RunConfig,
    *,
    max_steps: int,
    steps_per_sec: float,
    num_bytes: float,
) -> Saving:
    """Returns what a run saves.

    Args:
      run_config: says when it saves and how many checkpoints it keeps.
      max_steps: of the whole run, the last of which is saved in any case.
      steps_per_sec: of training.
      num_bytes: of a checkpoint.
    """
    secs = run_config.save_checkpoints_secs or _SAVE_SECS
    if run_config.save_checkpoints_steps:
        secs = run_config.save_checkpoints_steps / steps_per_sec
    # A run shorter than its interval saves at its end.
    secs = min(secs, max_steps / steps_per_sec)
    num_saves = math.ceil(round(max_steps / steps_per_sec / secs, 6))
    kept = min(run_config.keep_checkpoint_max or num_saves, num_saves)
    return Saving(num_saves, secs, num_saves * num_bytes, kept * num_bytes)


def scoring_secs(
    num_images: int, *, rates: Iterable[float], metric_secs: float
) -> float:
    """Returns how long a machine takes to score a checkpoint.

    Args:
      num_images: of the evaluation split.
      rates: images/s of what runs at once; the slowest counts.
      metric_secs: for the numbers at the end.
    """
    return num_images / min(rates) + metric_secs
