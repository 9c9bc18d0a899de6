"""Matrix products of contiguous row groups, each with its own weight, as Triton kernels.

``y[n] = x[n] @ weight[g]`` for the group g that row n falls into. A program computes one tile of rows of one
group, so that its rows share a weight: the groups' sizes are data, and which group and rows a tile has is found
by a search in their running sums. The weights' gradient is one program for each block of each weight, which
loops over the rows of its group; nothing is added atomically.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

from pallas_kernels.arguments import GPU
from pallas_kernels.chunks import Unsupported
from pallas_kernels.gpu.launch import float32_precision, for_device, launch

TILES = (16, 32, 64, 128)
NARROW = 64  # columns


class Blocks(NamedTuple):
    """Rows and columns of a program's result, what it sums at once, and how it is launched."""

    rows: int
    columns: int
    inner: int
    num_warps: int
    num_stages: int


class Kernels(NamedTuple):
    """Blocks of the product and of the weights' gradient."""

    product: Blocks
    gradient: Blocks


# By generation, then bytes of an element.
TUNING = {
    "sm_80": {
        2: Kernels(Blocks(128, 128, 32, 4, 4), Blocks(128, 128, 32, 4, 4)),
        4: Kernels(Blocks(64, 64, 32, 4, 3), Blocks(64, 64, 32, 4, 3)),
    },
    "sm_90": {
        2: Kernels(Blocks(128, 256, 64, 8, 3), Blocks(128, 256, 64, 8, 3)),
        4: Kernels(Blocks(64, 64, 32, 4, 3), Blocks(64, 64, 32, 4, 3)),
    },
    "sm_100": {
        2: Kernels(Blocks(128, 256, 64, 8, 3), Blocks(128, 256, 64, 8, 3)),
        4: Kernels(Blocks(128, 64, 32, 4, 3), Blocks(64, 64, 32, 4, 3)),
    },
    "gfx942": {
        2: Kernels(Blocks(128, 128, 32, 4, 2), Blocks(128, 128, 32, 4, 2)),
        4: Kernels(Blocks(64, 64, 32, 4, 2), Blocks(64, 64, 32, 4, 2)),
    },
}


class Tiles(NamedTuple):
    """Tiles of rows that do not cross a group's border; rows behind the last group are group G."""

    group: jax.Array  # [tiles] int32, G + 1 for tiles that are not used
    first: jax.Array  # [tiles] int32: first row
    end: jax.Array  # [tiles] int32: end of the group's rows


