"""A state of many slots of which a chunk touches few: what its rows name is gathered, run densely, and put back.

The cost of a chunk does not depend on how many slots there are. Nor does its gradient: the backward pass gathers and
puts back the gradients of the same slots. It keeps what was gathered of each chunk.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Int

# (arrays of a chunk, the state of its slots) -> (outputs of the chunk, the new state)
Body = Callable[[Any, Float[Array, "H U V"]], tuple[Float[Array, "C H V"], Float[Array, "H U V"]]]


class Touched(NamedTuple):
    """Which slots the rows of each chunk name, U at most for a head; the number of slots stands where there is none."""

    slots: Int[Array, "chunks H U"]
    place: Int[Array, "chunks C H E"]  # of each of a row's E names, among them


def touched(names: Int[Array, "N H E"], chunk_size: int, num_slots: int) -> Touched:
    """Slots by chunk and head, each once, in order."""
    _, heads, each = names.shape
    # [chunks, H, C * E]
    flat = jnp.moveaxis(names.reshape(-1, chunk_size, heads, each), 2, 1).reshape(-1, heads, chunk_size * each)
    order = jnp.argsort(flat, -1)
    found = jnp.take_along_axis(flat, order, -1)
    new = jnp.concatenate([jnp.ones_like(found[..., :1], bool), found[..., 1:] != found[..., :-1]], -1)
    number = jnp.cumsum(new, -1, dtype=jnp.int32) - 1
    most = min(chunk_size * each, num_slots)
    slots = jnp.full((*flat.shape[:2], most), num_slots, jnp.int32)
    slots = jnp.put_along_axis(slots, number, found.astype(jnp.int32), axis=-1, inplace=False)
    place = jnp.put_along_axis(jnp.zeros_like(number), order, number, axis=-1, inplace=False)
    place = place.reshape(-1, heads, chunk_size, each)
    return Touched(slots, jnp.moveaxis(place, 1, 2))


class _Chunk(NamedTuple):
    """What of a chunk is not differentiated; [chunks, ...] of all."""

    slots: Int[Array, "*chunks H U"]
    segment: Int[Array, "*chunks"]
    first: Bool[Array, "*chunks"]
    resets: Int[Array, "*chunks"]  # documents that begin in it


def run_over_slots(
    body: Body, xs: Any, slots: Int[Array, "chunks H U"], table: ChunkTable, state: Float[Array, "S H M V"]
) -> tuple[Float[Array, "N H V"], Float[Array, "S H M V"]]:
    """Runs ``body`` over chunks, each on the slots of its segment that it touches.

    Args:
        body: of one chunk; it sees to documents inside of the chunk.
        xs: floating arrays [chunks, ...].
        slots: that each chunk touches; M where there is none.
        table: segments of the chunks.
        state: of every segment.
    """
    chunks = table.segment.shape[0]
    resets = jnp.zeros(chunks, jnp.int32)
    if table.reset is not None:
        resets = jnp.sum(table.reset.reshape(chunks, -1), -1, dtype=jnp.int32)
    plan = _Chunk(slots, table.segment, table.first, resets)
    o, state = _run(body, table.reset is not None, xs, plan, state)
    return o.reshape(-1, *o.shape[2:]), state


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    body: Body, documents: bool, xs: Any, plan: _Chunk, state: Float[Array, "S H M V"]
) -> tuple[Float[Array, "chunks C H V"], Float[Array, "S H M V"]]:
    return _run_fwd(body, documents, xs, plan, state)[0]


def _run_fwd(body: Body, documents: bool, xs: Any, plan: _Chunk, state: Float[Array, "S H M V"]) -> Any:
    heads = jnp.arange(state.shape[1])[:, None]
    # the document that last wrote a slot, and that of each segment; what an earlier one wrote is forgotten
    written = jnp.zeros(state.shape[:3] if documents else (1, 1, 1), jnp.int32)
    current = jnp.zeros(state.shape[0], jnp.int32)

    def forward(carried, chunk):
        state, written, current, number = carried
        x, here = chunk
        number = jnp.where(here.first, 0, number)
        where = (here.segment, heads, here.slots)
        gathered, keep = state.at[where].get(mode="fill", fill_value=0), jnp.ones((1, 1), bool)
        if documents:
            keep = written.at[where].get(mode="fill", fill_value=0) == number
            gathered = jnp.where(keep[..., None], gathered, 0)
        number += here.resets
        o, new = body(x, gathered)
        if documents:
            written = written.at[where].set(number, mode="drop")
            current = current.at[here.segment].set(number, mode="drop")
        return (state.at[where].set(new, mode="drop"), written, current, number), (o, gathered, keep)

    start = (state, written, current, jnp.zeros((), jnp.int32))
    (state, written, current, _), (o, gathered, keep) = jax.lax.scan(forward, start, (xs, plan))
    last = written == current[:, None, None] if documents else None
    if last is not None:
        state = jnp.where(last[..., None], state, 0)
    return (o, state), (xs, plan, gathered, keep, last)


def _run_bwd(body: Body, documents: bool, residuals: Any, cotangents: Any) -> Any:
    xs, plan, gathered, keep, last = residuals
    do, dstate = cotangents
    heads = jnp.arange(dstate.shape[1])[:, None]
    dstate = dstate if last is None else jnp.where(last[..., None], dstate, 0)

    def backward(dstate, chunk):
        x, here, gathered, keep, do = chunk
        where = (here.segment, heads, here.slots)
        dnew = dstate.at[where].get(mode="fill", fill_value=0)
        dx, dgathered = jax.vjp(body, x, gathered)[1]((do, dnew))
        dgathered = jnp.where(keep[..., None], dgathered, 0)
        return dstate.at[where].set(dgathered, mode="drop"), dx

    dstate, dxs = jax.lax.scan(backward, dstate, (xs, plan, gathered, keep, do), reverse=True)
    return dxs, None, dstate


_run.defvjp(_run_fwd, _run_bwd)
