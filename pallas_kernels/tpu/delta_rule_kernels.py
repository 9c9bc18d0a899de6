"""Bodies of the gated delta rule's TPU kernels; `delta_rule` calls them and has the equations.

Each runs on the grid of `layout`, for MB heads and one chunk at a time. References without an
array (no documents, no states, no inverse) are None.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.tpu.decays import Decays, documents, head_decays, head_gate_gradients
from pallas_kernels.tpu.layout import Blocks
from pallas_kernels.tpu.products import column_index, product, row_index, to_column, to_row
from pallas_kernels.tpu.states import Ref, load_state, store_state
from pallas_kernels.tpu.triangular import unit_lower_inverse


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
    entry = load_state(table, blocks, initial, state)
    chunk = _read(k, v, g, beta, document)
    solve = unit_lower_inverse(_strict(chunk), exact=chunk.k.dtype == jnp.float32)
    if inverse is not None:
        inverse[...] = solve
    queries, entering = q[...], state[...]
    scores = chunk.decays.between * product(queries, chunk.k, "nt")
    update = _update(chunk, solve, _residual(chunk, entering))
    read = chunk.decays.enter * _times_state(queries, entering)
    inside = product(_operand(scores, queries), _operand(update, queries))
    o[...] = (scale * (read + inside)).astype(o.dtype)
    state[...] = _advance(chunk, entering, update)
    store_state(entry, blocks, final, state)


def borders(
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
    load_state(table, blocks, initial, state)
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
    entry = load_state(table, blocks, dfinal, state)
    chunk = _read(k, v, g, beta, document)
    keys, decays, like = chunk.k, chunk.decays, chunk.k
    queries, dout, entering, dleaving = q[...], do[...], states[...], state[...]
    gram = decays.between * product(keys, keys, "nt")
    scores = decays.between * product(queries, keys, "nt")
    residual = _residual(chunk, entering)
    update = _update(chunk, inverse[...], residual)

    dupdate = scale * product(_operand(scores, like), dout, "tn")
    dupdate += decays.leave * _times_state(keys, dleaving)
    dwritten = product(_operand(inverse[...], like), _operand(dupdate, like), "tn")
    dvalue = chunk.beta * dwritten
    dv[...] = dvalue.astype(dv.dtype)
    dread_k = _operand(-decays.enter * dvalue, like)
    dread_q = _operand(scale * decays.enter * dout.astype(jnp.float32), like)
    state[...] = decays.across * dleaving + product(keys, dread_k, "tn") + product(queries, dread_q, "tn")
    store_state(entry, blocks, dinitial, state)

    update = _operand(update, like)
    dscores = scale * product(dout, update, "nt")
    strict = row_index(gram.shape) > column_index(gram.shape)
    dstrict = jnp.where(strict, -product(_operand(dwritten, like), update, "nt"), 0.0)
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
    inside = product(dscores, queries, "tn") + product(dstrict, keys)
    dk[...] = (from_state + to_state + inside).astype(dk.dtype)


def _read(k, v, g, beta, document):
    inside = documents(None if document is None else document[...])
    return _Chunk(k[...], v[...], to_column(beta[...]), head_decays(g[...], inside))


def _operand(x, like):
    """In the dtype of ``like``, as an operand of a matrix product."""
    return x.astype(like.dtype)


def _times_state(x, state, transposed=False):
    return product(x, _operand(state, x), "nt" if transposed else "nn")


def _strict(chunk):
    gram = chunk.beta * chunk.decays.between * product(chunk.k, chunk.k, "nt")
    return jnp.where(row_index(gram.shape) > column_index(gram.shape), gram, 0.0)


def _residual(chunk, state):
    """The residual: values less what the state predicts of them."""
    return chunk.v.astype(jnp.float32) - chunk.decays.enter * _times_state(chunk.k, state)


def _update(chunk, inverse, residual):
    return product(_operand(inverse, chunk.k), _operand(chunk.beta * residual, chunk.k))


def _advance(chunk, state, update):
    written = _operand(chunk.decays.leave * update, chunk.k)
    return chunk.decays.across * state + product(chunk.k, written, "tn")
