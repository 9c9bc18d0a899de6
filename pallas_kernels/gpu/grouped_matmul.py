"""Matrix products of contiguous row groups, each with its own weight, as Triton kernels.

``y[n] = x[n] @ weight[g]`` for the group g that row n falls into. A program computes one tile of rows of one
group, so that its rows share a weight: the groups' sizes are data, and which group and rows a tile has is found
by a search in their running sums. The weights' gradient is one program for each block of each weight, which
loops over the rows of its group; nothing is added atomically.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import triton
import triton.language as tl

from pallas_kernels.arguments import GPU
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import AMD, HOPPER, NVIDIA, Config, Entry, find
from pallas_kernels.gpu.calls import like
from pallas_kernels.gpu.launch import float32_precision, launch
from pallas_kernels.gpu.tiles import tile

TILES = (16, 32, 64, 128)
NARROW = 64  # columns


_FLOAT32 = Config(block_m=64, block_n=64, block_k=32, num_warps=4)
_HALF = Config(block_m=128, block_n=128, block_k=32, num_warps=4)
_EACH = [
    Entry(_FLOAT32._replace(num_stages=3), NVIDIA, itemsize=4),
    Entry(_FLOAT32._replace(num_stages=2), AMD, itemsize=4),
    Entry(_HALF._replace(num_stages=4), ("sm_80",), itemsize=2),
    Entry(Config(block_m=128, block_n=256, block_k=64, num_warps=8, num_stages=3), HOPPER, itemsize=2),
    Entry(_HALF._replace(num_stages=2), AMD, itemsize=2),
]
CONFIGS = {
    "product": [
        Entry(Config(block_m=128, block_n=64, block_k=32, num_warps=4, num_stages=3), ("sm_100",), itemsize=4),
        *_EACH,
    ],
    "weight_gradient": [*_EACH],
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
    p_x, p_weight, p_group, p_first, p_end, p_y,
    GROUPS: tl.constexpr, N: tl.constexpr, K: tl.constexpr, TRANSPOSED: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``y = x @ weight[g]`` for one tile of rows and one block of columns; weights are [N, K] if ``TRANSPOSED``."""
    blocks = tl.cdiv(N, BN)
    number = tl.program_id(0) // blocks
    column = (tl.program_id(0) % blocks) * BN
    n = column + tl.arange(0, BN)
    g = tl.load(p_group + number).to(tl.int64)
    row = tl.load(p_first + number).to(tl.int64)
    inside = (row + tl.arange(0, BM) < tl.load(p_end + number))[:, None]
    if g <= GROUPS:
        total = tl.zeros((BM, BN), tl.float32)
        if g < GROUPS:
            for start in range(0, K, BK):
                k = start + tl.arange(0, BK)
                b_x = tl.load(tile(p_x, row, 0, start, 1, K, BM, BK), mask=inside & (k < K)[None, :], other=0.0)
                if TRANSPOSED:
                    p_block, kept = tile(p_weight, g * N + column, 0, start, 1, K, BN, BK), (n < N)[:, None]
                    b_weight = tl.trans(tl.load(p_block, mask=kept & (k < K)[None, :], other=0.0))
                else:
                    p_block, kept = tile(p_weight, g * K + start, 0, column, 1, N, BK, BN), (n < N)[None, :]
                    b_weight = tl.load(p_block, mask=kept & (k < K)[:, None], other=0.0)
                total = tl.dot(b_x, b_weight, total, input_precision=PRECISION)
        p_block = tile(p_y, row, 0, column, 1, N, BM, BN)
        tl.store(p_block, total.to(p_y.dtype.element_ty), mask=inside & (n < N)[None, :])


