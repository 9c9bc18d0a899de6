"""A hierarchy of memories by distance (log-linear attention, arXiv 2506.04761) over scalar or vector decay.

A token i lies, for a read at t, at the level ``l(t, i) = bit_length(t xor i)``, both counted from the beginning of the
document in the memory's own sequence: level 0 is the token itself, level l the last half of a block of 2^l tokens. Per
head, with a state S^l for each level, a decay per head or key channel, and weights of levels that the reader gives:

    S^l_t = the sum over i at level l of (decays since i) k_i v_i^T;   o_t = scale * sum over l of w_t^l (S^l_t)^T q_t

As a step (a Fenwick tree): where 2^(z-1) is the largest power of two that divides t, level z takes up all levels below
it, everything decays, and the token becomes level 0. With L levels a memory forgets everything after every 2^(L-1)
tokens. With all weights 1 it is the recurrence below it, up to there.

In chunks each level is one pass of that recurrence: the reads of tokens in the second half of their block, the writes
of those in the first half, and nothing kept from block to block. So T tokens cost log2 T passes; levels that no
token of a call reads are passed over.
"""

import dataclasses
import functools
from collections.abc import Callable
from operator import attrgetter
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import Target, kernel_for
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Form, Primitive, float32
from mom_jax.ops.scalar_decay import SCALAR_DECAY
from mom_jax.ops.segment_rows import last_rows, place_in_document
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.vector_decay import VECTOR_DECAY
from mom_jax.typing import Array, Bool, Float, Int

State = tuple[Float[Array, "S H levels K V"], Float[Array, " S"]]


class LogLinearRows(NamedTuple):
    """Rows of scalar or vector decay, and weights of levels."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]
    v: Float[Array, "N H V"]
    weights: Float[Array, "N H levels"]
    valid: Bool[Array, " N"]  # False on padding rows
    g: Float[Array, "N H"] | Float[Array, "N H K"] | None = None  # log decay of a head, or of each key channel


def _below(g: Float[Array, "N H *channels"] | None) -> Primitive:
    """The recurrence of each level."""
    return VECTOR_DECAY if g is not None and g.ndim == 3 else SCALAR_DECAY


def log_linear_step(rows: LogLinearRows, state: State, scale: float) -> tuple[Float[Array, "N H V"], State]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, v, weights = map(widened, rows[:4])
    old, count = state
    place, level = count.astype(jnp.int32), jnp.arange(old.shape[2])
    held = _held(old, place)
    # the level that takes up those below it
    upper = jnp.where(place > 0, jax.lax.population_count((place & -place) - 1) + 1, 0)[:, None]
    lower = (level < upper).astype(old.dtype)
    taken = jnp.einsum("nl,nhlkv->nhkv", lower, held)
    new = _by_level(1 - lower) * held + _by_level(level == upper) * taken[:, :, None]
    if rows.g is not None:
        g = widened(rows.g)
        new = jnp.exp(g[:, :, None, :, None] if g.ndim == 3 else g[..., None, None, None]) * new
    new = new.at[:, :, 0].add(k[..., None] * v[..., None, :])
    o = scale * jnp.einsum("nhlkv,nhk,nhl->nhv", new, q, weights)
    new = jnp.where(_by_level(rows.valid[:, None]), new, old)
    return o.astype(rows.v.dtype), (new, count + rows.valid)


def _by_level(x: Float[Array, "N levels"] | Bool[Array, "N levels"]) -> Array:
    return x[:, None, :, None, None]


def _held(levels: Float[Array, "S H levels K V"], count: Int[Array, " S"]) -> Float[Array, "S H levels K V"]:
    """The levels that hold something after ``count`` tokens; what stands in others means nothing."""
    level, last = jnp.arange(levels.shape[2]), count[:, None] - 1
    return jnp.where(_by_level((last >= 0) & ((level == 0) | _bit(last, jnp.maximum(level, 1)))), levels, 0)


def _bit(place: Int[Array, "..."], level: Int[Array, "..."]) -> Bool[Array, "..."]:
    """Whether it lies in the second half of its block of 2^level tokens."""
    return (place >> (level - 1)) & 1 > 0


def _in_passes(
    form_of: Callable[[Primitive], Form], rows: LogLinearRows, table: ChunkTable, state: State | None, scale: float
) -> tuple[Float[Array, "N H V"], State | None]:
    """The same function, level by level, each by a form of the recurrence below."""
    q, k, v, weights = map(widened, rows[:4])
    count = None if state is None else state[1].astype(jnp.int32)
    place = place_in_document(count, table)
    below, levels = _below(rows.g), weights.shape[-1]
    form = form_of(below)

    def one_pass(level: Int[Array, ""]):
        second = _bit(place, level)[:, None, None]
        reads = jnp.where(second, q * jnp.take(weights, level, -1)[..., None], 0)
        given = below.rows(reads, k, jnp.where(second, 0, v), rows.g)
        begins = dataclasses.replace(table, reset=rows.valid & (place % (1 << level) == 0))
        return form(given, begins, None if state is None else _entering(state, level), scale)

    def body(o, level):
        read = jnp.any(_bit(place, level) & rows.valid)
        shapes = jax.eval_shape(one_pass, level)
        nothing = lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)  # noqa: E731
        more, final = jax.lax.cond(read, one_pass, nothing, level)
        return o + more, final

    own = (scale * jnp.sum(q * k, -1) * weights[..., 0])[..., None] * v
    o, finals = jax.lax.scan(jax.checkpoint(body), own, jnp.arange(1, levels))
    o = o.astype(rows.v.dtype)
    return o, None if state is None else _leaving(state, finals, k, v, place, last_rows(rows.valid, table))


def _entering(state: State, level: Int[Array, ""]) -> Float[Array, "S H K V"]:
    """What a level's pass holds before a segment: the first half of the block that its last token lies in."""
    levels, count = state
    of_level, count = jnp.arange(levels.shape[2]), count.astype(jnp.int32)
    first_half = jnp.where(_bit(count[:, None] - 1, level), of_level == level, of_level < level)
    return jnp.sum(jnp.where(_by_level(first_half), _held(levels, count), 0), 2)


