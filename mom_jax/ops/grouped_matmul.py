"""Matrix products of contiguous row groups, each with its own weights."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

from mom_jax.ops.dispatch import Target, kernel_for, may_be_kernels, select, target
from mom_jax.ops.precision import wide, widened
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float, Int

KERNELS = {
    "tpu": "pallas_kernels.tpu.grouped_matmul:grouped_matmul",
    "gpu": "pallas_kernels.gpu.grouped_matmul:grouped_matmul",
}
Weights = tuple[Float[Array, "G D _"], ...]  # [G, D, F], each with its own F
Products = tuple[Float[Array, "N _"], ...]  # [N, F]
_Inputs = tuple[Float[Array, "N D"], Weights, Int[Array, " G"]]


def grouped_matmul(
    x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"], *, tile: int, impl: str = "auto"
) -> Products:
    """``y[n] = x[n] @ w[g]`` for every ``w`` in ``weights`` and the group g that row n falls into.

    Cost follows the rows, not N * G. On TPU and GPU it is a kernel. XLA's form is `jax.lax.ragged_dot`, native on TPU;
    on CPU, where that is a dense expansion, a loop over row tiles of each group.

    Args:
        x: rows; those behind the last group must be 0 and give 0.
        weights: any number, each with its own F.
        group_sizes: rows of each group, a multiple of ``tile``; groups follow each other from row 0.
        tile: alignment of groups, in rows.
        impl: ``auto``, or ``tpu`` or ``gpu`` for the kernel; every other name is XLA.

    Returns:
        A product for each weight, in ``x.dtype``; sums in float32 or wider.

    Raises:
        InputError: ``tpu`` or ``gpu`` cannot run here.
    """
    name = impl if may_be_kernels(impl) and x.shape[0] > group_sizes.shape[0] else "xla"
    return select(name, {"xla": _by_xla}, KERNELS)(x, weights, group_sizes, tile)


def token_matmul(x: Float[Array, "B T D"], weights: Weights, packing: Packing, *, impl: str = "auto") -> Products:
    """The same for packed rows of tokens: a GPU's kernel gathers them where it reads them, others are packed first."""
    groups = packing.group_sizes.shape[0]
    name = impl if may_be_kernels(impl) and packing.token.shape[0] > groups else "xla"
    return select(name, {"xla": _packed_first}, {"tpu": _packed, "gpu": _gathered})(x, weights, packing)


def _packed_first(x: Float[Array, "B T D"], weights: Weights, packing: Packing) -> Products:
    return _by_xla(pack(x, packing), weights, packing.group_sizes, packing.table.chunk_size)


def _packed(device: Target, x: Float[Array, "B T D"], weights: Weights, packing: Packing) -> Products:
    return kernel_for(device, KERNELS)(pack(x, packing), weights, packing.group_sizes, packing.table.chunk_size)


def _gathered(device: Target, x: Float[Array, "B T D"], weights: Weights, packing: Packing) -> Products:
    copies = packing.row.reshape(-1, packing.row.shape[-1])
    tokens, tile = x.reshape(-1, x.shape[-1]), packing.table.chunk_size
    return kernel_for(device, KERNELS)(tokens, weights, packing.group_sizes, tile, packing.token, copies)