@triton.jit
def weight_gradient_kernel(
    p_x, p_dy, p_start, p_dweight,
    M: tl.constexpr, N: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``dweight[g] = x_g^T @ dy_g``, [M, N], for one block of one group; group g has the rows from ``start[g]``."""
    blocks = tl.cdiv(N, BN)
    row = (tl.program_id(0) // blocks) * BM
    column = (tl.program_id(0) % blocks) * BN
    g = tl.program_id(1).to(tl.int64)
    m = row + tl.arange(0, BM)[None, :]
    n = column + tl.arange(0, BN)[None, :]
    begin = tl.load(p_start + g).to(tl.int64)
    total = tl.zeros((BM, BN), tl.float32)
    for k in range(begin, tl.load(p_start + g + 1), BK):
        b_x = tl.load(tile(p_x, k, 0, row, 1, M, BK, BM), mask=m < M, other=0.0)
        b_dy = tl.load(tile(p_dy, k, 0, column, 1, N, BK, BN), mask=n < N, other=0.0)
        total = tl.dot(tl.trans(b_x), b_dy, total, input_precision=PRECISION)
    p_block = tile(p_dweight, g * M + row, 0, column, 1, N, BM, BN)
    kept = (row + tl.arange(0, BM) < M)[:, None] & (n < N)
    tl.store(p_block, total.to(p_dweight.dtype.element_ty), mask=kept)


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
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
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
    products = {i: run(x, weight) for i, weight in enumerate(weights) if i not in narrow}
    if narrow:
        ends = np.cumsum([weights[i].shape[2] for i in narrow])
        together = run(x, jnp.concatenate([weights[i] for i in narrow], 2))
        products |= dict(zip(narrow, jnp.split(together, ends[:-1], 1), strict=True))
    return tuple(products[i] for i in range(len(weights)))


def _check(x, weight, group_sizes, tile, device):
    GPU.check(device=device, dtype=x.dtype.name)
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


def _config(name: str, x: jax.Array, device: str) -> Config:
    return find(CONFIGS[name], device, x.dtype.itemsize, x.shape[1])


def _launch(kernel, config, *inputs, device, interpret, **options):
    return launch(
        kernel, *inputs, num_warps=config.num_warps, num_stages=config.num_stages,
        device=device, interpret=interpret, PRECISION=float32_precision(device, interpret), **options,
    )[0]  # fmt: skip


def _width(block: int, size: int) -> int:
    """A block no wider than it must be; Triton multiplies 16 columns at least."""
    return min(block, max(16, triton.next_power_of_2(size)))


def _product(x, weight, group_sizes, tile, device, interpret, *, transposed):
    rows, inner = x.shape
    groups, columns = weight.shape[0], weight.shape[1 if transposed else 2]
    config = _config("product", x, device)
    height = min(config.block_m, 1 << (rows - 1).bit_length())
    width = _width(config.block_n, columns)
    tiles = tiles_of(group_sizes, rows, tile, height)
    return _launch(
        product_kernel, config, x, weight, *tiles,
        grid={"tiles": tiles.group.shape[0] * -(-columns // width)},
        outputs=[jax.ShapeDtypeStruct((rows, columns), x.dtype)],
        flops=2 * rows * inner * columns,
        device=device, interpret=interpret, GROUPS=groups, N=columns, K=inner, TRANSPOSED=transposed,
        BM=height, BN=width, BK=_width(config.block_k, inner),
    )  # fmt: skip


def _weight_gradient(x, dy, weight, group_sizes, tile, device, interpret):
    rows, inputs = x.shape
    outputs = dy.shape[1]
    config = _config("weight_gradient", x, device)
    height, width = _width(config.block_m, inputs), _width(config.block_n, outputs)
    start = jnp.concatenate([jnp.zeros(1, jnp.int32), jnp.cumsum(group_sizes).astype(jnp.int32)])
    return _launch(
        weight_gradient_kernel, config, x, dy, start,
        grid={"blocks": -(-inputs // height) * -(-outputs // width), "groups": weight.shape[0]},
        outputs=[like(weight)],
        flops=2 * rows * inputs * outputs,
        device=device, interpret=interpret, M=inputs, N=outputs, BM=height, BN=width, BK=min(config.block_k, tile),
    )  # fmt: skip
