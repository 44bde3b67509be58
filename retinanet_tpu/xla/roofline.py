"""TPU slices, and the lower bound of a program's time on one of their devices."""

import difflib
import math
from typing import NamedTuple

from retinanet_tpu import errors


class Device(NamedTuple):
    """The peak figures of one device, by its vendor.

    Attributes:
      flops_per_sec: The bfloat16 operations per second.
      bytes_per_sec: The bandwidth of the HBM, bytes/s.
      hbm_bytes: The HBM that programs can use, bytes.
    """

    flops_per_sec: float
    bytes_per_sec: float
    hbm_bytes: float


class Accelerator(NamedTuple):
    """A slice.

    Attributes:
      topology: The name of its topology in libtpu.
      num_devices: The number of devices.
      num_hosts: The number of hosts.
      device: The figures of each device.
    """

    topology: str
    num_devices: int
    num_hosts: int
    device: Device


class Interconnect(NamedTuple):
    """The interconnect of a slice.

    Attributes:
      num_chips: The number of chips.
      bytes_per_sec: The rate at which the chip with the fewest links sends, bytes/s.
      num_hops: The number of hops along one way through all sides.
    """

    num_chips: int
    bytes_per_sec: float
    num_hops: int


class Roofline(NamedTuple):
    """The lower bound of a program's time on a device.

    Attributes:
      secs: The time, s.
      bound: The bottleneck, "compute" or "memory".
    """

    secs: float
    bound: str


_GIB = 1 << 30
# A chip of v2 to v4 has two cores, each a device with half of the chip. The runtime
# reserves some of the HBM; the rest is as in libtpu 0.0.42.1's out-of-memory messages.
_V2 = Device(22.5e12, 350e9, 7.48 * _GIB)  # of 8 GiB
_V3 = Device(61.5e12, 450e9, 15.48 * _GIB)  # of 16
_V4 = Device(137.5e12, 614e9, 15.25 * _GIB)  # of 16
_V5E = Device(197e12, 819e9, 15.75 * _GIB)  # of 16
_V5P = Device(459e12, 2765e9, 95 * _GIB)
_V6E = Device(918e12, 1640e9, 31.25 * _GIB)  # of 32

_TORUS_2D = {8: "2x2", 32: "4x4", 64: "4x8", 128: "8x8", 256: "8x16", 512: "16x16"}
_TORUS_2D |= {1024: "16x32", 2048: "32x32"}
_TORUS_3D = {8: "2x2x1", 16: "2x2x2", 32: "2x2x4", 64: "2x4x4", 128: "4x4x4"}
_TORUS_3D |= {256: "4x4x8", 512: "4x8x8", 1024: "8x8x8", 2048: "8x8x16"}
_TORUS_3D |= {4096: "8x16x16"}
_CHIPS = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_CHIPS |= {128: "8x16", 256: "16x16"}

# Bytes/s of one link in one direction. v2: 496 Gbit/s, CACM 63(7), "A Domain-Specific
# Supercomputer"; v3 and v4: arXiv:2304.01433, table 4; later ones: Google Cloud's
# figures of a chip, by its 4 (v5e, v6e) or 6 (v5p) links and two directions.
_LINK = {"v2": 62e9, "v3": 70e9, "v4": 50e9, "v5e": 50e9, "v5p": 100e9, "v6e": 100e9}
# A side as long as a whole pod's is closed to a ring. Three-dimensional slices are
# closed if they consist of cubes of 4 x 4 x 4 chips.
_POD_SIDE = {"v2": 16, "v3": 32, "v5e": 16, "v6e": 16}
# Virtual CPUs of a host of 4 chips, by Google Cloud's machine types; two share a core.
HOST_CPUS = {"v2": 96, "v3": 96, "v4": 240, "v5e": 112, "v5p": 208, "v6e": 180}


def _slices() -> dict[str, Accelerator]:
    """Returns all slices by name; v5litepod and v6e count chips, the others cores."""
    slices = {}
    for cores, shape in _TORUS_2D.items():
        if cores not in (64, 1024, 2048):
            slices[f"v2-{cores}"] = Accelerator(f"v2:{shape}x1", cores, cores // 8, _V2)
        slices[f"v3-{cores}"] = Accelerator(f"v3:{shape}x1", cores, cores // 8, _V3)
    for cores, shape in _TORUS_3D.items():
        slices[f"v4-{cores}"] = Accelerator(f"v4:{shape}", cores, cores // 8, _V4)
        # A v5p chip is one device.
        chips = cores // 2
        slices[f"v5p-{cores}"] = Accelerator(f"v5p:{shape}", chips, chips // 4, _V5P)
    for chips, shape in _CHIPS.items():
        # Up to 8 chips share a host, but slices of several hosts have 4 on each.
        hosts = 1 if chips <= 8 else chips // 4
        slices[f"v5litepod-{chips}"] = Accelerator(f"v5e:{shape}", chips, hosts, _V5E)
        slices[f"v6e-{chips}"] = Accelerator(f"v6e:{shape}", chips, hosts, _V6E)
    return slices


ACCELERATORS = _slices()


def accelerator(name: str) -> Accelerator:
    """Returns a slice.

    Args:
      name: Google Cloud's name of the slice, such as "v3-8". Its two names for slices
        of v5e, "v5litepod-8" and "v5e-8", mean the same.
    Raises:
      UserError: There is no such slice; contains similar names.
    """
    if name.startswith("v5e-"):
        name = name.replace("v5e-", "v5litepod-")
    if name not in ACCELERATORS:
        close = difflib.get_close_matches(name, ACCELERATORS, n=3)
        known = close or sorted(ACCELERATORS)
        raise errors.UserError(f"--topology is '{name}'; known are {', '.join(known)}.")
    return ACCELERATORS[name]


def roofline(flops: float, hbm_bytes: float, device: Device) -> Roofline:
    """Returns the larger of the times for computation and for memory traffic.

    Args:
      flops: The number of floating point operations.
      hbm_bytes: The bytes read from and written to HBM.
      device: The figures of the device.
    """
    compute_secs = flops / device.flops_per_sec
    memory_secs = hbm_bytes / device.bytes_per_sec
    bound = "compute" if compute_secs >= memory_secs else "memory"
    return Roofline(max(compute_secs, memory_secs), bound)


def generation(target: Accelerator) -> str:
    """Returns the kind of chips of a slice, such as "v3"."""
    return target.topology.partition(":")[0]


def interconnect(target: Accelerator) -> Interconnect:
    """Returns the interconnect of a slice.

    On an open side, corner chips have one link in that direction instead of two.

    Args:
      target: The slice.
    """
    kind = generation(target)
    sides = [int(side) for side in target.topology.partition(":")[2].split("x")]
    if kind in _POD_SIDE:
        is_ring = [side == _POD_SIDE[kind] for side in sides]
    else:
        is_ring = [all(side % 4 == 0 for side in sides)] * len(sides)
    pairs = zip(sides, is_ring, strict=True)
    num_links = sum(0 if side == 1 else 1 + closed for side, closed in pairs)
    return Interconnect(
        num_chips=math.prod(sides),
        bytes_per_sec=num_links * _LINK[kind],
        num_hops=sum(side - 1 for side in sides),
    )
