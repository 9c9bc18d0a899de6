"""A memory whose key channels decay each at their own rate, over packed segments.

Per head, with a state S of shape [K, V] in float32:

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T

`vector_decay` reads the new state, ``o_t = scale * S_t^T q_t``: GLA (arXiv 2312.06635, section 4.1)
and HGRN2 (arXiv 2404.07904; k is ``1 - exp(g)``). With a bonus u it reads the old state and
weighs the current token on its own, ``o_t = scale * (S_{t-1} + diag(u) k_t v_t^T)^T q_t``: RWKV6
(arXiv 2404.05892, section 4.2).

`vector_decay_step`, `vector_decay_scan` and `vector_decay_chunked` are three forms of one
function. Padding rows must have ``k = 0`` or ``v = 0``, and ``g = 0``.
"""

import functools

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, matrix_state, scan_rows, to_chunks, transpose
from mom_jax.ops.decays import channel_decays, decayed_scores
from mom_jax.ops.dispatch import select
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float


def vector_decay_step(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    bonus: Float[Array, "H K"] | None,
    state: Float[Array, "N H K V"],
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, value, g = (x.astype(jnp.float32) for x in (q, k, v, g))
    written = k[..., None] * value[..., None, :]
    new = jnp.exp(g)[..., None] * state + written
    read = new if bonus is None else state + bonus.astype(jnp.float32)[..., None] * written
    return (scale * jnp.einsum("nhkv,nhk->nhv", read, q)).astype(v.dtype), new


def vector_decay_scan(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    bonus: Float[Array, "H K"] | None,
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The recurrence exactly as written, one row after the other; arguments as `vector_decay`."""

    def step(q, k, v, g, state):
        return vector_decay_step(q, k, v, g, bonus, state, scale)

    return scan_rows(step, (q, k, v, g), table, initial_state, matrix_state(k, v))


def vector_decay_chunked(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    bonus: Float[Array, "H K"] | None,
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
    scale: float,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same function chunk by chunk, with scores between rows from `decayed_scores`.

    Both readings are one: ``S_t^T q_t`` is ``S_{t-1}^T (e^g q_t) + (q_t.k_t) v_t``. The backward pass
    keeps the inputs and recomputes everything else, the states at chunk borders included.
    """
    return _chunked(q, k, v, g, bonus, table, initial_state, scale)


@functools.partial(jax.checkpoint, static_argnums=7)
def _chunked(q, k, v, g, bonus, table, initial_state, scale):
    dtype = v.dtype
    q, k, v, g = (to_chunks(x, table.chunk_size) for x in (q, k, v, g))
    decays = channel_decays(g, table)
    if bonus is None:
        reads, own = jnp.exp(g) * q, jnp.sum(q * k, -1)
    else:
        reads, own = q, jnp.sum(q * k * bonus.astype(jnp.float32)[:, None], -1)
    writes = transpose(decays.leave * k)
    states, final = border_states(writes @ v, decays.across[..., None], table, initial_state)
    o = decayed_scores(reads, k, decays, table) @ v + own[..., None] * v + (decays.enter * reads) @ states
    return from_chunks(scale * o).astype(dtype), final


_IMPLEMENTATIONS = {"reference": vector_decay_scan, "xla": vector_decay_chunked}


def vector_decay(
    q: Float[Array, "N H K"],
    k: Float[Array, "N H K"],
    v: Float[Array, "N H V"],
    g: Float[Array, "N H K"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None = None,
    *,
    bonus: Float[Array, "H K"] | None = None,
    scale: float | None = None,
    impl: str = "auto",
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """Linear attention with a decay for each key channel, over packed rows (module docstring).

    Args:
        q, k, v: float32 or bfloat16 rows; k or v is 0 on padding rows.
        g: log decay, at most 0, and 0 on padding rows.
        table: segments and documents of the rows.
        initial_state: float32 state of every segment; None starts from 0 and returns no state.
        bonus: RWKV6's u: read the state before the token, plus the token weighted by u.
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
    return select(impl, _IMPLEMENTATIONS, "vector_decay")(q, k, v, g, bonus, table, initial_state, scale)
