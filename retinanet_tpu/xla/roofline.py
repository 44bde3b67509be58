"""The slices of TPUs that can be rented, and the least time a program takes on one."""

import difflib
import math
from typing import NamedTuple

from retinanet_tpu import errors


class Device(NamedTuple):
    """Peak figures of one device, by its vendor."""

    flops_per_sec: float  # bfloat16
    bytes_per_sec: float  # of HBM
    hbm_bytes: float  # that programs may use


class Accelerator(NamedTuple):
    """A slice: how its topology is called and what it has."""

    topology: str
    num_devices: int
    num_hosts: int
    device: Device


class Interconnect(NamedTuple):
    """What the chips of a slice have between them."""

    num_chips: int
    bytes_per_sec: float  # that the chip with the fewest links sends at once
    num_hops: int  # along one way through all sides


class Roofline(NamedTuple):
    """The least time that a program can take on a device."""

    secs: float
    bound: str  # "compute" or "memory"


_GIB = 1 << 30
# A chip of v2 to v4 has two cores, each a device with half of the chip. The runtime
# keeps some of the HBM; what is left is as libtpu 0.0.42.1 says of programs too large.
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
_CHIPS = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8"}
_CHIPS |= {128: "8x16", 256: "16x16"}

# Bytes/s of one link in one direction. v2: 496 Gbit/s, CACM 63(7), "A Domain-Specific
# Supercomputer"; v3 and v4: arXiv:2304.01433, table 4; later ones: Google Cloud's
# figures of a chip, by its 4 (v5e, v6e) or 6 (v5p) links and two directions.
_LINK = {"v2": 62e9, "v3": 70e9, "v4": 50e9, "v5e": 50e9, "v5p": 100e9, "v6e": 100e9}
# A side as long as a whole pod's is closed to a ring. Of the three-dimensional ones it
# takes cubes of 4 x 4 x 4 chips.
_POD_SIDE = {"v2": 16, "v3": 32, "v5e": 16, "v6e": 16}
# Virtual CPUs of a host of 4 chips, by Google Cloud's machine types; two share a core.
HOST_CPUS = {"v2": 96, "v3": 96, "v4": 240, "v5e": 112, "v5p": 208, "v6e": 180}


def _slices():
    """Returns all slices by name, numbered by cores, v5litepod and v6e by chips."""
    found = {}
    for cores, shape in _TORUS_2D.items():
        if cores not in (64, 1024, 2048):
            found[f"v2-{cores}"] = Accelerator(f"v2:{shape}x1", cores, cores // 8, _V2)
        found[f"v3-{cores}"] = Accelerator(f"v3:{shape}x1", cores, cores // 8, _V3)
    for cores, shape in _TORUS_3D.items():
        found[f"v4-{cores}"] = Accelerator(f"v4:{shape}", cores, cores // 8, _V4)
        # A v5p chip is one device.
        chips = cores // 2
        found[f"v5p-{cores}"] = Accelerator(f"v5p:{shape}", chips, chips // 4, _V5P)
    for chips, shape in _CHIPS.items():
        # Up to 8 chips share a host, but slices of several hosts have 4 on each.
        hosts = 1 if chips <= 8 else chips // 4
        found[f"v5litepod-{chips}"] = Accelerator(f"v5e:{shape}", chips, hosts, _V5E)
        found[f"v6e-{chips}"] = Accelerator(f"v6e:{shape}", chips, hosts, _V6E)
    return found


ACCELERATORS = _slices()


def accelerator(name: str) -> Accelerator:
    """Returns the slice that Google Cloud calls so.

    Raises:
      UserError: no such name; says the nearest ones.
    """
    if name not in ACCELERATORS:
        close = difflib.get_close_matches(name, ACCELERATORS, n=3)
        known = close or sorted(ACCELERATORS)
        raise errors.UserError(f"--topology is '{name}'; known are {', '.join(known)}.")
    return ACCELERATORS[name]


def roofline(flops: float, hbm_bytes: float, device: Device) -> Roofline:
    """Returns the larger of the time to compute and the time to move."""
    compute, memory = flops / device.flops_per_sec, hbm_bytes / device.bytes_per_sec
    bound = "compute" if compute >= memory else "memory"
    return Roofline(max(compute, memory), bound)


def generation(target: Accelerator) -> str:
    """Returns the kind of chip of a slice, such as "v3"."""
    return target.topology.partition(":")[0]


def interconnect(target: Accelerator) -> Interconnect:
    """Returns what a slice has between its chips.

    Where a side is open, its corners have one link in that direction instead of two.
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
