"""A memory that is read by solving for its best linear map (MesaNet, arXiv 2506.05233), over packed segments.

Per head, with states H of shape [K, K] and U of shape [K, V] in float32, and a diagonal regulariser L > 0:

    H_t = exp(g_t) H_{t-1} + beta_t k_t k_t^T;   U_t = exp(g_t) U_{t-1} + beta_t k_t v_t^T
    o_t = scale * U_t^T (H_t + diag(L))^-1 q_t

That is the answer to q_t of the map P which minimises ``sum_i zeta_ti beta_i |v_i - P k_i|^2 / 2`` plus
``tr(P diag(L) P^T) / 2``, zeta the decays since i. A step solves exactly, chunks by conjugate gradients until the
residual is as small as rounding.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import border_states, from_chunks, to_chunks, transpose
from mom_jax.ops.decays import head_decays
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive, float32
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Float

_COUNTED_STEPS = 30  # of conjugate gradients, as in the paper; in FLOPs alone
State = tuple[Float[Array, "S H K K"], Float[Array, "S H K V"]]


class MesaRows(NamedTuple):
    """Rows of a memory that solves."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H K"]  # L2-normalised
    v: Float[Array, "N H V"]
    g: Float[Array, "N H"]  # log decay, at most 0
    beta: Float[Array, "N H"]  # write strength
    ridge: Float[Array, "H K"]  # L, of all rows


def mesa_step(rows: MesaRows, state: State, scale: float) -> tuple[Float[Array, "N H V"], State]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, v, g, beta, ridge = map(widened, rows)
    grams, maps = state
    decay, written = jnp.exp(g)[..., None, None], (beta[..., None] * k)[..., None]
    grams = decay * grams + written * k[..., None, :]
    maps = decay * maps + written * v[..., None, :]
    regular = grams + ridge[..., None] * jnp.eye(k.shape[-1], dtype=k.dtype)
    solved = jnp.linalg.solve(regular, q[..., None])[..., 0]
    return (scale * jnp.einsum("nhkv,nhk->nhv", maps, solved)).astype(rows.v.dtype), (grams, maps)


@functools.partial(jax.checkpoint, static_argnums=3)
def mesa_chunked(
    rows: MesaRows, table: ChunkTable, state: State | None, scale: float
) -> tuple[Float[Array, "N H V"], State | None]:
    """The same function chunk by chunk: what enters a chunk, and what its own rows add, in two products each.

    The gradient of a solution is a solution for the cotangent, so no iteration is kept. The backward pass keeps the
    inputs and recomputes everything else, the states at chunk borders included.
    """
    q, k, v, g, beta = (to_chunks(x, table.chunk_size) for x in rows[:-1])
    ridge, keys = widened(rows.ridge)[:, None], k.shape[-1]
    # [chunks, H, C, C], [chunks, H, C] twice, [chunks, H]
    between, enter, leave, across = head_decays(g, table)
    # [chunks, H, K, C], [chunks, H, C, K + V]
    writes, both = transpose((leave * beta)[..., None] * k), jnp.concatenate([k, v], -1)
    start = None if state is None else jnp.concatenate(state, -1)
    # [chunks, H, K, K + V], [S, H, K, K + V]
    states, final = border_states(writes @ both, across[..., None, None], table, start)
    scores, enter = between * beta[..., None, :], enter[..., None]

    def applied(x: Float[Array, "chunks H C K"]) -> Float[Array, "chunks H C K"]:
        return enter * (x @ transpose(states[..., :keys])) + (scores * (x @ transpose(k))) @ k + ridge * x

    solved = jax.lax.custom_linear_solve(applied, q, conjugate_gradients, symmetric=True)
    o = enter * (solved @ states[..., keys:]) + (scores * (solved @ transpose(k))) @ v
    final = None if final is None else (final[..., :keys], final[..., keys:])
    return from_chunks(scale * o).astype(rows.v.dtype), final


def conjugate_gradients(
    applied: Callable[[Array], Array], wanted: Float[Array, "chunks H C K"]
) -> Float[Array, "chunks H C K"]:
    """What ``applied`` makes ``wanted`` of, for each row a positive definite map of its own.

    Ends when all residuals are as small as rounding, or after three times as many steps as exact arithmetic needs.
    """
    small = jnp.finfo(wanted.dtype).eps ** 2 * jnp.sum(wanted * wanted, -1, keepdims=True)

    def unfinished(carried):
        step, _, _, _, size = carried
        return (step < 3 * wanted.shape[-1]) & jnp.any(size > small)

    def advance(carried):
        step, x, residual, direction, size = carried
        image = applied(direction)
        curvature = jnp.sum(direction * image, -1, keepdims=True)
        length = jnp.where(size > small, size / jnp.where(curvature > 0, curvature, 1), 0)
        x, residual = x + length * direction, residual - length * image
        smaller = jnp.sum(residual * residual, -1, keepdims=True)
        direction = residual + jnp.where(size > small, smaller / jnp.where(size > 0, size, 1), 0) * direction
        return step + 1, x, residual, direction, smaller

    start = (0, jnp.zeros_like(wanted), wanted, wanted, jnp.sum(wanted * wanted, -1, keepdims=True))
    return jax.lax.while_loop(unfinished, advance, start)[1]


def _flops(chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    """The backward pass runs the forward one again and solves once more."""
    state, inside = 2.0 * key_dim * (key_dim + value_dim), 2.0 * chunk * (key_dim + value_dim)
    solve = _COUNTED_STEPS * (2.0 * key_dim**2 + 2 * 2.0 * chunk * key_dim)
    around = 2 * state + inside + 2.0 * chunk**2
    return around + solve, 3 * around + 2 * solve


MESA = Primitive(
    name="mesa",
    rows=MesaRows,
    state=lambda heads, keys, values: (float32(heads, keys, keys), float32(heads, keys, values)),
    step=mesa_step,
    chunked=mesa_chunked,
    inert=("g", "beta"),
    shared=("ridge",),
    flops=_flops,
)
