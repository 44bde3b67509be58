"""The time of a run on a slice, and the load of the machines around it.

Estimates from the compiler's counts and the measured rates of hosts. Times of devices
are lower bounds, divided by the assumed efficiency.
"""

import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple

from retinanet_tpu import errors
from retinanet_tpu.estimator.run_config import RunConfig
from retinanet_tpu.xla import roofline

_HOP_SECS = 1e-6  # The latency between neighboring chips; not measured.
_SAVE_SECS = 600  # RunConfig's interval where the run sets none.


class Work(NamedTuple):
    """The work of a replica in a training step.

    Attributes:
      images: The number of images.
      flops: The number of floating point operations.
      hbm_bytes: The bytes read from and written to HBM.
      fixed_bytes: The part of hbm_bytes that does not depend on the number of images:
        weights and slots.
      reduced_bytes: The bytes of the gradients, which are reduced once.
      num_collectives: The number of successive collectives; nearly all are small.
    """

    images: int
    flops: float
    hbm_bytes: float
    fixed_bytes: float
    reduced_bytes: float
    num_collectives: int


class StepTime(NamedTuple):
    """The time of a training step; collectives are assumed not to overlap with it.

    Attributes:
      images: The number of images of all replicas.
      device_secs: The time of a device without collectives, s.
      exchange_secs: The time of the collectives, s.
    """

    images: int
    device_secs: float
    exchange_secs: float

    @property
    def images_per_sec(self) -> float:
        """Returns the rate of all replicas, images/s."""
        return self.images / (self.device_secs + self.exchange_secs)

    @property
    def exchange_share(self) -> float:
        """Returns the share of the step that collectives take."""
        return self.exchange_secs / (self.device_secs + self.exchange_secs)


class Scaled(NamedTuple):
    """A step on another slice, or with another batch.

    Attributes:
      name: The name of the slice.
      num_devices: The number of devices.
      time: The time of the step.
      efficiency: The rate per device, relative to a device alone with the first batch.
    """

    name: str
    num_devices: int
    time: StepTime
    efficiency: float


class Saving(NamedTuple):
    """The checkpoints of a run.

    Attributes:
      num_saves: The number of checkpoints that are written.
      interval_secs: The time between two checkpoints, s.
      written_bytes: The bytes of all checkpoints.
      kept_bytes: The bytes of the checkpoints that are kept.
    """

    num_saves: int
    interval_secs: float
    written_bytes: float
    kept_bytes: float


def exchange_secs(work: Work, target: roofline.Accelerator) -> float:
    """Returns the lower bound of the time of a step's collectives, s.

    In a ring reduction each of n chips sends 2 (n - 1) / n of the bytes, over all links
    of the chip with the fewest links. Each collective also travels through all sides of
    the slice and back. Communication between the two cores of a chip is free.

    Args:
      work: The work of a replica.
      target: The slice.
    """
    net = roofline.interconnect(target)
    if net.num_chips == 1:
        return 0.0
    sent_bytes = 2 * (net.num_chips - 1) / net.num_chips * work.reduced_bytes
    latency = work.num_collectives * 2 * net.num_hops * _HOP_SECS
    return sent_bytes / net.bytes_per_sec + latency


def step_time(
    work: Work,
    target: roofline.Accelerator,
    *,
    images: int | None = None,
    efficiency: float = 1.0,
) -> StepTime:
    """Returns the time of a step on a slice.

    Args:
      work: The work of a replica.
      target: The slice.
      images: The number of images of a replica; None for that of `work`. Operations and
        feature maps grow with it.
      efficiency: The share of the device's bound that is reached, in (0, 1].
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
    """Returns the share of the device's bound that a measured rate reaches.

    Args:
      work: The work of a replica.
      target: The slice.
      images_per_sec: The measured rate of all replicas, images/s.
    Raises:
      UserError: The rate is above the bound.
    """
    bound = step_time(work, target)
    device_secs = bound.images / images_per_sec - bound.exchange_secs
    if device_secs < bound.device_secs:
        raise errors.UserError(
            f"{images_per_sec:,.0f} images/s is more than the bound of "
            f"{bound.images_per_sec:,.0f}; was it measured on this slice, with this "
            "batch and network?"
        )
    return bound.device_secs / device_secs


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
      work: The work of a replica.
      target: Any slice of the generation.
      efficiency: See step_time.
      batch_size: The number of images of all replicas on each slice; slices that cannot
        share it equally are left out. None keeps the images per replica of `work`.
      max_images: The most images of a replica; slices that need more are left out.
    """
    step = step_time(work, target, efficiency=efficiency)
    rate_alone = work.images / step.device_secs
    rows = []
    for name, other in roofline.ACCELERATORS.items():
        count = other.num_devices
        images, rest = divmod(batch_size or work.images * count, count)
        is_same_kind = roofline.generation(other) == roofline.generation(target)
        if not is_same_kind or rest or images > max_images:
            continue
        time = step_time(work, other, images=images, efficiency=efficiency)
        share = time.images_per_sec / count / rate_alone
        rows.append(Scaled(name, count, time, share))
    return sorted(rows, key=lambda row: row.num_devices)


def last_at_least(rows: Iterable[Scaled], share: float) -> Scaled | None:
    """Returns the last row before the first that is less efficient, or None.

    Args:
      rows: The rows, by rising number of devices.
      share: The least efficiency.
    """
    efficient = list(itertools.takewhile(lambda row: row.efficiency >= share, rows))
    return efficient[-1] if efficient else None


def saving(
    run_config: RunConfig,
    *,
    max_steps: int,
    steps_per_sec: float,
    num_bytes: float,
) -> Saving:
    """Returns the checkpoints of a run.

    Args:
      run_config: The settings of the interval and of the number of checkpoints kept.
      max_steps: The number of steps of the run; the last step is always saved.
      steps_per_sec: The rate of training, steps/s.
      num_bytes: The size of a checkpoint, bytes.
    """
    secs: float = run_config.save_checkpoints_secs or _SAVE_SECS
    if run_config.save_checkpoints_steps:
        secs = run_config.save_checkpoints_steps / steps_per_sec
    # A run shorter than its interval saves at its end.
    secs = min(secs, max_steps / steps_per_sec)
    num_saves = math.ceil(round(max_steps / steps_per_sec / secs, 6))
    kept = min(run_config.keep_checkpoint_max or num_saves, num_saves)
    return Saving(num_saves, secs, num_saves * num_bytes, kept * num_bytes)


def evaluation_secs(
    num_images: int, *, rates: Iterable[float], metric_secs: float
) -> float:
    """Returns the time to evaluate a checkpoint, s.

    Args:
      num_images: The number of images of the evaluation split.
      rates: The rates of the concurrent stages, images/s; the slowest one counts.
      metric_secs: The time of the metric after the last image, s.
    """
    return num_images / min(rates) + metric_secs
