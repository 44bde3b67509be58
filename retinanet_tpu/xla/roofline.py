"""What a compiled program costs on a kind of TPU: bytes moved, time, what bounds it."""

import difflib
import re
from typing import NamedTuple

_ITEM_BYTES = {
    "f32": 4, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "u8": 1, "s8": 1, "pred": 1,
}  # fmt: skip
# Operations that move nothing, or whose other half is counted.
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all",
    "copy-start", "copy-done", "slice-start", "slice-done", "async-start", "async-done",
    "all-reduce-start", "all-reduce-done", "partition-id", "replica-id",
}  # fmt: skip
_ASYNC_COPIES = ("copy-start", "slice-start")
_INSTRUCTION = re.compile(
    r"\s+(?:ROOT )?(%[\w.\-]+) = (\(.*?\)\)?|\S+) ([\w\-]+)\((.*)"
)


class Device(NamedTuple):
    """Peak figures of one device, by its vendor."""

    flops_per_sec: float  # bfloat16
    bytes_per_sec: float  # of HBM
    hbm_bytes: float


class Accelerator(NamedTuple):
    """A slice: how its topology is called and how many devices it has."""

    topology: str
    num_devices: int
    device: Device


class Move(NamedTuple):
    """An instruction of the optimised program and the HBM bytes it reads and writes."""

    num_bytes: int
    operation: str
    shape: str
    source: str  # the TensorFlow operation it came from


class Roofline(NamedTuple):
    """The least time that a program can take on a device."""

    secs: float
    bound: str  # "compute" or "memory"
    hbm_bytes: float
    flops: float


# A chip of v2 to v4 has two cores, each a device with half of the chip.
_V2 = Device(22.5e12, 350e9, 8 << 30)
_V3 = Device(61.5e12, 450e9, 16 << 30)
_V4 = Device(137.5e12, 614e9, 16 << 30)
_V5E = Device(197e12, 819e9, 16 << 30)
_V5P = Device(459e12, 2765e9, 95 << 30)
_V6E = Device(918e12, 1640e9, 32 << 30)
ACCELERATORS = {
    "v2-8": Accelerator("v2:2x2x1", 8, _V2),
    "v2-32": Accelerator("v2:4x4x1", 32, _V2),
    "v3-8": Accelerator("v3:2x2x1", 8, _V3),
    "v3-32": Accelerator("v3:4x4x1", 32, _V3),
    "v3-64": Accelerator("v3:4x8x1", 64, _V3),
    "v3-128": Accelerator("v3:8x8x1", 128, _V3),
    "v4-8": Accelerator("v4:2x2x1", 8, _V4),
    "v4-16": Accelerator("v4:2x2x2", 16, _V4),
    "v4-32": Accelerator("v4:2x2x4", 32, _V4),
    "v5litepod-4": Accelerator("v5e:2x2", 4, _V5E),
    "v5litepod-8": Accelerator("v5e:2x4", 8, _V5E),
    "v5litepod-16": Accelerator("v5e:4x4", 16, _V5E),
    "v5litepod-32": Accelerator("v5e:4x8", 32, _V5E),
    "v5litepod-64": Accelerator("v5e:8x8", 64, _V5E),
    "v5p-8": Accelerator("v5p:2x2x1", 4, _V5P),
    "v5p-16": Accelerator("v5p:2x2x2", 8, _V5P),
    "v5p-32": Accelerator("v5p:2x2x4", 16, _V5P),
    "v6e-4": Accelerator("v6e:2x2", 4, _V6E),
    "v6e-8": Accelerator("v6e:2x4", 8, _V6E),
    "v6e-16": Accelerator("v6e:4x4", 16, _V6E),
    "v6e-32": Accelerator("v6e:4x8", 32, _V6E),
    "v6e-64": Accelerator("v6e:8x8", 64, _V6E),
}


def accelerator(name: str) -> Accelerator:
    """Returns the slice that Google Cloud calls so.

    Raises:
      ValueError: no such name; says the nearest ones.
    """
    if name not in ACCELERATORS:
        close = difflib.get_close_matches(name, ACCELERATORS, n=3)
        known = close or sorted(ACCELERATORS)
        raise ValueError(f"--topology is '{name}'; known are {', '.join(known)}.")
    return ACCELERATORS[name]


def moves(program: str) -> list[Move]:
    """Returns what each instruction of a program moves through HBM, largest first.

    From v4 on the compiler keeps buffers in on-chip memory, marked S(1) in their
    layouts; those do not count, and a copy between the memories counts once. A loop's
    body counts as one pass of it.

    Args:
      program: the text of the optimised HLO module.
    """
    entry = program[program.index("\nENTRY") :]
    shapes, found = {}, []
    for line in entry.splitlines():
        if match := _INSTRUCTION.match(line):
            name, shape, operation, rest = match.groups()
            shapes[name] = shape
            operands = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
            num_bytes = _moved(operation, shape, [shapes.get(o, "") for o in operands])
            source = re.search(r'op_name="([^"]*)"', line)
            found.append(Move(num_bytes, operation, shape, source[1] if source else ""))
    return sorted((m for m in found if m.num_bytes), reverse=True)


def roofline(flops: float, hbm_bytes: float, device: Device) -> Roofline:
    """Returns the larger of the time to compute and the time to move."""
    compute, memory = flops / device.flops_per_sec, hbm_bytes / device.bytes_per_sec
    bound = "compute" if compute >= memory else "memory"
    return Roofline(max(compute, memory), bound, hbm_bytes, flops)


def _moved(operation, shape, operand_shapes):
    if operation in _ASYNC_COPIES:
        ends = sorted(_arrays(shape))[:2]
        return ends[0][0] if len({is_on_chip for _, is_on_chip in ends}) == 2 else 0
    if operation in _FREE:
        return 0
    sizes = [_arrays(text) for text in (shape, *operand_shapes)]
    return sum(size for found in sizes for size, is_on_chip in found if not is_on_chip)


def _arrays(text):
    """Returns (bytes, is on chip) of each array in a shape."""
    found = []
    for dtype, dims, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", text):
        if dtype in _ITEM_BYTES and "S(2)" not in layout:
            size = _ITEM_BYTES[dtype]
            for dim in filter(None, dims.split(",")):
                size *= int(dim)
            found.append((size, "S(1)" in layout))
    return found
