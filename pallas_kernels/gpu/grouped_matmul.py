"""Matrix products of contiguous row groups, each with its own weights, as Triton kernels.

``y[n] = x[n] @ w[g]`` for the group g that row n falls into. A program computes one tile of rows of one group, so that
its rows share a weight: the groups' sizes are data, and each program finds in their running sums which group and rows
it has. Up to three weights are multiplied in one launch, which reads x once, and rows that are copies of tokens are
gathered where they are read. The gradient of x is one sum over all weights; the weights' gradients are one program for
each block of each weight, which loops over the rows of its group. Nothing is added atomically.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import triton

from pallas_kernels.arguments import GPU
from pallas_kernels.chunks import Unsupported
from pallas_kernels.configs import AMD, HOPPER, NVIDIA, Config, Entry, find
from pallas_kernels.gpu.grouped_matmul_kernels import product_kernel, row_gradient_kernel, weight_gradient_kernel
from pallas_kernels.gpu.launch import float32_precision, launch

TILES = (16, 32, 64, 128)
NARROW = 64  # columns
WIDE = 2  # weights of a launch, beside the narrow ones

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


def grouped_matmul(
    x: jax.Array,
    weights: tuple[jax.Array, ...],
    group_sizes: jax.Array,
    tile: int,
    token: jax.Array | None = None,
    copies: jax.Array | None = None,
    *,
    device: str = "sm_90",
    interpret: bool = False,
) -> tuple[jax.Array, ...]:
    """``y[n] = x[n] @ w[g]`` for every ``w`` in ``weights`` and the group g that row n falls into.

    Cost follows the rows, not N * G. Sums in float32. Weights of few columns are multiplied side by side; each wide one
    is read where it lies, so that none is copied. Two of them and all narrow ones make one launch.

    Args:
        x: [N, D] rows, float32, bfloat16 or float16; N is a multiple of ``tile``. With ``token``: tokens, [T, D].
        weights: [G, D, F] each, of the same dtype.
        group_sizes: [G] int32 rows of each group, each a multiple of ``tile`` and perhaps 0. Groups follow each
            other from row 0; rows behind the last one give 0.
        tile: 16, 32, 64 or 128.
        token: [N] int32, of which token a row is a copy, T or more for rows that are 0; None: x has the rows.
        copies: [T, A] int32, the rows that are copies of a token, N or more for none; with ``token``.
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in Triton's interpreter on the host.

    Returns:
        [N, F] in ``x.dtype`` for each weight.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays that do not fit each other.
    """
    rows = x.shape[0] if token is None else token.shape[0]
    for weight in weights:
        _check(x, weight, group_sizes, rows, tile, device)
    narrow = [i for i, weight in enumerate(weights) if weight.shape[2] < NARROW]
    order = [i for i in range(len(weights)) if i not in narrow]
    launches = [tuple(weights[i] for i in order[n : n + WIDE]) for n in range(0, len(order), WIDE)] or [()]
    if narrow:
        beside = jnp.concatenate([weights[i] for i in narrow], 2)
        if beside.shape[2] >= NARROW and len(launches[-1]) == WIDE:  # together they are wide
            launches.append(())
        launches[-1] += (beside,)
    call = _Call(tile, device, interpret)
    run: Any = _grouped_matmul
    products = [y for some in launches for y in run(x, some, group_sizes, token, copies, call)]
    if narrow:
        ends = np.cumsum([weights[i].shape[2] for i in narrow])
        products[-1:] = jnp.split(products[-1], ends[:-1], 1)
    by_number = dict(zip((*order, *narrow), products, strict=True))
    return tuple(by_number[i] for i in range(len(weights)))


def _check(x, weight, group_sizes, rows, tile, device):
    GPU.check(device=device, dtype=x.dtype.name)
    if weight.dtype != x.dtype:
        raise Unsupported(f"weight is {weight.dtype}: the GPU kernels take {x.dtype} here, as x is")
    if tile not in TILES:
        raise Unsupported(f"tile={tile} is none of {', '.join(map(str, TILES))}")
    if x.ndim != 2 or rows % tile:
        raise ValueError(f"x {x.shape} does not have a multiple of tile={tile} rows; expected [N, D]")
    if weight.ndim != 3 or weight.shape[:2] != (*group_sizes.shape, x.shape[1]):
        raise ValueError(f"weight {weight.shape} does not fit {group_sizes.shape} groups of x {x.shape}: [G, D, F]")


class _Call(NamedTuple):
    """What the kernels depend on beside the arrays."""

    tile: int
    device: str
    interpret: bool

    def config(self, name: str, x: jax.Array) -> Config:
        """Of a kernel."""
        return find(CONFIGS[name], self.device, x.dtype.itemsize, x.shape[1])

    def run(self, kernel: Any, config: Config, *inputs: Any, **options: Any) -> list[jax.Array]:
        """Launches a kernel whose last input is the groups' sizes."""
        groups = inputs[-1].shape[0]
        return launch(
            kernel, *inputs, num_warps=config.num_warps, num_stages=config.num_stages,
            device=self.device, interpret=self.interpret, PRECISION=float32_precision(self.device),
            GROUPS=groups, SLOTS=triton.next_power_of_2(groups + 1), **options,
        )  # fmt: skip


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _grouped_matmul(x, weights, group_sizes, token, copies, call):
    return _products(x, weights, group_sizes, token, call)


