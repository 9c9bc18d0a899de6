"""Calling a TPU kernel: its operands, the device, and the VMEM that it needs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.chunks import Unsupported

LANES = 128
DEFAULT_SCOPE = 16 * 2**20  # bytes of VMEM that a kernel gets unless it asks for more
LARGE_VMEM = ("v5e", "v5p", "v6e", "7x")  # generations with more than those

Interpret = bool | pltpu.InterpretParams


class Device(NamedTuple):
    """The device that a kernel is compiled for."""

    generation: str  # "v5e", "v6e", ...
    vmem: int  # bytes of VMEM of a core
    cores: int = 1  # that share a program


def device() -> Device:
    """The TPU that the program being traced is for; v5e where there is none."""
    if not pltpu.is_tpu_device():
        return Device("v5e", 128 * 2**20)
    info = pltpu.get_tpu_info()
    return Device(str(info.chip_version), info.vmem_capacity_bytes, info.num_cores or 1)


def block_heads(heads: int, most: int) -> list[int]:
    """Heads that a block may have: divisors of ``heads``, up to ``most``, that leave a block for every core."""
    most = min(most, max(1, heads // device().cores))
    return [n for n in range(1, most + 1) if heads % n == 0]


def check_vmem(need: int, sizes: str) -> None:
    """Raises `Unsupported` where kernels need more VMEM than there is; ``sizes`` is for the message."""
    target = device()
    if need > target.vmem:
        missing = f"{need / 2**20:.0f} MiB of VMEM, of which {target.generation} has {target.vmem / 2**20:.0f}"
        raise Unsupported(f"{sizes} need {missing}: take smaller chunks")


class Operand(NamedTuple):
    """An input or output in memory, and its blocks."""

    array: jax.Array | jax.ShapeDtypeStruct
    spec: pl.BlockSpec


Operands = Mapping[str, Operand | None]


def launch(
    body: Callable[..., None],
    table: jax.Array,
    inputs: Operands,
    outputs: Operands,
    *,
    grid: tuple[int, int],
    scratch: Mapping[str, tuple[int, ...]],
    vmem: int,
    flops: int,
    interpret: Interpret,
    transcendentals: int = 0,
) -> dict[str, jax.Array]:
    """Runs ``body(table, **inputs, **outputs, **scratch)`` on a grid.

    Args:
        body: takes references by name; None for an operand that is None.
        table: prefetched.
        inputs, outputs: operands by name.
        grid: its first axis is run in any order (on two cores at once where a chip has them), its second in sequence.
        scratch: shapes of float32 memory that persists along the second axis.
        vmem: bytes of VMEM that the kernel may use; below 16 MiB it may use those.
        flops, transcendentals: of the whole call, for profilers.
        interpret: run on the host.

    Returns:
        The outputs by name, without those that are None.
    """
    present = {name: x for name, x in inputs.items() if x is not None}
    produced = {name: x for name, x in outputs.items() if x is not None}
    absent = dict.fromkeys(name for name, x in (*inputs.items(), *outputs.items()) if x is None)

    def kernel(table, *refs):
        body(table, **dict(zip((*present, *produced, *scratch), refs, strict=True)), **absent)

    results = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=grid,
            in_specs=[x.spec for x in present.values()],
            out_specs=[x.spec for x in produced.values()],
            scratch_shapes=[pltpu.VMEM(shape, jnp.float32) for shape in scratch.values()],
        ),
        out_shape=[x.array for x in produced.values()],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=max(vmem, DEFAULT_SCOPE)
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=transcendentals,
            bytes_accessed=sum(x.array.size * x.array.dtype.itemsize for x in (*present.values(), *produced.values())),
        ),
        interpret=interpret,
    )(table, *(x.array for x in present.values()))
    return dict(zip(produced, results, strict=True))


def vmem_bytes(operands: Operands, state: tuple[int, ...], inside: int) -> int:
    """Bytes of VMEM of a kernel.

    Args:
        operands: inputs and outputs; two blocks of each are held at a time.
        state: shape of the float32 scratch.
        inside: bytes of intermediate values that do not fit into registers.
    """
    present = (x for x in operands.values() if x is not None)
    blocks = 2 * sum(tile_bytes(x.spec.block_shape or (), x.array.dtype) for x in present)
    return blocks + tile_bytes(state, jnp.float32) + inside


def tile_bytes(shape: Sequence[Any], dtype: jax.typing.DTypeLike) -> int:
    """Bytes of a block in VMEM, whose last two axes are padded to tiles of 8 x 128 words."""
    *outer, rows, columns = (n for n in shape if n is not None)
    size = jnp.dtype(dtype).itemsize
    tile = 8 * 4 // size if rows > 8 else 8
    return math.prod(outer) * -(-rows // tile) * tile * -(-columns // LANES) * LANES * size
