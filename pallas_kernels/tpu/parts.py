"""What the TPU kernels share: the grid over chunks, decays within a chunk, products, and layouts of rows and gates.

Every kernel runs on a grid (heads / MB, chunks). The chunks of a block of MB heads follow each other
and keep a state in VMEM; a table of one int32 for each chunk says where a segment loads and stores it.

Inside a kernel, values of a chunk are float32 [MB, C, K]; what belongs to a row is a column
[MB, C, 1] or, as it lies in memory, [MB, 1, C].
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.chunks import Chunks, Unsupported

LANES = 128
DEFAULT_SCOPE = 16 * 2**20  # bytes of VMEM that a kernel gets unless it asks for more


# Layouts in memory.


def heads_first(x: jax.Array) -> jax.Array:
    """Rows [N, H, K] as [H, N, K]."""
    return jnp.swapaxes(x, 0, 1)


rows_first = heads_first  # its own inverse


def pack_gates(x: jax.Array, chunk: int) -> jax.Array:
    """[N, H] as float32 [H, chunks, 1, C]: [H, N, 1] would fill one lane of 128."""
    return x.T.astype(jnp.float32).reshape(x.shape[1], -1, 1, chunk)


def unpack_gates(x: jax.Array) -> jax.Array:
    """The inverse of `pack_gates`."""
    return x.reshape(x.shape[0], -1).T


def pack_documents(chunks: Chunks) -> jax.Array | None:
    """Document numbers [N] as int32 [chunks, 1, C]."""
    return None if chunks.document is None else chunks.document.reshape(chunks.segment.shape[0], 1, -1)


# The table of chunks, in scalar memory.


def pack_table(chunks: Chunks) -> jax.Array:
    """Segments and flags in one int32 for each chunk."""
    return chunks.segment * 4 + chunks.first.astype(jnp.int32) * 2 + chunks.last.astype(jnp.int32)


def segment_of(entry: jax.Array) -> jax.Array:
    """The segment of a chunk, S for an unused one."""
    return entry >> 2


def is_first(entry: jax.Array) -> jax.Array:
    """Whether the chunk is its segment's first."""
    return (entry & 2) != 0


def is_last(entry: jax.Array) -> jax.Array:
    """Whether the chunk is its segment's last."""
    return (entry & 1) != 0


def visited(chunks: Chunks, segments: int) -> jax.Array:
    """bool [S, 1, 1, 1]: segments that have a chunk. No kernel writes the states of the others."""
    return jnp.any(chunks.segment == jnp.arange(segments)[:, None], 1)[:, None, None, None]


class Blocks(NamedTuple):
    """Block specifications of a kernel on the grid (H / MB, chunks).

    In a ``reverse`` kernel the last chunk comes first; `place` tells its body which chunk it has.
    """

    heads: int  # MB
    size: int  # C
    chunks: int
    reverse: bool = False

    def place(self, step):
        """The chunk of a grid step."""
        return self.chunks - 1 - step if self.reverse else step

    def rows(self, channels: int) -> pl.BlockSpec:
        """Of rows [H, N, channels]."""
        return pl.BlockSpec((self.heads, self.size, channels), lambda h, c, table: (h, self.place(c), 0))

    def gates(self) -> pl.BlockSpec:
        """Of gates [H, chunks, 1, C]."""
        return pl.BlockSpec((self.heads, None, 1, self.size), lambda h, c, table: (h, self.place(c), 0, 0))

    def documents(self) -> pl.BlockSpec:
        """Of documents [chunks, 1, C]."""
        return pl.BlockSpec((None, 1, self.size), lambda h, c, table: (self.place(c), 0, 0))

    def per_chunk(self, *shape: int) -> pl.BlockSpec:
        """Of what each chunk has one of, [H, chunks, *shape]."""
        zeros = (0,) * len(shape)
        return pl.BlockSpec((self.heads, None, *shape), lambda h, c, table: (h, self.place(c), *zeros))

    def loaded(self, segments: int, *shape: int) -> pl.BlockSpec:
        """Of states [S, H, *shape] that segments load; unused chunks name the last one and load nothing."""
        zeros = (0,) * len(shape)

        def index(h, c, table):
            return jnp.minimum(segment_of(table[self.place(c)]), segments - 1), h, *zeros

        return pl.BlockSpec((None, self.heads, *shape), index)

    def stored(self, *shape: int) -> pl.BlockSpec:
        """Of states [S + 1, H, *shape] that segments store; the last is that of unused chunks."""
        zeros = (0,) * len(shape)
        return pl.BlockSpec(
            (None, self.heads, *shape), lambda h, c, table: (segment_of(table[self.place(c)]), h, *zeros)
        )


