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
    beta: jax.Array  # [MB, 1, C]
    decays: Decays
    strength: jax.Array  # [MB, C, 1]: beta, and the decay from a row to the chunk's end


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
    chunk, entering = _read(k, g, beta, document), state[...]
    both = _stack(chunk.k, q[...])
    gram, scores = _halves(product(both, chunk.k, "nt"))
    read_k, read_q = _halves(_times_state(both, entering))
    weighted = chunk.decays.between * chunk.beta
    solve = unit_lower_inverse(_strict(weighted * gram), exact=chunk.k.dtype == jnp.float32)
    solve = _operand(solve, chunk.k)
    if inverse is not None:
        inverse[...] = solve
    errors = _errors(chunk, v, solve, read_k)
    inside = product(_operand(weighted * scores, errors), errors)
    o[...] = (scale * (chunk.decays.enter * read_q + inside)).astype(o.dtype)
    state[...] = _advance(chunk, entering, errors)
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
    errors: Ref,  # [MB, C, V]
    state: Ref,
    blocks: Blocks,
) -> None:
    """The state that enters each chunk, and the errors of its rows."""
    load_state(table, blocks, initial, state)
    chunk, entering = _read(k, g, beta, document), state[...]
    states[...] = entering.astype(states.dtype)
    errors[...] = _errors(chunk, v, inverse[...], _times_state(chunk.k, entering))
    state[...] = _advance(chunk, entering, errors[...])


def reverse(
    table: Ref,
    *,
    q: Ref,
    k: Ref,
    g: Ref,
    beta: Ref,
    document: Ref | None,
    inverse: Ref,
    errors: Ref,  # [MB, C, V]
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
    chunk = _read(k, g, beta, document)
    keys, decays, like, leaving = chunk.k, chunk.decays, chunk.k, state[...]
    both, dout = _stack(keys, q[...]), do[...]
    weighted = decays.between * chunk.beta
    products = product(both, keys, "nt")
    scores = _operand(weighted * _halves(products)[1], like)

    derrors = scale * product(scores, dout, "tn") + chunk.strength * _times_state(keys, leaving)
    dvalue = product(inverse[...], _operand(derrors, like), "tn")
    dv[...] = dvalue.astype(dv.dtype)
    dread = _stack(-decays.enter * dvalue, scale * decays.enter * dout.astype(jnp.float32))
    dread = _operand(dread, like)
    state[...] = decays.across * leaving + product(both, dread, "tn")
    store_state(entry, blocks, dinitial, state)

    dgram, dscores = _halves(product(_stack(_operand(dvalue, like), dout), errors[...], "nt"))
    dgram, dscores = _strict(-dgram), scale * dscores
    gram, scores = _halves(products)
    unweighted = decays.between * (dgram * gram + dscores * scores)
    from_state = _times_state(dread, states[...], transposed=True)
    to_state = _times_state(errors[...], leaving, transposed=True)
    written = decays.leave * jnp.sum(to_state * keys, -1, keepdims=True)
    dbeta[...] = jnp.sum(unweighted, -2, keepdims=True) + to_row(written)
    of_keys, of_queries = _halves(from_state * both)
    dg[...] = head_gate_gradients(
        paths=unweighted * chunk.beta,
        entering=jnp.sum(of_keys, -1, keepdims=True) + jnp.sum(of_queries, -1, keepdims=True),
        leaving=to_column(chunk.beta) * written,
        across=decays.across * jnp.sum(leaving * states[...].astype(jnp.float32), (-2, -1), keepdims=True),
    )
    dgram, dscores = weighted * dgram, _operand(weighted * dscores, like)
    symmetric = _operand(dgram + jnp.swapaxes(dgram, 1, 2), like)
    to_keys, to_queries = _halves(from_state + product(_stack(symmetric, dscores), keys))
    dq[...] = to_queries.astype(dq.dtype)
    dk[...] = (to_keys + chunk.strength * to_state + product(dscores, q[...], "tn")).astype(dk.dtype)


def _read(k, g, beta, document):
    decays = head_decays(g[...], documents(document))
    return _Chunk(k[...], beta[...], decays, to_column(beta[...]) * decays.leave)


def _stack(first, second):
    """Rows [MB, C, K] twice as [MB, 2 C, K]: as one operand they take a matrix into the MXU once."""
    return jnp.concatenate([first, second], 1)


def _halves(x):
    """The inverse of `_stack`."""
    return x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]


def _operand(x, like):
    """In the dtype of ``like``, as an operand of a matrix product."""
    return x.astype(like.dtype)


def _times_state(x, state, transposed=False):
    return product(x, _operand(state, x), "nt" if transposed else "nn")


def _strict(square):
    return jnp.where(row_index(square.shape) > column_index(square.shape), square, 0.0)


def _errors(chunk, v, inverse, read):
    """What rows find missing at their turn, where ``read`` is what the incoming state gives for their keys."""
    missing = v[...].astype(jnp.float32) - chunk.decays.enter * read
    return _operand(product(inverse, _operand(missing, chunk.k)), chunk.k)


def _advance(chunk, state, errors):
    written = _operand(chunk.strength * errors.astype(jnp.float32), chunk.k)
    return chunk.decays.across * state + product(chunk.k, written, "tn")
