"""The floating point operations of loops, which XLA counts once."""

import math
import re
from collections.abc import Mapping

from retinanet_tpu.xla import program_text


def uncounted(program: str) -> float:
    """Returns the operations of all iterations of loops but the first ones.

    Contained are convolutions, which on TPUs are all matrix products. Sums over padded
    borders count like others.

    Args:
      program: The text of the optimized HLO module.
    """
    computations, entry = program_text.parse(program)
    flops_of_all = _flops(entry, computations, repeats=True)
    return flops_of_all - _flops(entry, computations, repeats=False)


def _flops(
    name: str, computations: Mapping[str, program_text.Computation], *, repeats: bool
) -> float:
    """Returns the operations of a computation, with one or with all iterations."""
    instructions = computations[name]
    total = 0.0
    for instruction in instructions.values():
        if instruction.operation == "convolution":
            total += _flops_of_convolution(instruction, instructions)
        times = 1
        if repeats:
            times = program_text.num_iterations(instruction, computations)
        for inner in program_text.called(instruction.rest):
            total += times * _flops(inner, computations, repeats=repeats)
    return total


def _flops_of_convolution(
    convolution: program_text.Instruction, instructions: program_text.Computation
) -> float:
    kernel = _sides(instructions[convolution.operands[1]].shape)
    labels = re.search(r"dim_labels=\w+_(\w+)->", convolution.rest)
    if not labels:
        return 0.0
    products = math.prod(kernel) / kernel[labels[1].index("o")]
    return 2 * math.prod(_sides(convolution.shape)) * products


def _sides(shape: str) -> list[int]:
    """Returns the sides of an array with a shape such as "bf16[8,64]{1,0}"."""
    match = re.match(r"\w+\[([\d,]*)\]", shape)
    return [int(side) for side in match[1].split(",") if side] if match else []
