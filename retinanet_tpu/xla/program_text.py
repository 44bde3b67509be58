"""Reads the text of an optimized XLA program."""

import re
from collections.abc import Mapping
from typing import NamedTuple

_COMPUTATION = re.compile(r"(ENTRY )?(%[\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?(%[\w.\-]+) = (\(.*?\)\)?|\S+) ([\w\-]+)\((.*)")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=\{?(%[\w.\-, %]+)")


class Instruction(NamedTuple):
    """An instruction.

    Attributes:
      name: The name, with "%".
      operation: The HLO operation, such as "convolution".
      shape: The HLO shape of the result.
      operands: The names of the operands.
      rest: The rest of the line, from the operands on.
      is_root: Whether its result is that of the computation.
    """

    name: str
    operation: str
    shape: str
    operands: list[str]
    rest: str
    is_root: bool


Computation = dict[str, Instruction]  # by name


def parse(program: str) -> tuple[dict[str, Computation], str]:
    """Returns the instructions of all computations by name, and the entry's name.

    Args:
      program: The text of the optimized HLO module.
    """
    computations: dict[str, Computation] = {}
    current: Computation | None = None
    entry = ""
    for line in program.splitlines():
        if match := _COMPUTATION.match(line):
            current = computations[match[2]] = {}
            entry = match[2] if match[1] else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            root, name, shape, operation, rest = match.groups()
            operands = re.findall(r"%[\w.\-]+", rest.split(")")[0])
            current[name] = Instruction(
                name, operation, shape, operands, rest, bool(root)
            )
    return computations, entry


def called(rest: str) -> list[str]:
    """Returns the names of the computations that an instruction runs.

    Args:
      rest: The `Instruction.rest`. The condition of a loop is not contained.
    """
    match = _CALLED.search(rest)
    return re.findall(r"%[\w.\-]+", match[1]) if match else []


def num_iterations(loop: Instruction, computations: Mapping[str, Computation]) -> int:
    """Returns the number of iterations of a loop; 1 if it is unknown.

    A loop without the compiler's number counts from 0 to the constant of its condition,
    as TensorFlow's loops over arrays do.

    Args:
      loop: An instruction; those that are no loops run once.
      computations: All computations, from `parse`.
    """
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
        return int(known[1])
    condition = re.search(r"condition=(%[\w.\-]+)", loop.rest)
    if loop.operation != "while" or not condition:
        return 1
    instructions = computations[condition[1]]
    root = next(i for i in instructions.values() if i.is_root)
    if root.operation != "compare" or "direction=LT" not in root.rest:
        return 1
    counter, limit = (instructions[name] for name in root.operands)
    constant = re.match(r"(\d+)\)", limit.rest)
    if (counter.operation, limit.operation) != ("get-tuple-element", "constant"):
        return 1
    return int(constant[1]) if constant else 1
