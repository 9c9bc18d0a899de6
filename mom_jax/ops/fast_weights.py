"""Memories that are small models, trained by gradient steps at test time: what TTT and Titans share.

The memory is a linear map W. Each token contributes the gradient of its own reconstruction loss,
taken at the W from before its mini-batch, so all gradients of a mini-batch can be computed at
once. The new W is linear in them, with coefficients that depend on rates and decays alone.

Mini-batches are counted along each memory's own sequence. The start of a document begins a new one;
a call continues an unfinished one, whose tokens the state has counted. Rows are therefore taken in
windows no longer than a mini-batch, wherever mini-batches begin: a window may hold the end of one,
the beginning of the next, and new documents.

The memory is stored as its difference from the initial weights of a document, so that a state of
zeros is a new memory, as for all other recurrences.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.chunks import scan_chunks
from mom_jax.ops.precision import widened
from mom_jax.ops.segment_rows import place_in_document
from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Int

Counted = tuple[Float[Array, "S H P K V"], Float[Array, " S"]]  # P matrices, and tokens of the present mini-batch
Gradient = Callable[..., Array]  # of half a token's loss by its prediction: (prediction, target, *parameters)


def squared_gradient(
    prediction: Float[Array, "*batch V"], target: Float[Array, "*batch V"]
) -> Float[Array, "*batch V"]:
    """The gradient of half the squared error."""
    return prediction - target


def normalised_gradient(
    prediction: Float[Array, "*batch V"],
    target: Float[Array, "*batch V"],
    weight: Float[Array, "*#batch V"],
    bias: Float[Array, "*#batch V"],
    eps: float = 1e-6,
) -> Float[Array, "*batch V"]:
    """The gradient, in the prediction, of half the squared error of ``layer_norm(prediction) * weight + bias``."""
    centred = prediction - jnp.mean(prediction, -1, keepdims=True)
    spread = jax.lax.rsqrt(jnp.mean(centred * centred, -1, keepdims=True) + eps)
    unit = centred * spread
    slope = (unit * weight + bias - target) * weight
    flat = slope - jnp.mean(slope, -1, keepdims=True) - unit * jnp.mean(slope * unit, -1, keepdims=True)
    return flat * spread


def counted_state(
    valid: Bool[Array, " N"], old: Counted, matrices: Float[Array, "N H P K V"], mini_batch: int
) -> Counted:
    """The state after a step that gave ``matrices``; unchanged where there was no token."""
    count = jnp.where(old[1] + 1 == mini_batch, 0, old[1] + 1)
    return jnp.where(valid[:, None, None, None, None], matrices, old[0]), jnp.where(valid, count, old[1])


class Progress(NamedTuple):
    """Where each row stands in its mini-batch and its window, [chunks, windows, c]."""

    document: Int[Array, "chunks windows c"]  # documents begun in this window before or at the row
    border: Bool[Array, "chunks windows c"]  # the row ends a mini-batch
    passed: Int[Array, "chunks windows c"]  # mini-batches ended in this window before the row

    def together(self) -> Bool[Array, "chunks windows c c"]:
        """Rows t, i <= t of one document."""
        same = self.document[..., :, None] == self.document[..., None, :]
        return jnp.tril(same)


def window_rows(chunk_size: int, mini_batch: int) -> int:
    """Rows c of a window: a divisor of the chunk size that is no larger than a mini-batch."""
    return max(c for c in range(1, min(mini_batch, chunk_size) + 1) if chunk_size % c == 0)


def to_windows(
    x: Float[Array, " N"] | Float[Array, "N H *D"], chunk_size: int, rows: int
) -> Float[Array, "chunks windows {rows}"] | Float[Array, "chunks windows H {rows} *D"]:
    """Cuts rows into windows, heads first, in float32 or wider."""
    x = widened(x.reshape(-1, chunk_size // rows, rows, *x.shape[1:]))
    return jnp.moveaxis(x, 2, 3) if x.ndim > 3 else x


def from_windows(x: Float[Array, "chunks windows H c V"]) -> Float[Array, "N H V"]:
    """The inverse of `to_windows`."""
    x = jnp.moveaxis(x, 2, 3)
    return x.reshape(-1, *x.shape[3:])


def progress(
    valid: Bool[Array, " N"], table: ChunkTable, count: Float[Array, " S"] | None, mini_batch: int
) -> tuple[Progress, Float[Array, " S"] | None]:
    """Mini-batches of all rows, from the tokens that segments have already counted, and the new counts."""
    rows, size = valid.shape[0], table.chunk_size
    resets = jnp.zeros(rows, bool) if table.reset is None else table.reset
    place = place_in_document(None if count is None else count.astype(jnp.int32), table)
    if count is not None:
        lasts = jnp.sum(valid.reshape(-1, size), -1) - 1 + jnp.arange(0, rows, size)
        ended = ((place[lasts] + 1) % mini_batch).astype(count.dtype)
        count = count.at[jnp.where(table.last, table.segment, count.shape[0])].set(ended, mode="drop")
    border = valid & (place % mini_batch == mini_batch - 1)
    c = window_rows(size, mini_batch)
    resets, border = (x.reshape(-1, size // c, c) for x in (resets, border))
    finished = jnp.cumsum(border, -1, dtype=jnp.int32)
    return Progress(jnp.cumsum(resets, -1, dtype=jnp.int32), border, finished - border), count


# The last six fields of `Windows`.
Coefficients = tuple[
    Float[Array, "chunks windows H c P"],
    Float[Array, "chunks windows H c c"],
    Float[Array, "chunks windows H P"],
    Float[Array, "chunks windows H c"],
    Float[Array, "chunks windows H P P"],
    Float[Array, "chunks windows H P c"],
]


class Windows(NamedTuple):
    """Rows and coefficients, [chunks, windows, H, ...]; P matrices make up a state."""

    queries: Float[Array, "chunks windows H c K"]
    keys: Float[Array, "chunks windows H c K"]
    targets: Float[Array, "chunks windows H c V"]
    # what the start answers to queries and to keys
    start: tuple[Float[Array, "chunks windows H c V"], Float[Array, "chunks windows H c V"]] | None
    place: Float[Array, "chunks windows 1 c"]  # 0: gradient at the incoming base, 1: behind a border, 2: at the start
    read_state: Float[Array, "chunks windows H c P"]  # W_t: of the incoming matrices ...
    read_rows: Float[Array, "chunks windows H c c"]  # ... and of the products of keys and gradients
    border_state: Float[Array, "chunks windows H P"]  # the base behind the border
    border_rows: Float[Array, "chunks windows H c"]
    end_state: Float[Array, "chunks windows H P P"]  # the outgoing matrices
    end_rows: Float[Array, "chunks windows H P c"]


def placed(where: Progress) -> Float[Array, "chunks windows 1 c"]:
    """`Windows.place` of all rows."""
    return jnp.where(where.document > 0, 2.0, jnp.where(where.passed > 0, 1.0, 0.0))[:, :, None]


def run_windows(
    windows: Windows,
    gradient: Gradient,
    parameters: tuple[Float[Array, "H V"], ...],
    base: int,
    table: ChunkTable,
    initial_state: Float[Array, "S H P K V"] | None,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H P K V"] | None]:
    """What the memories return for the queries, window by window, and the final matrices.

    Args:
        windows: rows and coefficients.
        gradient: of half a token's loss in its prediction, ``(prediction, target, *parameters)``.
        parameters: of the gradient.
        base: the matrix of the state that is the base of the current mini-batch.
        table: segments of the rows.
        initial_state: P matrices of every segment; None starts from 0 and returns none.
    """

    def window(parameters, state, w):
        grad = lambda prediction: gradient(prediction, w.targets, *(p[:, None] for p in parameters))  # noqa: E731
        from_start = 0.0 if w.start is None else w.start[1]
        predicted = from_start + w.keys @ state[:, base]
        first = grad(predicted)
        moved = jnp.einsum("hp,hpkv->hkv", w.border_state, state)
        moved += jnp.einsum("hc,hck,hcv->hkv", w.border_rows, w.keys, first)
        second, third = grad(from_start + w.keys @ moved), grad(from_start + jnp.zeros_like(predicted))
        place = w.place[..., None]
        u = jnp.where(place == 0, first, jnp.where(place == 1, second, third))
        o = jnp.einsum("hcp,hck,hpkv->hcv", w.read_state, w.queries, state)
        o += (w.read_rows * (w.queries @ jnp.swapaxes(w.keys, -1, -2))) @ u
        weighted = w.end_rows[..., None] * w.keys[:, None]
        state = jnp.einsum("hpr,hrkv->hpkv", w.end_state, state) + jnp.einsum("hpck,hcv->hpkv", weighted, u)
        return state, o if w.start is None else o + w.start[0]

    def chunk(parameters, state, windows):
        return jax.lax.scan(lambda state, w: window(parameters, state, w), state, windows)

    heads, keys, values = windows.keys.shape[2], windows.keys.shape[-1], windows.targets.shape[-1]
    shape = jax.ShapeDtypeStruct((heads, windows.end_state.shape[-1], keys, values), windows.keys.dtype)
    o, final = scan_chunks(chunk, shape, parameters, windows, table, initial_state)
    return from_windows(o), final


def fast_weights_flops(window: int, key_dim: int, value_dim: int, matrices: int) -> tuple[float, float]:
    """FLOPs of `run_windows` for one row and head: forward, and backward, which repeats the forward pass.

    Gradients are taken at three places (the base, the base behind a border, the start) and the
    state has ``matrices`` matrices.
    """
    state = 2.0 * key_dim * value_dim
    per_window = (matrices + matrices**2) * state / window
    forward = (3 + 2 * matrices) * state + per_window + 2.0 * window * (key_dim + value_dim)
    return forward, 3 * forward
