"""What every recurrence over packed rows shares: rows cut into chunks, and states that segments load and store.

A state is an array [H, ...] or a tuple of them; ``stored`` is the same with a leading axis of
segments and one more slot at its end, which takes what nobody reads. Without stored states
every segment starts from 0.
"""

from collections.abc import Callable, Container
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.ops.dispatch import target, uses_kernels
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Int

State = Any  # an array [H, ...] or a tuple of them
Stored = Any  # the same [S + 1, H, ...], or None


def to_chunks(x: Float[Array, "N H *rest"], chunk_size: int) -> Float[Array, "chunks H C *rest"]:
    """Cuts rows into chunks, heads first, in float32 or wider."""
    x = x.reshape(-1, chunk_size, *x.shape[1:])
    return widened(jnp.moveaxis(x, 2, 1))


def from_chunks(x: Float[Array, "chunks H C *rest"]) -> Float[Array, "N H *rest"]:
    """The inverse of `to_chunks`."""
    x = jnp.moveaxis(x, 1, 2)
    return x.reshape(-1, *x.shape[2:])


def transpose(x: Float[Array, "*batch a b"]) -> Float[Array, "*batch b a"]:
    """Swaps the last two axes."""
    return jnp.swapaxes(x, -1, -2)


def chunk_rows(time: int, key_dim: int, impl: str, kernels: Container[str]) -> int:
    """Rows of a chunk: as suits the matrix units; few for small keys in XLA on a CPU; no more than short rows have.

    Args:
        time: tokens of a row.
        key_dim: K.
        impl: of the recurrence.
        kernels: the platforms that it has kernels for.
    """
    longest = 32 if key_dim <= 64 and not uses_kernels(impl) else 64
    if uses_kernels(impl) and "tpu" in kernels and target().platform == "tpu" and not _is_small(target().kind):
        longest = 128
    return min(longest, 1 << (time - 1).bit_length())


def _is_small(kind: str) -> bool:
    """Whether a TPU has 16 MiB of VMEM, where not every kernel has room for chunks of 128 rows."""
    return kind.startswith(("TPU v2", "TPU v3", "TPU v4"))


def initial_carry(initial: Any, shapes: Any) -> tuple[State, Stored]:
    """A state of zeros of ``shapes`` (`jax.ShapeDtypeStruct`) to start from, and the stored states."""
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    if initial is None:
        return zeros, None
    return zeros, jax.tree.map(lambda a, z: jnp.pad(a.astype(z.dtype), ((0, 1), *[(0, 0)] * z.ndim)), initial, zeros)


def final_states(stored: Stored) -> Any:
    """The states of all segments."""
    return None if stored is None else jax.tree.map(lambda a: a[:-1], stored)


def load(stored: Stored, state: State, segment: Int[Array, ""], when: Bool[Array, ""]) -> State:
    """The state of ``segment`` where ``when`` holds, else the running one."""
    if stored is None:
        return jax.tree.map(lambda a: jnp.where(when, 0.0, a), state)
    return jax.tree.map(lambda s, a: jnp.where(when, s[segment], a), stored, state)


def store(stored: Stored, state: State, segment: Int[Array, ""], when: Bool[Array, ""] | bool) -> Stored:
    """Writes ``state`` in place where ``when`` holds, else into the spare slot."""
    if stored is None:
        return None
    return jax.tree.map(lambda s, a: s.at[jnp.where(when, segment, s.shape[0] - 1)].set(a), stored, state)


# states before each chunk, decays across it, and the table
_Residuals = tuple[Float[Array, "chunks H K V"], Float[Array, "chunks H #K 1"], ChunkTable]


