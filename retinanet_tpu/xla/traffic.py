"""The memory traffic of a compiled TPU program, instruction by instruction."""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from retinanet_tpu.xla import program_text
from retinanet_tpu.xla.program_text import Computation, Instruction

_ITEM_BYTES = {
    "f32": 4, "bf16": 2, "f16": 2, "f64": 8, "s32": 4, "u32": 4, "s64": 8, "u64": 8,
    "s16": 2, "u16": 2, "u8": 1, "s8": 1, "pred": 1, "c64": 8,
}  # fmt: skip
# Memory spaces, marked S(1) in a layout: HBM, the vector memory, and the common memory
# of v4. Scalars have S(2).
_HBM, _VMEM, _CMEM = 0, 1, 3
# Operations that move nothing, or whose counterpart is counted.
_FREE = {
    "parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all",
    "copy-done", "slice-done", "async-done", "async-update", "all-reduce-done",
    "partition-id", "replica-id", "optimization-barrier",
}  # fmt: skip
_ASYNC_COPIES = {"copy-start", "slice-start"}
_NO_CALL = 'custom_call_target="AllocateBuffer"'
_SLICES = {"slice", "dynamic-slice", "gather"}  # They read only their results.
_UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # The operand that is written.

_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)((?::[^}]*)?)\})?")


class Move(NamedTuple):
    """The memory traffic of an instruction of the optimized program.

    Attributes:
      num_bytes: The bytes read from and written to HBM.
      on_chip_bytes: The bytes read from and written to on-chip memory.
      operation: The HLO operation.
      shape: The HLO shape of the result.
      source: The name of the TensorFlow operation; "" if unknown.
    """

    num_bytes: int
    on_chip_bytes: int
    operation: str
    shape: str
    source: str


def moves(program: str) -> list[Move]:
    """Returns the traffic of each instruction of a program, most HBM traffic first.

    Arrays are counted in whole tiles, as memories store them. Of an array that is only
    sliced, or updated in place, only that part counts. From v4 on the compiler keeps
    buffers in on-chip memory; a copy between the memories counts once in each. A loop's
    body counts by the known number of iterations, else once.

    Args:
      program: The text of the optimized HLO module.
    """
    computations, entry = program_text.parse(program)
    every_move = _moves_of(computations[entry], computations)
    return sorted(
        (m for m in every_move if m.num_bytes or m.on_chip_bytes), reverse=True
    )


def _moves_of(
    instructions: Computation,
    computations: Mapping[str, Computation],
    times: int = 1,
) -> Iterator[Move]:
    users = _users(instructions)
    for instruction in instructions.values():
        operation, rest = instruction.operation, instruction.rest
        called = program_text.called(rest)
        if operation in ("while", "call", "conditional", "async-start") and called:
            inner = times * program_text.num_iterations(instruction, computations)
            for name in called:
                yield from _moves_of(computations[name], computations, inner)
            continue
        sizes = _moved(instruction, instructions, computations)
        yield Move(
            times * sizes[_HBM],
            times * (sizes[_VMEM] + sizes[_CMEM]),
            operation,
            instruction.shape,
            _source(instruction, users),
        )


def _users(instructions: Computation) -> Mapping[str, list[Instruction]]:
    users = collections.defaultdict(list)
    for instruction in instructions.values():
        for operand in instruction.operands:
            users[operand].append(instruction)
    return users


def _source(instruction: Instruction, users: Mapping[str, list[Instruction]]) -> str:
    """Returns the operation of an instruction; of a copy, that of its first user."""
    if match := re.search(r'op_name="([^"]*)"', instruction.rest):
        return match[1]
    if instruction.operation not in _ASYNC_COPIES | {"copy-done", "slice-done"}:
        return ""
    sources = (_source(user, users) for user in users[instruction.name])
    return next(filter(None, sources), "")