def _leaving(
    state: State,
    finals: Float[Array, "passes S H K V"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    place: Int[Array, " N"],
    last: Int[Array, " S"],
) -> State:
    """The levels behind each segment's last token; empty segments keep theirs."""
    levels, count = state
    behind = place[last][:, None]
    higher = _by_level(_bit(behind, jnp.arange(1, levels.shape[2]))) * jnp.moveaxis(finals, 0, 2)
    newest = (k[last][..., None] * v[last][..., None, :])[:, :, None]
    some = last >= 0
    new = jnp.where(_by_level(some[:, None]), jnp.concatenate([newest, higher], 2), levels)
    return new, jnp.where(some, behind[:, 0] + 1, count).astype(count.dtype)


def _with_kernel(device: Target, *arguments: Any) -> tuple[Float[Array, "N H V"], State | None]:
    return _in_passes(lambda below: kernel_for(device, below.kernels), *arguments)


@functools.cache
def log_linear(levels: int) -> Primitive:
    """The hierarchy of that many levels, L."""

    def flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
        """Of all levels; those that a short sequence does not reach are passed over."""
        forward, backward = SCALAR_DECAY.flops(chunk, key_dim, value_dim)
        return (levels - 1) * forward, (levels - 1) * backward

    return Primitive(
        name="log linear",
        rows=LogLinearRows,
        # the levels, and how many tokens they are of
        state=lambda heads, keys, values: (float32(heads, levels, keys, values), float32()),
        step=log_linear_step,
        chunked=functools.partial(_in_passes, attrgetter("chunked")),
        kernels=dict.fromkeys(SCALAR_DECAY.kernels, _with_kernel),
        skips=False,
        inert=("k", "g", "valid"),
        flops=flops,
    )


LOG_LINEAR = log_linear(levels=15)
