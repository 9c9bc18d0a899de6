"""A memory that decays as a whole, over packed segments: linear attention with one gate for each head.

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1} + k_t v_t^T;   o_t = scale * S_t^T q_t

Linear attention (arXiv 2006.16236, section 3.3) has no gate (``g = None``), RetNet (arXiv
2307.08621, section 2.1) and Lightning Attention (arXiv 2401.04658) a fixed one, Mamba2 (arXiv
2405.21060; q, k, v are C, B and dt x, scale is 1) one that depends on the token.

A normaliser (``o_t / (q_t . sum_i k_i)``) needs no code of its own: append a column of ones to
v, and the last column of outputs and states is the sum.

`scalar_decay_step`, `scalar_decay_scan` and `scalar_decay_chunked` are three forms of one
function. Padding rows must have ``k = 0`` or ``v = 0``, and ``g = 0``.
"""

import functools

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, matrix_state, scan_rows, to_chunks, transpose
from mom_jax.ops.decays import documents, head_decays, masked
from mom_jax.ops.dispatch import select
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float


def scalar_decay_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"] | None,
    state: Float[Array, "N H K V"],
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, value = (x.astype(jnp.float32) for x in (q, k, v))
    kept = state if g is None else jnp.exp(g.astype(jnp.float32))[..., None, None] * state
    state = kept + k[..., None] * value[..., None, :]
    return (scale * jnp.einsum("nhkv,nhk->nhv", state, q)).astype(v.dtype), state


def scalar_decay_scan(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"] | None,
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The recurrence exactly as written, one row after the other; arguments as `scalar_decay`."""
    step = functools.partial(scalar_decay_step, scale=scale)
    return scan_rows(step, (q, k, v, g), table, initial_state, matrix_state(k, v))


def scalar_decay_chunked(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"] | None,
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same function chunk by chunk (arXiv 2405.21060, section 6).

    Inside a chunk with incoming state S and G the running sum of g:

        O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) V;    S' = e^(G_C) S + (e^(G_C - G) K)^T V

    Only the second equation runs in sequence, and it multiplies no matrices. The backward pass
    keeps the inputs and recomputes everything else, the states at chunk borders included.
    """
    return _chunked(q, k, v, g, table, initial_state, scale)


@functools.partial(jax.checkpoint, static_argnums=6)
def _chunked(q, k, v, g, table, initial_state, scale):
    dtype = v.dtype
    q, k, v = (to_chunks(x, table.chunk_size) for x in (q, k, v))
    between, enter, leave, across = _decays(g, table, q.shape[1])
    writes = transpose(leave[..., None] * k)
    states, final = border_states(writes @ v, across[..., None, None], table, initial_state)
    o = (between * (q @ transpose(k))) @ v + (enter[..., None] * q) @ states
    return from_chunks(scale * o).astype(dtype), final


def _decays(g, table, heads):
    if g is not None:
        return head_decays(to_chunks(g, table.chunk_size), table)
    inside, size = documents(table), table.chunk_size
    shape = table.segment.shape[0], heads, size
    return (
        masked(jnp.tril(jnp.ones((size, size))), inside.between),
        masked(jnp.ones(shape), inside.enter),
        masked(jnp.ones(shape), inside.leave),
        masked(jnp.ones(shape[:-1]), inside.across),
    )


_IMPLEMENTATIONS = {"reference": scalar_decay_scan, "xla": scalar_decay_chunked}


def scalar_decay(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H"] | None,
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None = None,
    *,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """Linear attention with a decay for each head, over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows; k or v is 0 on padding rows.
        g: log decay, at most 0, and 0 on padding rows; None decays nothing.
        table: segments and documents of the rows.
        initial_state: float32 state of every segment; None starts from 0 and returns no state.
        scale: of the output, K^-0.5 if None.
        impl: ``auto``, ``reference`` (token by token), ``xla`` (chunk-parallel), or the kernels of
            ``tpu`` or ``gpu`` (`mom_jax.ops.dispatch`).

    Returns:
        Outputs in ``v.dtype``, and the float32 state of every segment after its last row (an
        empty segment keeps its initial state), or None without an initial state.

    Raises:
        InputError: ``impl`` is unknown or cannot run here.
    """
    scale = k.shape[-1] ** -0.5 if scale is None else scale
    return select(impl, _IMPLEMENTATIONS, "scalar_decay")(q, k, v, g, table, initial_state, scale)