def _moved(
    instruction: Instruction,
    instructions: Computation,
    computations: Mapping[str, Computation],
) -> collections.Counter[int]:
    """Returns the bytes that an instruction moves, by memory space."""
    moved: collections.Counter[int] = collections.Counter()
    if instruction.operation in _FREE or _NO_CALL in instruction.rest:
        return moved
    written = _arrays(instruction.shape)
    if instruction.operation in _ASYNC_COPIES:
        # The shape has both ends; the source may be larger than the copied part.
        size = min(size for size, _ in written[:2])
        for _, space in written[:2]:
            moved[space] += size
        return moved
    operands = [instructions[name] for name in instruction.operands]
    shares, written_share = _shares(instruction, operands, computations)
    for operand, share in zip(operands, shares, strict=True):
        for size, space in _arrays(operand.shape):
            moved[space] += int(size * share)
    for size, space in written:
        moved[space] += int(size * written_share)
    return moved


def _shares(
    instruction: Instruction,
    operands: Sequence[Instruction],
    computations: Mapping[str, Computation],
) -> tuple[list[float], float]:
    """Returns the share of each operand that is read, and of the result written."""
    if instruction.operation == "fusion":
        return _shares_of_fusion(computations[program_text.called(instruction.rest)[0]])
    total = _size(instruction.shape)
    shares = [1.0] * len(operands)
    if instruction.operation in _SLICES:
        shares[0] = _ratio(total, _size(operands[0].shape))
    if instruction.operation in _UPDATES:
        update = operands[_UPDATES[instruction.operation]]
        written = _ratio(_size(update.shape), total)
        # A scatter may add to the present values, so it reads them.
        read = written if instruction.operation == "scatter" else 0.0
        return [read, *shares[1:]], written
    return shares, 1.0


def _shares_of_fusion(body: Computation) -> tuple[list[float], float]:
    parameters = sorted(
        (int(i.rest.split(")")[0]), i)
        for i in body.values()
        if i.operation == "parameter"
    )
    users = _users(body)
    shares = [
        min(1.0, _ratio(_read(p.name, users), _size(p.shape))) for _, p in parameters
    ]
    root = next(i for i in body.values() if i.is_root)
    roots = [body[n] for n in root.operands] if root.operation == "tuple" else [root]
    total = sum(_size(r.shape) for r in roots)
    return shares, _ratio(sum(_written(r, body) for r in roots), total)


def _read(name: str, users: Mapping[str, list[Instruction]]) -> float:
    """Returns the bytes of a value that a fusion reads."""
    sizes: list[float] = []
    for user in users[name]:
        if user.operation in _SLICES and user.operands[0] == name:
            sizes.append(_size(user.shape))
        elif user.operation in _UPDATES and user.operands[0] == name:
            sizes.append(0)
        elif user.operation == "bitcast":
            sizes.append(_read(user.name, users))
        else:
            return float("inf")
    return sum(sizes)


def _written(root: Instruction, body: Computation) -> int:
    while root.operation == "bitcast":
        root = body[root.operands[0]]
    if root.operation in _UPDATES:
        return _size(body[root.operands[_UPDATES[root.operation]]].shape)
    return _size(root.shape)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _size(shape: str) -> int:
    return sum(size for size, _ in _arrays(shape))


def _arrays(text: str) -> list[tuple[int, int]]:
    """Returns the bytes and the memory space of each array in a shape."""
    arrays = []
    for dtype, dims, order, layout in _ARRAY.findall(text):
        if dtype in _ITEM_BYTES:
            space = re.search(r"S\((\d+)\)", layout)
            size = _ITEM_BYTES[dtype] * _num_stored(dims, order, layout)
            arrays.append((size, int(space[1]) if space else _HBM))
    return arrays


def _num_stored(dims_text: str, order: str, layout: str) -> int:
    """Returns the number of elements of an array, filled up to whole tiles."""
    dims = [int(d) for d in dims_text.split(",") if d]
    from_minor = [dims[int(i)] for i in order.split(",") if i] or dims or [1]
    match = re.search(r"T\(([\d,]+)\)", layout)
    tile = [int(t) for t in match[1].split(",")][::-1] if match else []
    from_minor += [1] * (len(tile) - len(from_minor))
    stored = 1
    for i, dim in enumerate(from_minor):
        stored *= -(-dim // tile[i]) * tile[i] if i < len(tile) else dim
    return stored