@jax.custom_vjp
def border_states(
    update: Float[Array, "chunks H K V"],
    across: Float[Array, "chunks H #K 1"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
) -> tuple[Float[Array, "chunks H K V"], Float[Array, "S H K V"] | None]:
    """States at chunk borders of ``S' = across * S + update``: what enters each chunk, and the final ones."""
    shape = jax.ShapeDtypeStruct(update.shape[1:], update.dtype)
    xs = (update, across, table.first, table.segment, table.last)
    (_, stored), states = jax.lax.scan(_border, initial_carry(initial_state, shape), xs)
    return states, final_states(stored)


def _border(carried: tuple[State, Stored], xs: tuple[Array, ...]) -> tuple[tuple[State, Stored], State]:
    """One chunk of ``S' = across * S + update``; gives what enters it."""
    state, stored = carried
    update, across, first, segment, last = xs
    entering = load(stored, state, segment, first)
    state = across * entering + update
    return (state, store(stored, state, segment, last)), entering


def _border_states_fwd(
    update: Float[Array, "chunks H K V"],
    across: Float[Array, "chunks H #K 1"],
    table: ChunkTable,
    initial_state: Float[Array, "S H K V"] | None,
) -> tuple[tuple[Float[Array, "chunks H K V"], Float[Array, "S H K V"] | None], _Residuals]:
    states, last = border_states(update, across, table, initial_state)
    return (states, last), (states, across, table)


def _border_states_bwd(
    residuals: _Residuals, cotangents: tuple[Float[Array, "chunks H K V"], Float[Array, "S H K V"] | None]
) -> tuple[Float[Array, "chunks H K V"], Float[Array, "chunks H #K 1"], None, Float[Array, "S H K V"] | None]:
    states, across, table = residuals
    dstates, dfinal = cotangents
    shape = jax.ShapeDtypeStruct(states.shape[1:], states.dtype)
    xs = (dstates, across, table.last, table.segment, table.first)
    (_, dstored), dupdate = jax.lax.scan(_border, initial_carry(dfinal, shape), xs, reverse=True)
    axes = tuple(i for i in range(-2, 0) if across.shape[i] == 1)
    return dupdate, jnp.sum(dupdate * states, axes, keepdims=True), None, final_states(dstored)


border_states.defvjp(_border_states_fwd, _border_states_bwd)


def _scan_chunks(
    body: Callable[[Any, State, Any], tuple[State, Any]],
    shapes: Any,
    parameters: Any,
    xs: Any,
    table: ChunkTable,
    initial_state: Any,
) -> tuple[Any, Any]:
    """Runs ``body`` over chunks; its backward pass keeps the state before each chunk and runs the chunk again.

    Args:
        body: ``(parameters, state, x) -> (state, y)`` of one chunk.
        shapes: of one state, without the axis of segments.
        parameters: floating arrays that all chunks share.
        xs: floating arrays [chunks, ...].
        table: segments of the chunks.
        initial_state: the state of every segment, or None to start from 0.

    Returns:
        The stacked ``y``, and the state of every segment after its last chunk, or None.
    """
    return _scan_chunks_fwd(body, shapes, parameters, xs, table, initial_state)[0]


def _scan_chunks_fwd(
    body: Callable, shapes: Any, parameters: Any, xs: Any, table: ChunkTable, initial_state: Any
) -> tuple[tuple[Any, Any], tuple[Any, Any, ChunkTable, State]]:
    def forward(carried, chunk):
        state, stored = carried
        x, first, segment, last = chunk
        entering = load(stored, state, segment, first)
        state, y = body(parameters, entering, x)
        return (state, store(stored, state, segment, last)), (entering, y)

    chunks = (xs, table.first, table.segment, table.last)
    (_, stored), (states, ys) = jax.lax.scan(forward, initial_carry(initial_state, shapes), chunks)
    return (ys, final_states(stored)), (parameters, xs, table, states)


def _scan_chunks_bwd(
    body: Callable, shapes: Any, residuals: tuple[Any, Any, ChunkTable, State], cotangents: tuple[Any, Any]
) -> tuple[Any, Any, None, Any]:
    parameters, xs, table, states = residuals
    dys, dfinal = cotangents

    def backward(carried, chunk):
        (dstate, dstored), dparameters = carried
        x, state, dy, first, segment, last = chunk
        leaving = load(dstored, dstate, segment, last)
        gradient, dstate, dx = jax.vjp(body, parameters, state, x)[1]((leaving, dy))
        dparameters = jax.tree.map(jnp.add, dparameters, gradient)
        return ((dstate, store(dstored, dstate, segment, first)), dparameters), dx

    chunks = (xs, states, dys, table.first, table.segment, table.last)
    init = (initial_carry(dfinal, shapes), jax.tree.map(jnp.zeros_like, parameters))
    ((_, dstored), dparameters), dxs = jax.lax.scan(backward, init, chunks, reverse=True)
    return dparameters, dxs, None, final_states(dstored)


scan_chunks = jax.custom_vjp(_scan_chunks, nondiff_argnums=(0, 1))
scan_chunks.defvjp(_scan_chunks_fwd, _scan_chunks_bwd)