# Calling a kernel.

Interpret = bool | pltpu.InterpretParams


class Device(NamedTuple):
    """What a kernel is built for."""

    generation: str  # "v5e", "v6e", ...
    vmem: int  # bytes of VMEM of a core


def device() -> Device:
    """The TPU that the program being traced is for; v5e where there is none."""
    if not pltpu.is_tpu_device():
        return Device("v5e", 128 * 2**20)
    info = pltpu.get_tpu_info()
    return Device(str(info.chip_version), info.vmem_capacity_bytes)


def check_vmem(need: int, sizes: str) -> None:
    """Raises `Unsupported` where kernels for ``sizes``, as they are told to the user, need more VMEM than there is."""
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
    state: tuple[int, ...],
    blocks: Blocks,
    vmem: int,
    flops: int,
    interpret: Interpret,
) -> dict[str, jax.Array]:
    """Runs ``body(table, state=..., **inputs, **outputs)`` on the grid (heads / MB, chunks).

    Args:
        body: takes references by name; None for an operand that is None.
        table: `pack_table`, prefetched.
        state: shape of the float32 scratch that stays from chunk to chunk.
        vmem: bytes of VMEM that the kernel may use; below 16 MiB it may use those.
        flops: of the whole call, for profilers.
        interpret: run on the host.

    Returns:
        The outputs by name, without those that are None.
    """
    given = {name: x for name, x in inputs.items() if x is not None}
    asked = {name: x for name, x in outputs.items() if x is not None}
    absent = dict.fromkeys(name for name, x in (*inputs.items(), *outputs.items()) if x is None)

    def kernel(table, *refs):
        body(table, **dict(zip((*given, *asked, "state"), refs, strict=True)), **absent)

    heads = next(iter(given.values())).array.shape[0]
    results = pl.pallas_call(
        kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(heads // blocks.heads, blocks.chunks),
            in_specs=[x.spec for x in given.values()],
            out_specs=[x.spec for x in asked.values()],
            scratch_shapes=[pltpu.VMEM(state, jnp.float32)],
        ),
        out_shape=[x.array for x in asked.values()],
        # heads in any order (on two cores at once where a chip has them), chunks one after the other
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=max(vmem, DEFAULT_SCOPE)
        ),
        cost_estimate=pl.CostEstimate(
            flops=flops,
            transcendentals=0,
            bytes_accessed=sum(x.array.size * x.array.dtype.itemsize for x in (*given.values(), *asked.values())),
        ),
        interpret=interpret,
    )(table, *(x.array for x in given.values()))
    return dict(zip(asked, results, strict=True))


def operand_bytes(operands: Operands) -> int:
    """Bytes of VMEM of the operands' blocks, of which two are there at a time."""
    present = (x for x in operands.values() if x is not None)
    return 2 * sum(tile_bytes(x.spec.block_shape or (), x.array.dtype) for x in present)