def _forward(x, weights, group_sizes, token, copies, call):
    return _grouped_matmul(x, weights, group_sizes, token, copies, call), (x, weights, group_sizes, token, copies)


def _backward(call, residuals, dys):
    x, weights, group_sizes, token, copies = residuals
    dx = _row_gradient(dys, weights, group_sizes, call)
    if copies is not None:
        each = (dx.at[copies[:, i]].get(mode="fill", fill_value=0) for i in range(copies.shape[1]))
        dx = functools.reduce(jnp.add, each)
    return dx, _weight_gradients(x, dys, weights, group_sizes, token, call), None, None, None


_grouped_matmul.defvjp(_forward, _backward)


def _width(block: int, size: int) -> int:
    """A block no wider than it must be; Triton multiplies 16 columns at least."""
    return min(block, max(16, triton.next_power_of_2(size)))


def _tiles(rows, groups, height, tile):
    """How many tiles there are if every group ends inside one."""
    return (rows + (groups + 1) * (height - min(height, tile))) // height


def _places(arrays):
    """Two wide arrays and the narrow one, None where there is none, and their columns."""
    wide = [y for y in arrays if y.shape[-1] >= NARROW]
    narrow = arrays[len(wide) :]
    places = (*wide, *[None] * (WIDE - len(wide)), *narrow, *[None] * (1 - len(narrow)))
    return places, [0 if y is None else y.shape[-1] for y in places]


def _blocks(columns, block):
    """How many blocks of columns there are in the three places, and their constants."""
    width, narrow = _width(block, max(columns[:WIDE])), _width(block, columns[WIDE])
    constants = {f"N{i}": n for i, n in enumerate(columns)} | {"BN": width, "BN2": narrow}
    return sum(-(-n // width) for n in columns[:WIDE]) - (-columns[WIDE] // narrow), constants


def _products(x, weights, group_sizes, token, call):
    config, inner, rows = call.config("product", x), x.shape[1], (x if token is None else token).shape[0]
    height = min(config.block_m, 1 << (rows - 1).bit_length())
    places, columns = _places(weights)
    blocks, constants = _blocks(columns, config.block_n)
    ys = call.run(
        product_kernel, config, x, _or(token, group_sizes), *(_or(w, x) for w in places), group_sizes,
        grid={"tiles": _tiles(rows, group_sizes.shape[0], height, call.tile) * blocks},
        outputs=[jax.ShapeDtypeStruct((rows, n) if n else (1,), x.dtype) for n in columns],
        flops=2 * rows * inner * sum(columns),
        rows=rows, TOKENS=0 if token is None else x.shape[0], K=inner,
        BM=height, BK=_width(config.block_k, inner), **constants,
    )  # fmt: skip
    return tuple(y for y, n in zip(ys, columns, strict=True) if n)


def _row_gradient(dys, weights, group_sizes, call):
    (rows, _), inputs = dys[0].shape, weights[0].shape[1]
    config, (places, columns) = call.config("product", dys[0]), _places(dys)
    height, width = min(config.block_m, 1 << (rows - 1).bit_length()), _width(config.block_n, inputs)
    _, constants = _blocks(columns, config.block_k)
    return call.run(
        row_gradient_kernel, config, *places, *_places(weights)[0], group_sizes,
        grid={"tiles": _tiles(rows, group_sizes.shape[0], height, call.tile) * -(-inputs // width)},
        outputs=[jax.ShapeDtypeStruct((rows, inputs), dys[0].dtype)],
        flops=2 * rows * inputs * sum(columns),
        rows=rows, K=inputs, BM=height, BK=width, **constants,
    )[0]  # fmt: skip


def _weight_gradients(x, dys, weights, group_sizes, token, call):
    inputs, config = x.shape[1], call.config("weight_gradient", x)
    height = _width(config.block_m, inputs)
    places, columns = _places(dys)
    blocks, constants = _blocks(columns, config.block_n)
    shapes = [(1,) if dy is None else (*weights[0].shape[:2], dy.shape[1]) for dy in places]
    dweights = call.run(
        weight_gradient_kernel, config, x, _or(token, group_sizes), *(_or(dy, x) for dy in places), group_sizes,
        grid={"blocks": -(-inputs // height) * blocks, "groups": group_sizes.shape[0]},
        outputs=[jax.ShapeDtypeStruct(shape, x.dtype) for shape in shapes],
        flops=2 * dys[0].shape[0] * inputs * sum(columns),
        TOKENS=0 if token is None else x.shape[0], M=inputs,
        BM=height, BK=min(config.block_k, call.tile), **constants,
    )  # fmt: skip
    return tuple(dweight for dweight, n in zip(dweights, columns, strict=True) if n)


def _or(x, instead):
    """Something to point to where there is no array."""
    return instead if x is None else x
