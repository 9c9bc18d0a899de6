"""Runs a rule's recurrence over its rows, with the states of the cache where there is one."""

import dataclasses

import jax
import jax.numpy as jnp

from mom_jax.errors import InputError
from mom_jax.layers.cache import MemoryCache, forgotten, place, state_number, states_after, states_before
from mom_jax.ops import split
from mom_jax.ops.beginnings import begin_with
from mom_jax.ops.dispatch import Target, kernel_for, on_gpu, select
from mom_jax.ops.handover import Affine, composed
from mom_jax.ops.pieces import all_before
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, Rows, State, default_scale
from mom_jax.ops.primitives import PRIMITIVES
from mom_jax.ops.segments import ChunkTable, Packing
from mom_jax.typing import Array, Float
from pallas_kernels.remat import keep


def recur(
    primitive: Primitive,
    rows: Rows,
    packing: Packing,
    cache: MemoryCache | None,
    layer: int | Array,
    *,
    scale: float | None = None,
    impl: str = "auto",
    initial: Float[Array, "G *state"] | None = None,
) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
    """Runs a recurrence over packed rows; padding rows have no effect.

    Args:
        primitive: the recurrence.
        rows: its inputs; what must be inert on padding rows is set to 0 here.
        packing: of the rows.
        cache: memories of all layers, read and written at ``layer``; without it they start empty, or from what
            the devices hold that have the tokens before.
        scale: of the output, K^-0.5 if None.
        impl: of the primitive.
        initial: what memories begin with, if not empty: documents, where the recurrence has a form for that, else
            rows.
    """
    rows = primitive.masked(rows, packing.valid)
    if initial is not None and primitive.beside is not None and (cache is None or packing.table.reset is not None):
        return _from_beginnings(primitive, rows, packing, cache, layer, scale, impl, initial)
    if packing.piece is not None:
        return keep(_piece_by_piece(primitive, rows, packing, default_scale(rows, scale), impl)), None
    if cache is None:
        state = None
        if initial is not None:
            state = jnp.repeat(initial, packing.table.num_segments // initial.shape[0], axis=0)
        return keep(split.run(primitive, rows, packing.table, state, default_scale(rows, scale), impl)[0]), None
    table = packing.table
    if table.chunk_size == 1:
        o, recurrent = _one_token(primitive, rows, table, cache, layer, default_scale(rows, scale), impl)
    else:
        state = jax.tree.map(lambda a: widened(a[layer].reshape(-1, *a.shape[3:])), cache.recurrent)
        o, state = split.run(primitive, rows, table, state, default_scale(rows, scale), impl)
        put = lambda a, b: a.at[layer].set(b.reshape(a.shape[1:]).astype(a.dtype))  # noqa: E731
        recurrent = jax.tree.map(put, cache.recurrent, state)
    return o, dataclasses.replace(cache, recurrent=recurrent)


def _from_beginnings(
    primitive: Primitive,
    rows: Rows,
    packing: Packing,
    cache: MemoryCache | None,
    layer: int | Array,
    scale: float | None,
    impl: str,
    initial: Float[Array, "G H K V"],
) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
    """Every document begins with its memory's state; one that goes on from the cache has it in there."""
    dtype, scale = rows.v.dtype, default_scale(rows, scale)
    begun = begin_with(primitive, rows, packing.table, initial, goes_on=cache is not None)
    o, cache = recur(primitive, begun.rows, packing, cache, layer, scale=scale, impl=impl)
    if cache is not None:
        left = cache.recurrent[layer] + begun.left.reshape(cache.recurrent.shape[1:])
        recurrent = cache.recurrent.at[layer].set(left.astype(cache.recurrent.dtype))
        cache = dataclasses.replace(cache, recurrent=recurrent)
    return (o + scale * begun.reads).astype(dtype), cache


def _piece_by_piece(
    primitive: Primitive, rows: Rows, packing: Packing, scale: float, impl: str
) -> Float[Array, "N H V"]:
    """Every device runs its rows from empty memories, and then adds what they read of the states before them."""
    piece, table = packing.piece, packing.table
    assert piece is not None
    if primitive.handover is None:
        raise InputError("mesh.sequence", jax.lax.axis_size(piece.axis), f"must be 1: {cannot_hand_over(primitive)}")
    of = split.alone(primitive, rows, table, scale, impl)
    own = Affine(piece.passed(of.map.kept), piece.left(of.map.added))
    return split.with_states(of, table, all_before(composed, own, piece.axis).added, impl)


def cannot_hand_over(primitive: Primitive) -> str:
    """Why a recurrence does not run over rows that are spread over devices."""
    able = ", ".join(sorted(p.name for p in PRIMITIVES.values() if p.handover is not None))
    return f"the recurrence {primitive.name} hands no state from device to device; those that do are {able}"


def _one_token(
    primitive: Primitive, rows: Rows, table: ChunkTable, cache: MemoryCache, layer: int | Array, scale: float, impl: str
) -> tuple[Float[Array, "N H V"], State]:
    """One step for each row, from the state of its segment; other states are not touched."""
    kernels = {} if primitive.transition is None else {"gpu": _by_kernel}
    name = impl if on_gpu(impl) and kernels else "xla"
    return select(name, {"xla": _by_gather}, kernels)(primitive, rows, table, cache, layer, scale)


def _by_gather(
    primitive: Primitive, rows: Rows, table: ChunkTable, cache: MemoryCache, layer: int | Array, scale: float
) -> tuple[Float[Array, "N H V"], State]:
    """Rows are made before: a CPU's compiler would make them anew for every element of the states that they change."""
    rows = jax.lax.optimization_barrier(rows)
    if primitive.step_in_place is not None and table.reset is None:
        return primitive.step_in_place(rows, cache.recurrent, place(cache.recurrent, layer, table), scale)
    state = jax.tree.map(lambda a: widened(states_before(a, layer, table)), cache.recurrent)
    o, state = primitive.step(rows, state, scale)
    return o, jax.tree.map(lambda a, own: states_after(a, layer, table, own), cache.recurrent, state)


def _by_kernel(
    device: Target,
    primitive: Primitive,
    rows: Rows,
    table: ChunkTable,
    cache: MemoryCache,
    layer: int | Array,
    scale: float,
) -> tuple[Float[Array, "N H V"], State]:
    """One pass over the states that rows write."""
    run = kernel_for(device, {"gpu": "pallas_kernels.gpu.step:step"})
    assert primitive.transition is not None
    token = primitive.transition(rows)
    if table.reset is not None:  # nothing of the old state is read or kept
        read = {name: x for name, x in token._asdict().items() if name in ("r", "kept", "a") and x is not None}
        token = token._replace(**{name: forgotten(x, table) for name, x in read.items()})
    return run(token, state_number(layer, table), cache.recurrent, scale, rows.v.dtype)
