"""A memory that decays as a whole, is written by the trapezoidal rule and rotates its keys (Mamba-3, arXiv 2603.15569).

Per head, with a state S of shape [K, V] in float32, an angle theta for each of R pairs of channels, and R(x) that turns
the first R pairs of x by theta_t = theta_{t-1} + turn_t (mod 2 pi):

    S_t = exp(g_t) (S_{t-1} + before_t R(k_{t-1}) v_{t-1}^T) + now_t R(k_t) v_t^T;   o_t = scale * S_t^T R(q_t)

So a row of scalar decay (`mom_jax.ops.scalar_decay`) writes a token with both of its weights, its own and its
successor's, and is read by that successor, which adds what it is itself:

    M_t = exp(g_t) M_{t-1} + (now_t + before_{t+1}) R(k_t) v_t^T
    o_t = scale * (exp(g_t) M_{t-1}^T + now_t v_t R(k_t)^T) R(q_t)

No read sees what follows it, not even in rounding. A document begins with empty states, angles included.
"""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import final_states, from_chunks, initial_carry, load, store, to_chunks
from mom_jax.ops.decays import documents, masked
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Form, Primitive, float32, kernels_over, overlap
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows, scalar_decay_chunked
from mom_jax.ops.segment_rows import first_rows, last_rows, row_before, row_behind
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float


class TrapezoidRows(NamedTuple):
    """Rows of the trapezoidal rule."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    g: Float[Array, "N H"]  # log decay, at most 0
    now: Float[Array, "N H"]  # weight of the token itself
    before: Float[Array, "N H"]  # weight of the token before
    turn: Float[Array, "N H R"]  # angles that are added
    valid: Bool[Array, " N"]  # False on padding rows


class TrapezoidState(NamedTuple):
    """Of one memory; every array with a leading axis of segments."""

    memory: Float[Array, "S H K V"]
    theta: Float[Array, "S H R"]
    k: Float[Array, "S H K"]  # of the last token, turned
    v: Float[Array, "S H V"]


def turned(x: Float[Array, "*batch K"], theta: Float[Array, "*batch R"]) -> Float[Array, "*batch K"]:
    """Turns the channels 2j and 2j + 1 by the j-th angle; channels behind 2R stay."""
    pairs = theta.shape[-1]
    both = x[..., : 2 * pairs].reshape(*x.shape[:-1], pairs, 2)
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    even, odd = both[..., 0], both[..., 1]
    both = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return jnp.concatenate([both.reshape(*x.shape[:-1], 2 * pairs), x[..., 2 * pairs :]], -1)


def _outer(weight: Float[Array, "N H"], k: Float[Array, "N H K"], v: Float[Array, "N H V"]) -> Float[Array, "N H K V"]:
    return (weight[..., None] * k)[..., None] * v[..., None, :]


def trapezoid_step(
    rows: TrapezoidRows, state: TrapezoidState, scale: float
) -> tuple[Float[Array, "N H V"], TrapezoidState]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, v, g, now, before, turn = map(widened, rows[:-1])
    old = TrapezoidState(*state)
    theta = jnp.mod(old.theta + turn, 2 * math.pi)
    q, k = turned(q, theta), turned(k, theta)
    memory = jnp.exp(g)[..., None, None] * (old.memory + _outer(before, old.k, old.v)) + _outer(now, k, v)
    o = scale * jnp.einsum("nhkv,nhk->nhv", memory, q)
    keep = rows.valid[:, None, None]
    new = TrapezoidState(memory, theta, jnp.where(keep, k, old.k), jnp.where(keep, v, old.v))
    return o.astype(rows.v.dtype), new


def _angles(
    turn: Float[Array, "N H R"], table: ChunkTable, initial: Float[Array, "S H R"] | None
) -> tuple[Float[Array, "N H R"], Any]:
    """theta of every row, and of every segment after its last one [S, H, R], None without ``initial``."""
    turn, inside = to_chunks(turn, table.chunk_size), documents(table)
    lower = jnp.tril(jnp.ones((table.chunk_size,) * 2, turn.dtype))
    # [chunks, H, C, R], from the start of the chunk or of the document
    since = jnp.matmul(masked(lower, inside.between), turn, precision="highest")
    enter = jnp.ones((*since.shape[:1], 1, table.chunk_size), turn.dtype)
    # [chunks, 1, C, 1]
    enter = masked(enter, inside.enter)[..., None]

    def body(carried, chunk):
        theta, stored = carried
        since_c, enter_c, first, segment, last = chunk
        entering = load(stored, theta, segment, first)
        theta = jnp.mod(since_c[:, -1] + enter_c[:, -1] * entering, 2 * math.pi)
        return (theta, store(stored, theta, segment, last)), entering

    shape = jax.ShapeDtypeStruct(since.shape[1:2] + since.shape[-1:], since.dtype)
    chunks = (since, enter, table.first, table.segment, table.last)
    (_, stored), entering = jax.lax.scan(body, initial_carry(initial, shape), chunks)
    return from_chunks(since + enter * entering[:, :, None]), final_states(stored)


def _shifted(
    form: Form, rows: TrapezoidRows, table: ChunkTable, state: TrapezoidState | None, scale: float
) -> tuple[Float[Array, "N H V"], TrapezoidState | None]:
    """The same function as a form of scalar decay whose rows are read by their successors."""
    nothing: Any = (None,) * 4
    old = TrapezoidState(*nothing) if state is None else state
    q, k, v, g, now, before, turn = map(widened, rows[:-1])
    theta, last_theta = _angles(turn, table, old.theta)
    q, k = turned(q, theta), turned(k, theta)
    decayed = jnp.exp(g)[..., None] * q
    weight = now + row_behind(before[..., None], table)[..., 0]
    written = ScalarDecayRows(row_behind(decayed, table), k, weight[..., None] * v, g)
    begin = first_read = None
    if state is not None:
        before, query = (x.at[first_rows(table)].get(mode="fill", fill_value=0) for x in (before, decayed))
        begin = old.memory + _outer(before, old.k, old.v)
        first_read = scale * jnp.einsum("shkv,shk->shv", begin, query)
    reads, memory = form(written, table, begin, scale)
    o = row_before(reads, first_read, table) + scale * overlap(q, k) * now[..., None] * v
    o = o.astype(rows.v.dtype)
    if state is None:
        return o, None
    last = last_rows(rows.valid, table)
    k, v = (jnp.where((last >= 0)[:, None, None], x[last], y) for x, y in ((k, old.k), (v, old.v)))
    return o, TrapezoidState(memory, last_theta, k, v)


@functools.cache
def trapezoid(pairs: int) -> Primitive:
    """The trapezoidal rule whose heads turn that many pairs of channels, R."""
    return Primitive(
        name="trapezoid",
        rows=TrapezoidRows,
        state=lambda heads, keys, values: TrapezoidState(
            float32(heads, keys, values), float32(heads, pairs), float32(heads, keys), float32(heads, values)
        ),
        step=trapezoid_step,
        chunked=functools.partial(_shifted, scalar_decay_chunked),
        kernels=kernels_over(SCALAR_DECAY, _shifted),
        skips=False,
        inert=("g", "now", "before", "turn", "valid"),
        flops=lambda chunk, keys, values: _flops(pairs, chunk, keys, values),
    )


def _flops(pairs: int, chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """Of scalar decay, and of sums of angles."""
    forward, backward = SCALAR_DECAY.flops(chunk, key_dim, value_dim)
    return forward + 2.0 * chunk * pairs, backward + 2.0 * chunk * pairs


TRAPEZOID = trapezoid(pairs=32)
