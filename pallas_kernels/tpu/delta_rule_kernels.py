"""Bodies of the gated delta rule's TPU kernels; `delta_rule` calls them and has the equations.

Each runs on the grid of `parts`, for MB heads and one chunk at a time. References without an
array (no documents, no states, no inverse) are None.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.tpu.parts import (
    Blocks,
    Decays,
    column_index,
    documents,
    head_decays,
    head_gate_gradients,
    is_first,
    is_last,
    product,
    row_index,
    to_column,
    to_row,
)
from pallas_kernels.tpu.triangular import unit_lower_inverse

Ref = Any


class _Chunk(NamedTuple):
    """A chunk in VMEM."""

    k: jax.Array
    v: jax.Array
    beta: jax.Array  # [MB, C, 1]
    decays: Decays


def forward(
    table: Ref,
    *,
    q: Ref,  # [MB, C, K]
    k: Ref,
    v: Ref,  # [MB, C, V]
    g: Ref,  # [MB, 1, C]
    beta: Ref,  # [MB, 1, C]
    document: Ref | None,  # [1, C]
    initial: Ref | None,  # [MB, K, V]
    o: Ref,  # [MB, C, V]
    final: Ref | None,  # [MB, K, V]
    inverse: Ref | None,  # [MB, C, C]
    state: Ref,  # [MB, K, V]
    blocks: Blocks,
    scale: float,
) -> None:
    """Outputs, final states and, where asked for, the inverses."""
    entry = _enter(table, blocks, state, initial, at=is_first)
    chunk = _read(k, v, g, beta, document)
    solve = unit_lower_inverse(_strict(chunk), exact=chunk.k.dtype == jnp.float32)
    if inverse is not None:
        inverse[...] = solve
    queries, entering = q[...], state[...]
    scores = chunk.decays.between * product(queries, chunk.k, b_by=-1)
    update = _update(chunk, solve, _residual(chunk, entering))
    read = chunk.decays.enter * _times_state(queries, entering)
    own = product(_operand(scores, queries), _operand(update, queries))
    o[...] = (scale * (read + own)).astype(o.dtype)
    state[...] = _advance(chunk, entering, update)
    _leave(entry, state, final, at=is_last)


def border_states(
    table: Ref,
    *,
    k: Ref,
    v: Ref,
    g: Ref,
    beta: Ref,
    document: Ref | None,
    inverse: Ref,  # [MB, C, C]
    initial: Ref | None,
    states: Ref,  # [MB, K, V]
    state: Ref,
    blocks: Blocks,
) -> None:
    """The state that enters each chunk."""
    _enter(table, blocks, state, initial, at=is_first)
    chunk, entering = _read(k, v, g, beta, document), state[...]
    states[...] = entering
    update = _update(chunk, inverse[...], _residual(chunk, entering))
    state[...] = _advance(chunk, entering, update)


def reverse(
    table: Ref,
    *,
    q: Ref,
    k: Ref,
    v: Ref,
    g: Ref,
    beta: Ref,
    document: Ref | None,
    inverse: Ref,
    states: Ref,  # [MB, K, V] what enters the chunk
    do: Ref,  # [MB, C, V]
    dfinal: Ref | None,  # [MB, K, V]
    dq: Ref,
    dk: Ref,
    dv: Ref,
    dg: Ref,
    dbeta: Ref,
    dinitial: Ref | None,
    state: Ref,  # the gradient of the state
    blocks: Blocks,
    scale: float,
) -> None:
    """All gradients, from the last chunk to the first."""
    entry = _enter(table, blocks, state, dfinal, at=is_last)
    chunk = _read(k, v, g, beta, document)
    keys, decays, like = chunk.k, chunk.decays, chunk.k
    queries, dout, entering, dleaving = q[...], do[...], states[...], state[...]
    gram = decays.between * product(keys, keys, b_by=-1)
    scores = decays.between * product(queries, keys, b_by=-1)
    residual = _residual(chunk, entering)
    update = _update(chunk, inverse[...], residual)

    dupdate = scale * product(_operand(scores, like), dout, a_by=-2)
    dupdate += decays.leave * _times_state(keys, dleaving)
    dwritten = product(_operand(inverse[...], like), _operand(dupdate, like), a_by=-2)
    dvalue = chunk.beta * dwritten
    dv[...] = dvalue.astype(dv.dtype)
    dread_k = _operand(-decays.enter * dvalue, like)
    dread_q = _operand(scale * decays.enter * dout.astype(jnp.float32), like)
    state[...] = decays.across * dleaving + product(keys, dread_k, a_by=-2) + product(queries, dread_q, a_by=-2)
    _leave(entry, state, dinitial, at=is_first)

    update = _operand(update, like)
    dscores = scale * product(dout, update, b_by=-1)
    strict = row_index(gram.shape) > column_index(gram.shape)
    dstrict = jnp.where(strict, -product(_operand(dwritten, like), update, b_by=-1), 0.0)
    dgram = dstrict * gram
    dbeta[...] = to_row(jnp.sum(dwritten * residual, -1, keepdims=True) + jnp.sum(dgram, -1, keepdims=True))

    from_state = _times_state(dread_k, entering, transposed=True)
    to_state = decays.leave * _times_state(update, dleaving, transposed=True)
    of_queries = _times_state(dread_q, entering, transposed=True)
    dg[...] = head_gate_gradients(
        paths=dscores * scores + chunk.beta * dgram,
        entering=jnp.sum(of_queries * queries + from_state * keys, -1, keepdims=True),
        leaving=jnp.sum(to_state * keys, -1, keepdims=True),
        across=decays.across * jnp.sum(dleaving * entering, (-2, -1), keepdims=True),
    )
    dscores = _operand(decays.between * dscores, like)
    dstrict = chunk.beta * decays.between * dstrict
    dstrict = _operand(dstrict + jnp.swapaxes(dstrict, 1, 2), like)
    dq[...] = (of_queries + product(dscores, keys)).astype(dq.dtype)
    inside = product(dscores, queries, a_by=-2) + product(dstrict, keys)
    dk[...] = (from_state + to_state + inside).astype(dk.dtype)


def _enter(table, blocks, state, source, *, at):
    """Loads the state where a segment begins (in reverse: ends); returns the chunk's entry of the table."""
    step = pl.program_id(1)
    entry = table[blocks.place(step)]

    @pl.when((step == 0) | at(entry) if source is None else step == 0)
    def _():
        state[...] = jnp.zeros_like(state)

    if source is not None:

        @pl.when(at(entry))
        def _():
            state[...] = source[...]

    return entry


def _leave(entry, state, target, *, at):
    if target is not None:

        @pl.when(at(entry))
        def _():
            target[...] = state[...]


def _read(k, v, g, beta, document):
    inside = documents(None if document is None else document[...])
    return _Chunk(k[...], v[...], to_column(beta[...]), head_decays(g[...], inside))


def _operand(x, like):
    """In the dtype of ``like``, as an operand of a matrix product."""
    return x.astype(like.dtype)


def _times_state(x, state, transposed=False):
    return product(x, _operand(state, x), b_by=-1 if transposed else -2)


def _strict(chunk):
    gram = chunk.beta * chunk.decays.between * product(chunk.k, chunk.k, b_by=-1)
    return jnp.where(row_index(gram.shape) > column_index(gram.shape), gram, 0.0)


def _residual(chunk, state):
    """What the state does not know of the values."""
    return chunk.v.astype(jnp.float32) - chunk.decays.enter * _times_state(chunk.k, state)


def _update(chunk, inverse, residual):
    return product(_operand(inverse, chunk.k), _operand(chunk.beta * residual, chunk.k))


def _advance(chunk, state, update):
    written = _operand(chunk.decays.leave * update, chunk.k)
    return chunk.decays.across * state + product(chunk.k, written, a_by=-2)
