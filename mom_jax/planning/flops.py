"""FLOPs of compiled instructions: matrix products, and kernels that say what they compute."""

import math
import re

from mom_jax.planning.hlo import Computation, Instruction, axes_of, dimensions


def flops_of(around: Computation, instruction: Instruction) -> float:
    """A multiplication and an addition count as two; what is no product counts nothing."""
    match instruction.kind:
        case "dot":
            contracted = dimensions(instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or "")
            sizes = axes_of(around.instructions[instruction.operands[0]].shape)
            return 2.0 * math.prod(axes_of(instruction.shape)) * math.prod(sizes[x] for x in contracted)
        case "convolution":
            return _convolution(around, instruction)
        case "custom-call":
            return _custom_call(around, instruction)
    return 0.0


def _convolution(around: Computation, instruction: Instruction) -> float:
    """XLA for TPU writes products as convolutions; each output takes the kernel's window and input features once."""
    labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.attributes)
    assert labels is not None, f"{instruction.name} has no labels"
    sizes = axes_of(around.instructions[instruction.operands[1]].shape)
    taken = math.prod(size for label, size in zip(labels[1], sizes, strict=True) if label != "o")
    return 2.0 * math.prod(axes_of(instruction.shape)) * taken


def _custom_call(around: Computation, instruction: Instruction) -> float:
    declared = instruction.attribute(r'"?cost_estimate"?:\{"flops":"?(\d+)')  # of a Pallas kernel
    if declared:
        return float(declared)
    contracted = instruction.attribute(r'"lhs_contracting_dimensions":\[([^\]]*)\]')  # of a product by cuBLAS
    if contracted is None:
        return 0.0
    numbers = dimensions(contracted.replace('"', ""))
    sizes = axes_of(around.instructions[instruction.operands[0]].shape)
    return 2.0 * math.prod(axes_of(instruction.shape)) * math.prod(sizes[x] for x in numbers)