def tile_bytes(shape: Sequence[Any], dtype: jax.typing.DTypeLike) -> int:
    """Bytes of a block in VMEM: its last two axes fill tiles of 8 x 128 words."""
    *outer, rows, columns = (n for n in shape if n is not None)
    size = jnp.dtype(dtype).itemsize
    tile = 8 * 4 // size if rows > 8 else 8
    return math.prod(outer) * -(-rows // tile) * tile * -(-columns // LANES) * LANES * size


# Inside a kernel.


def product(a: jax.Array, b: jax.Array, *, a_by: int = -1, b_by: int = -2) -> jax.Array:
    """Batched matrix product [MB, m, n] in float32, summed over axis ``a_by`` of a and ``b_by`` of b.

    Float32 operands are multiplied exactly to float32; bfloat16 ones in one pass.
    """
    dimensions = (((a.ndim + a_by,), (b.ndim + b_by,)), ((0,), (0,)))
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def pieces(x: jax.Array, count: int) -> list[jax.Array]:
    """``count`` bfloat16 arrays whose sum is float32 ``x`` to 8 bits each; three hold it exactly."""
    parts = []
    for _ in range(count):
        parts.append(x.astype(jnp.bfloat16))
        x = x - parts[-1].astype(jnp.float32)
    return parts


def split_product(a: jax.Array, b: jax.Array, count: int, **axes: int) -> jax.Array:
    """`product` of float32 values as ``count`` pieces each, without the products below their precision."""
    left, right = pieces(a, count), pieces(b, count)
    terms = [product(left[i], right[j], **axes) for i in range(count) for j in range(count - i)]
    return functools.reduce(jnp.add, terms)


def row_index(shape: tuple[int, ...]) -> jax.Array:
    """The index along the last axis but one."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)


def column_index(shape: tuple[int, ...]) -> jax.Array:
    """The index along the last axis."""
    return jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def to_column(x: jax.Array) -> jax.Array:
    """[MB, 1, C] as [MB, C, 1]."""
    square = (x.shape[0], x.shape[-1], x.shape[-1])
    return jnp.sum(jnp.where(row_index(square) == column_index(square), x, 0.0), -1, keepdims=True)


def to_row(x: jax.Array) -> jax.Array:
    """[MB, C, 1] as [MB, 1, C]."""
    square = (x.shape[0], x.shape[1], x.shape[1])
    return jnp.sum(jnp.where(row_index(square) == column_index(square), x, 0.0), -2, keepdims=True)


class Documents(NamedTuple):
    """Which paths stay within one document; all rows belong to one where there are no documents."""

    between: jax.Array | None  # bool [1, C, C]: two rows
    enter: jax.Array | None  # bool [1, C, 1]: the chunk's start and a row
    leave: jax.Array | None  # bool [1, C, 1]: a row and the chunk's end
    across: jax.Array | None  # bool [1, 1, 1]: start and end


def documents(number: jax.Array | None) -> Documents:
    """The masks of a chunk's document numbers, int32 [1, C]."""
    if number is None:
        return Documents(None, None, None, None)
    row = number.astype(jnp.float32)[None]  # exact: at most C
    column, last = to_column(row), jnp.max(row, -1, keepdims=True)
    return Documents(column == row, column == 0, column == last, last == 0)


def masked(x: jax.Array, keep: jax.Array | None) -> jax.Array:
    """``x`` where ``keep`` holds, else 0."""
    return x if keep is None else jnp.where(keep, x, 0.0)


class Decays(NamedTuple):
    """Decays from one log gate for each head."""

    between: jax.Array  # [MB, C, C]: from row i to row t, 0 above the diagonal
    enter: jax.Array  # [MB, C, 1]: from the chunk's start to a row
    leave: jax.Array  # [MB, C, 1]: from a row to the chunk's end
    across: jax.Array  # [MB, 1, 1]


def head_decays(gates: jax.Array, inside: Documents) -> Decays:
    """Decays of gates [MB, 1, C]; a row reads after its own gate.

    Sums run over just the gates between two rows: a difference of running sums would lose
    weak gates beside very negative ones.
    """
    square = (gates.shape[0], gates.shape[-1], gates.shape[-1])
    t, i = row_index(square), column_index(square)
    lower = jnp.where(i <= t, 1.0, 0.0).astype(jnp.bfloat16)
    terms = pieces(jnp.where(t > i, to_column(gates), 0.0), 3)
    passed = sum(product(lower, x) for x in terms)  # over i < j <= t
    kept = i <= t if inside.between is None else (i <= t) & inside.between
    entering = jnp.sum(jnp.where(i <= t, gates, 0.0), -1, keepdims=True)
    leaving = jnp.sum(jnp.where(i > t, gates, 0.0), -1, keepdims=True)
    return Decays(
        between=jnp.exp(jnp.where(kept, passed, -jnp.inf)),
        enter=masked(jnp.exp(entering), inside.enter),
        leave=masked(jnp.exp(leaving), inside.leave),
        across=masked(jnp.exp(jnp.sum(gates, -1, keepdims=True)), inside.across),
    )


def head_gate_gradients(paths: jax.Array, entering: jax.Array, leaving: jax.Array, across: jax.Array) -> jax.Array:
    """Gradients [MB, 1, C] of log gates from those of the logarithms of `Decays`, of the same shapes.

    The gate of row j lies on every path from a row i < j to a row t >= j, from the start to t,
    and from i to the end.
    """
    i, j = row_index(paths.shape), column_index(paths.shape)
    lower = jnp.where(j <= i, 1.0, 0.0).astype(jnp.bfloat16)
    reaching = sum(product(x, lower, a_by=-2) for x in pieces(paths, 3))  # over t >= j, [i, j]
    total = jnp.where(i < j, reaching + leaving, 0.0) + jnp.where(j <= i, entering, 0.0)
    return jnp.sum(total, -2, keepdims=True) + across
