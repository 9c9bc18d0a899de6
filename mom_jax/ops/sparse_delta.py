"""A delta rule over many slots of which a token reads and writes few (Sparse Delta Memory, arXiv 2607.07386).

Per head, with a table S of M slots [M, V] in float32 and for each token a few slots to write with weights k that sum to
1, and a few to read with weights q:

    S_t[i] = exp(g_t) S_{t-1}[i]  for slots i that are written, all others stay
    S_t[i] += beta_t k_t^i (v_t - r_t);   o_t = scale * sum of q_t^i S_t[i]

The residual r is what the token reads of the decayed slots, ``r = sum of k_t^j S_t[j]`` (``aggregate``): then it is the
delta rule with sparse keys, and the gated delta rule where all slots are written. Or each slot corrects itself,
``r = S_t[i]`` (``local``): then a slot is a mean of what was written there.

Chunks are those of `mom_jax.ops.erase_and_write` or `mom_jax.ops.vector_decay` over the slots that they touch
(`mom_jax.ops.sparse_slots`), so their cost does not depend on M.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.erase_and_write import erase_and_write_chunked, kda_rows
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Place, Primitive, State, float32
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.sparse_slots import run_over_slots, touched
from mom_jax.ops.vector_decay import VectorDecayRows, vector_decay_chunked
from mom_jax.typing import Array, Float, Int

Residual = Literal["aggregate", "local"]


class SparseDeltaRows(NamedTuple):
    """Rows of a delta rule over few of many slots."""

    q: Float[Array, "N H R"]  # weights of the slots that are read
    k: Float[Array, "N H W"]  # weights of the slots that are written
    v: Float[Array, "N H V"]
    g: Float[Array, "N H"]  # log decay of the slots that are written, at most 0
    beta: Float[Array, "N H"]  # write strength
    reads: Int[Array, "N H R"]  # different slots
    writes: Int[Array, "N H W"]  # different slots


def _step(
    rows: SparseDeltaRows, state: Float[Array, "N H M V"], scale: float, residual: Residual
) -> tuple[Float[Array, "N H V"], Float[Array, "N H M V"]]:
    """One token for each of N independent tables. Returns outputs (``v.dtype``) and new tables."""
    return _step_in_place(rows, state, (jnp.arange(state.shape[0]),), scale, residual)


def _step_in_place(
    rows: SparseDeltaRows, states: Float[Array, "*all H M V"], place: Place, scale: float, residual: Residual
) -> tuple[Float[Array, "N H V"], Float[Array, "*all H M V"]]:
    """The same for N of many tables, of which nothing but the slots that rows name is touched."""
    q, k, v, g, beta = map(widened, rows[:5])
    lead = tuple(jnp.reshape(number, (-1, 1, 1)) for number in place)
    read, written = ((*lead, jnp.arange(q.shape[1])[:, None], slots) for slots in (rows.reads, rows.writes))
    # [N, H, W, V]
    decayed = jnp.exp(g)[..., None, None] * states.at[written].get(mode="fill", fill_value=0)
    known = jnp.einsum("nhwv,nhw->nhv", decayed, k)[..., None, :] if residual == "aggregate" else decayed
    new = decayed + (beta[..., None] * k)[..., None] * (v[..., None, :] - known)
    states = states.at[written].set(new.astype(states.dtype), mode="drop")
    found = states.at[read].get(mode="fill", fill_value=0)
    return (scale * jnp.einsum("nhrv,nhr->nhv", found, q)).astype(rows.v.dtype), states


def _chunked(
    rows: SparseDeltaRows, table: ChunkTable, state: State, scale: float, *, slots: int, residual: Residual
) -> tuple[Float[Array, "N H V"], State]:
    """The same function chunk by chunk."""
    size, chunks, writes = table.chunk_size, table.segment.shape[0], rows.writes.shape[-1]
    q, k, v, g, beta = map(widened, rows[:5])
    named = touched(jnp.concatenate([rows.writes, rows.reads], -1), size, slots)
    xs = tuple(x.reshape(chunks, size, *x.shape[1:]) for x in (q, k, v, g, beta))
    reset = jnp.zeros((chunks, size)) if table.reset is None else table.reset.reshape(chunks, size).astype(q.dtype)
    places = named.place[..., :writes], named.place[..., writes:]
    body = functools.partial(_body, has_documents=table.reset is not None, scale=scale, residual=residual)
    # whole numbers travel as floats, exact below 2^24, for the gradients of a chunk's arrays
    everything = (xs, tuple(place.astype(q.dtype) for place in places), reset)
    shape = jax.ShapeDtypeStruct((q.shape[1], slots, v.shape[-1]), v.dtype)
    o, state = run_over_slots(body, everything, named.slots, table, state, shape)
    return o.astype(rows.v.dtype), state


def _body(
    x: Any, state: Float[Array, "H U V"], *, has_documents: bool, scale: float, residual: Residual
) -> tuple[Float[Array, "C H V"], Float[Array, "H U V"]]:
    """One chunk as rows with a channel for each slot that it touches."""
    (q, k, v, g, beta), places, reset = x
    write, read = (jax.lax.stop_gradient(place).astype(jnp.int32) for place in places)
    spread = functools.partial(_spread, slots=state.shape[1])
    yes, one = jnp.ones(1, bool), jnp.ones(1, jnp.int32)
    table = ChunkTable(0 * one, yes, yes, one, reset > 0 if has_documents else None, q.shape[0], 1)
    dense_q, dense_k = spread(q, read), spread(k, write)
    after: Any
    if residual == "aggregate":
        decays = spread(jnp.broadcast_to(g[..., None], k.shape), write)
        o, after = erase_and_write_chunked(kda_rows(dense_q, dense_k, v, decays, beta), table, state[None], scale)
    else:
        share = beta[..., None] * k
        decays = spread(g[..., None] + jnp.log1p(-jnp.minimum(share, 1 - 1e-6)), write)
        o, after = vector_decay_chunked(
            VectorDecayRows(dense_q, spread(share, write), v, decays), table, state[None], scale
        )
    return o, after[0]


def _spread(x: Float[Array, "C H E"], place: Int[Array, "C H E"], slots: int) -> Float[Array, "C H U"]:
    """Each number in its place, 0 elsewhere."""
    return jnp.put_along_axis(jnp.zeros((*x.shape[:2], slots), x.dtype), place, x, axis=-1, inplace=False)


@functools.cache
def sparse_delta(slots: int, residual: Residual = "aggregate") -> Primitive:
    """The rule over tables of that many slots, M."""
    kept = {"slots": slots, "residual": residual}
    return Primitive(
        name="sparse delta",
        rows=SparseDeltaRows,
        state=lambda heads, keys, values: float32(heads, slots, values),
        step=functools.partial(_step, residual=residual),
        step_in_place=functools.partial(_step_in_place, residual=residual),
        chunked=functools.partial(_chunked, **kept),
        inert=("g", "beta", "reads", "writes"),
        flops=lambda chunk, keys, values: _flops(chunk, min(2 * chunk * keys, slots), values),
    )


def _flops(chunk: int, touched: int, value_dim: int) -> tuple[float, float]:
    """Of diagonal plus rank one with a channel for each slot that a chunk may touch."""
    state, values, scores = 2.0 * touched * value_dim, 2.0 * chunk * value_dim, 4 * 2.0 * chunk * touched / 2
    forward = 4 * state + 4 * values + scores + (1 + 1 / 3) * 2.0 * chunk**2
    return forward, forward + 10 * state + 8 * values + 3 * scores


SPARSE_DELTA = sparse_delta(slots=1024)
