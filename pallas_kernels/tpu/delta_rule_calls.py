"""Calls of the gated delta rule's TPU kernels: arrays and blocks by name, heads per block, and the VMEM they need."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.configs import Config, Entry, find
from pallas_kernels.tpu import calls, delta_rule_kernels
from pallas_kernels.tpu.calls import LANES, LARGE_VMEM, Interpret, Operand
from pallas_kernels.tpu.layout import Blocks


class Sizes(NamedTuple):
    """The sizes of a call."""

    heads: int  # H
    chunks: int
    rows: int  # C
    keys: int  # K
    values: int  # V
    segments: int  # S
    dtype: str

    def operands(self, blocks: Blocks) -> dict[str, Operand]:
        """Every array of the kernels by name, with its blocks."""
        heads, chunks, rows, keys, values, segments, dtype = self
        state = keys, values
        groups = {
            ("q", "k", "dq", "dk"): ((heads, chunks * rows, keys), dtype, blocks.rows(keys)),
            ("v", "o", "do", "dv", "errors"): ((heads, chunks * rows, values), dtype, blocks.rows(values)),
            ("g", "beta", "dg", "dbeta"): ((heads, chunks, 1, rows), "float32", blocks.gates()),
            ("document",): ((chunks, 1, rows), "int32", blocks.documents()),
            ("inverse",): ((heads, chunks, rows, rows), dtype, blocks.per_chunk(rows, rows)),
            ("states",): ((heads, chunks, *state), dtype, blocks.per_chunk(*state)),
            ("initial", "dfinal"): ((segments, heads, *state), "float32", blocks.loaded(segments, *state)),
            ("final", "dinitial"): ((segments + 1, heads, *state), "float32", blocks.stored(*state)),
        }
        arrays = {names: Operand(jax.ShapeDtypeStruct(shape, of), spec) for names, (shape, of, spec) in groups.items()}
        return {name: x for names, x in arrays.items() for name in names}


class Kernel(NamedTuple):
    """A kernel and what it needs.

    Registers that the compiler spills to VMEM are given as float32 arrays of K V, C (K + V) / 2
    and C C values for each head: from above, for what libtpu 0.0.48 spills. Float32 rows spill
    more, because each product is six with bfloat16 pieces.
    """

    body: Callable[..., None]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    products: tuple[int, int, int]  # matrix products of C K V, C C K and C C V multiplications
    spilled: dict[str, tuple[int, int, int]]  # by dtype of the rows
    reverse: bool = False


_ROWS = ("k", "g", "beta", "document")
KERNELS = {
    "forward": Kernel(
        delta_rule_kernels.forward,
        inputs=(*_ROWS, "q", "v", "initial"),
        outputs=("o", "final", "inverse"),
        products=(3, 2, 2),
        spilled={"bfloat16": (1, 2, 8), "float32": (4, 8, 16)},
    ),
    "borders": Kernel(
        delta_rule_kernels.borders,
        inputs=(*_ROWS, "v", "inverse", "initial"),
        outputs=("states", "errors"),
        products=(2, 0, 1),
        spilled={"bfloat16": (1, 1, 2), "float32": (2, 2, 4)},
    ),
    "reverse": Kernel(
        delta_rule_kernels.reverse,
        inputs=(*_ROWS, "q", "inverse", "errors", "states", "do", "dfinal"),
        outputs=("dq", "dk", "dv", "dg", "dbeta", "dinitial"),
        products=(6, 5, 4),
        spilled={"bfloat16": (5, 6, 12), "float32": (14, 24, 28)},
        reverse=True,
    ),
}

# More heads in a block fill the gaps of each other's dependent steps: bfloat16 at K = V = 256 and C = 128 takes 2360
# bundles for one head and 6600 for four. Float32 products leave few gaps, and several heads spill many registers.
_EACH = [
    Entry(Config(block_h=4), LARGE_VMEM, itemsize=2, size=256),
    Entry(Config(block_h=2), LARGE_VMEM, itemsize=2),
    Entry(Config(block_h=4), LARGE_VMEM, itemsize=4, size=64),
    Entry(Config(block_h=2), LARGE_VMEM, itemsize=4, size=128),
    Entry(Config(block_h=4), itemsize=2, size=128),
    Entry(Config(block_h=2), itemsize=4, size=64),
    Entry(Config(block_h=1)),
]
CONFIGS = {name: list(_EACH) for name in KERNELS}


def heads_per_block(name: str, sizes: Sizes, generation: str) -> int:
    """As many heads as the kernel's configuration allows."""
    size, itemsize = max(sizes.keys, sizes.values), jnp.dtype(sizes.dtype).itemsize
    most = find(CONFIGS[name], generation, itemsize, size).block_h or 1
    return max(calls.block_heads(sizes.heads, most))


def vmem_bytes(name: str, sizes: Sizes, heads: int) -> int:
    """Bytes of VMEM that a kernel needs with ``heads`` in a block, spilled registers included."""
    kernel, every = KERNELS[name], sizes.operands(Blocks(heads, sizes.rows, sizes.chunks))
    operands = {n: every[n] for n in (*kernel.inputs, *kernel.outputs)}
    rows, keys, values = sizes.rows, max(sizes.keys, LANES), max(sizes.values, LANES)
    a, b, c = kernel.spilled[sizes.dtype]
    spilled = a * keys * values + b * rows * (keys + values) // 2 + c * rows * max(rows, LANES)
    return calls.vmem_bytes(operands, (heads, sizes.keys, sizes.values), 4 * heads * spilled)


def run(
    name: str,
    sizes: Sizes,
    table: jax.Array,
    arrays: Mapping[str, jax.Array | None],
    outputs: Sequence[str],
    interpret: Interpret,
    **constants: float,
) -> dict[str, jax.Array]:
    """The outputs of a kernel whose names are ``outputs``."""
    kernel, target = KERNELS[name], calls.device()
    heads = heads_per_block(name, sizes, target.generation)
    blocks = Blocks(heads, sizes.rows, sizes.chunks, kernel.reverse)
    operands = sizes.operands(blocks)
    inputs = {n: None if arrays[n] is None else operands[n]._replace(array=arrays[n]) for n in kernel.inputs}
    return calls.launch(
        functools.partial(kernel.body, blocks=blocks, **constants),
        table,
        inputs,
        {n: operands[n] if n in outputs else None for n in kernel.outputs},
        grid=(sizes.heads // heads, sizes.chunks),
        scratch={"state": (heads, sizes.keys, sizes.values)},
        vmem=min(vmem_bytes(name, sizes, heads) * 5 // 4, target.vmem),  # compilers differ
        flops=_flops(kernel, sizes),
        interpret=interpret,
    )


def _flops(kernel, sizes):
    _, _, rows, keys, values, _, _ = sizes
    a, b, c = kernel.products
    return 2 * sizes.heads * sizes.chunks * rows * (a * keys * values + b * rows * keys + c * rows * values)