def _row_by_row(x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"]) -> Products:
    """For no more rows than groups, as one token has: each row meets its own group's weights, no others are read."""
    group = jnp.sum(jnp.arange(x.shape[0])[:, None] >= jnp.cumsum(group_sizes), -1)
    chosen = (w.at[group].get(mode="clip").astype(x.dtype) for w in weights)
    if target().platform == "gpu":  # one launch that reads a weight once, where a product would copy it first
        return tuple(jnp.sum(widened(x)[..., None] * widened(w), 1).astype(x.dtype) for w in chosen)
    return tuple(jnp.einsum("nd,ndf->nf", x, w, preferred_element_type=wide(x.dtype)).astype(x.dtype) for w in chosen)


def _by_xla(x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"], tile: int) -> Products:
    if x.shape[0] <= group_sizes.shape[0]:
        return _row_by_row(x, weights, group_sizes)
    return _grouped_matmul(x, weights, group_sizes)


@jax.custom_vjp
@sequential_vmap  # neither loop nor ragged_dot has a batched form
def _grouped_matmul(x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"]) -> Products:
    return jax.lax.platform_dependent(x, weights, group_sizes, cpu=_tiled, default=_ragged)


def _forward(x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"]) -> tuple[Products, _Inputs]:
    return _grouped_matmul(x, weights, group_sizes), (x, weights, group_sizes)


def _backward(residuals: _Inputs, dys: Products) -> tuple[Float[Array, "N D"], Weights, None]:
    x, weights, group_sizes = residuals
    return *_gradients(x, weights, dys, group_sizes), None


_grouped_matmul.defvjp(_forward, _backward)


@sequential_vmap
def _gradients(
    x: Float[Array, "N D"], weights: Weights, dys: Products, group_sizes: Int[Array, " G"]
) -> tuple[Float[Array, "N D"], Weights]:
    return jax.lax.platform_dependent(x, weights, dys, group_sizes, cpu=_tiled_gradients, default=_ragged_gradients)


def _ragged(x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"]) -> Products:
    return tuple(
        jax.lax.ragged_dot(x, w, group_sizes, preferred_element_type=wide(x.dtype)).astype(x.dtype) for w in weights
    )


def _ragged_gradients(
    x: Float[Array, "N D"], weights: Weights, dys: Products, group_sizes: Int[Array, " G"]
) -> tuple[Float[Array, "N D"], Weights]:
    return jax.vjp(lambda x, weights: _ragged(x, weights, group_sizes), x, weights)[1](dys)


def _tile_rows(rows: int, groups: int) -> int:
    """Largest power of two up to 256 that is not above the mean group; small groups waste no rows."""
    return min(256, 1 << max(0, (rows // groups).bit_length() - 1))


def _each_group(
    group_sizes: Int[Array, " G"], tile: int, body: Callable[[Array, Array, Array, Any], Any], carry: Any
) -> Any:
    """Runs ``body(group, first_row, tiles, carry)`` for every group, in order: one loop, however many there are."""
    begins, tiles = jnp.cumsum(group_sizes) - group_sizes, -(-group_sizes // tile)
    return jax.lax.fori_loop(
        0, group_sizes.shape[0], lambda group, carry: body(group, begins[group], tiles[group], carry), carry
    )


def _of_group(weights: Weights, group: Int[Array, ""]) -> list[Float[Array, "D _"]]:
    return [jax.lax.dynamic_index_in_dim(w, group, keepdims=False) for w in weights]


def _pad_rows(x: Float[Array, "N D"], rows: int) -> Float[Array, "N+{rows} D"]:
    return jnp.pad(x, ((0, rows), (0, 0)))


def _put(y: Float[Array, "N D"], rows: Float[Array, "tile D"], first: Int[Array, ""]) -> Float[Array, "N D"]:
    # a group's last tile runs into the next group's rows, which that group then overwrites
    return jax.lax.dynamic_update_slice_in_dim(y, rows.astype(y.dtype), first, 0)


def _tiled(x: Float[Array, "N D"], weights: Weights, group_sizes: Int[Array, " G"]) -> Products:
    rows, tile = x.shape[0], _tile_rows(x.shape[0], group_sizes.shape[0])
    padded = _pad_rows(x, tile)

    def body(group, begin, tiles, ys):
        own = _of_group(weights, group)

        def step(i, ys):
            first = begin + i * tile
            x_tile = jax.lax.dynamic_slice_in_dim(padded, first, tile)
            products = (jnp.dot(x_tile, w, preferred_element_type=wide(x.dtype)) for w in own)
            return tuple(_put(y, product, first) for y, product in zip(ys, products, strict=True))

        return jax.lax.fori_loop(0, tiles, step, ys)

    init = tuple(jnp.zeros((rows + tile, w.shape[2]), x.dtype) for w in weights)
    return tuple(y[:rows] for y in _each_group(group_sizes, tile, body, init))


def _tiled_gradients(
    x: Float[Array, "N D"], weights: Weights, dys: Products, group_sizes: Int[Array, " G"]
) -> tuple[Float[Array, "N D"], Weights]:
    rows, tile = x.shape[0], _tile_rows(x.shape[0], group_sizes.shape[0])
    padded = _pad_rows(x, tile)
    padded_dys = tuple(_pad_rows(dy, tile) for dy in dys)

    def body(group, begin, tiles, carry):
        dx, dweights = carry
        own = _of_group(weights, group)

        def step(i, carry):
            dx, sums = carry
            first = begin + i * tile
            x_tile = jax.lax.dynamic_slice_in_dim(padded, first, tile)
            x_tile = jnp.where((jnp.arange(tile) < group_sizes[group] - i * tile)[:, None], x_tile, 0)
            dy_tiles = [jax.lax.dynamic_slice_in_dim(dy, first, tile) for dy in padded_dys]
            pairs = zip(dy_tiles, own, strict=True)
            products = (jnp.dot(dy, w.T, preferred_element_type=wide(x.dtype)) for dy, w in pairs)
            dx_tile = functools.reduce(jnp.add, products)
            outer = (jnp.dot(x_tile.T, dy, preferred_element_type=wide(x.dtype)) for dy in dy_tiles)
            return _put(dx, dx_tile, first), tuple(s + product for s, product in zip(sums, outer, strict=True))

        dx, sums = jax.lax.fori_loop(0, tiles, step, (dx, tuple(jnp.zeros(w.shape, wide(x.dtype)) for w in own)))
        pairs = zip(dweights, sums, strict=True)
        return dx, tuple(jax.lax.dynamic_update_index_in_dim(dw, s, group, 0) for dw, s in pairs)

    init = _pad_rows(jnp.zeros_like(x), tile), tuple(jnp.zeros(w.shape, wide(x.dtype)) for w in weights)
    dx, dweights = _each_group(group_sizes, tile, body, init)
    return dx[:rows], tuple(dw.astype(w.dtype) for dw, w in zip(dweights, weights, strict=True))