def tiles_of(group_sizes: jax.Array, rows: int, tile: int, block: int) -> Tiles:
    """Covers ``rows`` by tiles of ``block`` rows, where every group has a multiple of ``tile``."""
    groups = group_sizes.shape[0] + 1
    sizes = jnp.append(group_sizes, rows - jnp.sum(group_sizes)).astype(jnp.int32)
    count = (rows + groups * (block - min(block, tile))) // block
    ends = jnp.cumsum(sizes)
    tiles = -(-sizes // block)
    last = jnp.cumsum(tiles)
    number = jnp.arange(count, dtype=jnp.int32)
    group = jnp.searchsorted(last, number, side="right").astype(jnp.int32)
    within = number - (last - tiles).at[group].get(mode="clip")
    first = (ends - sizes).at[group].get(mode="clip") + within * block
    return Tiles(group, first.astype(jnp.int32), ends.at[group].get(mode="clip").astype(jnp.int32))


@triton.jit
def product_kernel(
    x, weight, group, first, end, y,
    GROUPS: tl.constexpr, INNER: tl.constexpr, COLUMNS: tl.constexpr, DOWN: tl.constexpr, ACROSS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y = x @ weight[g]`` for one tile and one block of columns; the weight has strides ``DOWN`` and ``ACROSS``."""
    blocks = tl.cdiv(COLUMNS, BLOCK)
    tile = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(group + tile)
    begin = tl.load(first + tile)
    row = tl.arange(0, ROWS)
    inside = (begin + row < tl.load(end + tile))[:, None]
    if g <= GROUPS:
        total = tl.zeros((ROWS, BLOCK), tl.float32)
        if g < GROUPS:
            x += begin.to(tl.int64) * INNER
            weight += g.to(tl.int64) * INNER * COLUMNS
            for start in range(0, INNER, STEP):
                i = start + tl.arange(0, STEP)
                left = tl.load(x + row[:, None] * INNER + i[None, :], mask=inside & (i < INNER)[None, :], other=0.0)
                at = i[:, None] * DOWN + column[None, :] * ACROSS
                kept = (i < INNER)[:, None] & (column < COLUMNS)[None, :]
                total = tl.dot(left, tl.load(weight + at, mask=kept, other=0.0), total, input_precision=PRECISION)
        y += begin.to(tl.int64) * COLUMNS
        kept = inside & (column < COLUMNS)[None, :]
        tl.store(y + row[:, None] * COLUMNS + column[None, :], total.to(y.dtype.element_ty), mask=kept)


@triton.jit
def weight_gradient_kernel(
    x, dy, start, dweight,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dweight[g] = x_g^T @ dy_g`` for one block of one group; group g has the rows from ``start[g]``."""
    blocks = tl.cdiv(OUTPUTS, BLOCK)
    row = ((tl.program_id(0) // blocks) * ROWS + tl.arange(0, ROWS))[:, None]
    column = ((tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK))[None, :]
    g = tl.program_id(1).to(tl.int64)
    begin = tl.load(start + g)
    x += begin.to(tl.int64) * INPUTS
    dy += begin.to(tl.int64) * OUTPUTS
    step = tl.arange(0, STEP)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for _ in range(begin, tl.load(start + g + 1), STEP):
        left = tl.load(x + step[None, :] * INPUTS + row, mask=row < INPUTS, other=0.0)
        right = tl.load(dy + step[:, None] * OUTPUTS + column, mask=column < OUTPUTS, other=0.0)
        total = tl.dot(left, right, total, input_precision=PRECISION)
        x += STEP * INPUTS
        dy += STEP * OUTPUTS
    kept = (row < INPUTS) & (column < OUTPUTS)
    at = g * INPUTS * OUTPUTS + row * OUTPUTS + column
    tl.store(dweight + at, total.to(dweight.dtype.element_ty), mask=kept)


def grouped_matmul(
    x: jax.Array,
    weights: tuple[jax.Array, ...],
    group_sizes: jax.Array,
    tile: int,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """``y[n] = x[n] @ w[g]`` for every ``w`` in ``weights`` and the group g that row n falls into.

    Cost follows the rows, not N * G. Sums in float32. Weights of few columns are multiplied side by side, so that
    x is read once for all of them; each wide one by itself, so that none is copied.

    Args:
        x: [N, D] rows, float32, bfloat16 or float16; N is a multiple of ``tile``.
        weights: [G, D, F] each, of the same dtype.
        group_sizes: [G] int32 rows of each group, each a multiple of ``tile`` and perhaps 0. Groups follow each
            other from row 0; rows behind the last one give 0.
        tile: 16, 32, 64 or 128.
        device: the generation to compile for, a row of `TUNING`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        [N, F] in ``x.dtype`` for each weight.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays that do not fit each other.
    """
    for weight in weights:
        _check(x, weight, group_sizes, tile, device)
    narrow = [i for i, weight in enumerate(weights) if weight.shape[2] < NARROW]
    run = functools.partial(_grouped_matmul, group_sizes=group_sizes, tile=tile, device=device, interpret=interpret)
    found = {i: run(x, weight) for i, weight in enumerate(weights) if i not in narrow}
    if narrow:
        ends = np.cumsum([weights[i].shape[2] for i in narrow])
        together = run(x, jnp.concatenate([weights[i] for i in narrow], 2))
        found |= dict(zip(narrow, jnp.split(together, ends[:-1], 1), strict=True))
    return tuple(found[i] for i in range(len(weights)))


def _check(x, weight, group_sizes, tile, device):
    for_device(TUNING, device)
    GPU.check(dtype=x.dtype.name)
    if weight.dtype != x.dtype:
        raise Unsupported(f"weight is {weight.dtype}: the GPU kernels take {x.dtype} here, as x is")
    if tile not in TILES:
        raise Unsupported(f"tile={tile} is none of {', '.join(map(str, TILES))}")
    if x.ndim != 2 or x.shape[0] % tile:
        raise ValueError(f"x {x.shape} does not have a multiple of tile={tile} rows; expected [N, D]")
    if weight.ndim != 3 or weight.shape[:2] != (*group_sizes.shape, x.shape[1]):
        raise ValueError(f"weight {weight.shape} does not fit {group_sizes.shape} groups of x {x.shape}: [G, D, F]")


@functools.partial(jax.custom_vjp, nondiff_argnames=("tile", "device", "interpret"))
def _grouped_matmul(x, weight, group_sizes, tile, device, interpret):
    return _product(x, weight, group_sizes, tile, device, interpret, transposed=False)


def _forward(x, weight, group_sizes, tile, device, interpret):
    return _grouped_matmul(x, weight, group_sizes, tile, device, interpret), (x, weight, group_sizes)


def _backward(tile, device, interpret, residuals, dy):
    x, weight, group_sizes = residuals
    dx = _product(dy, weight, group_sizes, tile, device, interpret, transposed=True)
    return dx, _weight_gradient(x, dy, weight, group_sizes, tile, device, interpret), None


_grouped_matmul.defvjp(_forward, _backward)


def _launch(device: str, interpret: bool) -> dict[str, Any]:
    return {"PRECISION": float32_precision(device, interpret), "device": device, "interpret": interpret}


def _width(block: int, size: int) -> int:
    """A block no wider than it must be; Triton multiplies 16 columns at least."""
    return min(block, max(16, triton.next_power_of_2(size)))


def _product(x, weight, group_sizes, tile, device, interpret, *, transposed):
    rows, inner = x.shape
    groups, columns = weight.shape[0], weight.shape[1 if transposed else 2]
    blocks = TUNING[device][x.dtype.itemsize].product
    height = min(blocks.rows, 1 << (rows - 1).bit_length())
    width = _width(blocks.columns, columns)
    tiles = tiles_of(group_sizes, rows, tile, height)
    return launch(
        product_kernel,
        x,
        weight,
        *tiles,
        grid=(tiles.group.shape[0] * -(-columns // width),),
        outputs=[jax.ShapeDtypeStruct((rows, columns), x.dtype)],
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        flops=2 * rows * inner * columns,
        GROUPS=groups,
        INNER=inner,
        COLUMNS=columns,
        DOWN=1 if transposed else columns,
        ACROSS=inner if transposed else 1,
        ROWS=height,
        BLOCK=width,
        STEP=_width(blocks.inner, inner),
        **_launch(device, interpret),
    )[0]


def _weight_gradient(x, dy, weight, group_sizes, tile, device, interpret):
    rows, inputs = x.shape
    outputs = dy.shape[1]
    blocks = TUNING[device][x.dtype.itemsize].gradient
    height, width = _width(blocks.rows, inputs), _width(blocks.columns, outputs)
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(group_sizes).astype(jnp.int32)])
    return launch(
        weight_gradient_kernel,
        x,
        dy,
        start,
        grid=(-(-inputs // height) * -(-outputs // width), weight.shape[0]),
        outputs=[jax.ShapeDtypeStruct(weight.shape, weight.dtype)],
        num_warps=blocks.num_warps,
        num_stages=blocks.num_stages,
        flops=2 * rows * inputs * outputs,
        INPUTS=inputs,
        OUTPUTS=outputs,
        ROWS=height,
        BLOCK=width,
        STEP=min(blocks.inner, tile),
        **_launch(device, interpret),
    )[0]
