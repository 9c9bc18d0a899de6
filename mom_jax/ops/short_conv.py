"""Short causal depthwise convolution along each memory's own token sequence."""

import functools

import jax
import jax.numpy as jnp

from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float, Int, Shaped


def short_conv(
    x: Float[Array, "N D"],
    weight: Float[Array, "D W"],
    packing: Packing,
    state: Float[Array, "S W-1 D"] | None = None,
    bias: Float[Array, " D"] | None = None,
    *,
    activate: bool = True,
) -> Float[Array, "N D"]:
    """Causal convolution, then SiLU: ``silu(sum_w weight[:, W-1-w] * x[n-w] + bias)`` inside segments.

    Taps never cross the border of a segment or of a document. With ``state`` the taps of a
    segment's first rows read the inputs that came before, oldest first.

    ``activate=False`` leaves the SiLU out. Sums in float32; returns ``x.dtype``. Padding rows hold
    no meaningful value.
    """
    # the backward pass keeps x alone, not its W shifted copies
    filtered = jax.checkpoint(functools.partial(_filtered, activate=activate))
    return filtered(x, weight, packing, state, bias).astype(x.dtype)


def _filtered(
    x: Float[Array, "N D"],
    weight: Float[Array, "D W"],
    packing: Packing,
    state: Float[Array, "S W-1 D"] | None,
    bias: Float[Array, " D"] | None,
    activate: bool,
) -> Float[Array, "N D"]:
    taps = weight.shape[-1]
    weight = weight.astype(jnp.float32)
    y = x.astype(jnp.float32) * weight[:, -1]
    inside = jnp.ones(x.shape[0], bool)
    for w in range(1, taps):
        if packing.table.reset is not None:
            inside &= ~_shift(packing.table.reset, w - 1)
        keep = (packing.position >= w) & inside
        y += jnp.where(keep[:, None], _shift(x, w).astype(jnp.float32), 0) * weight[:, taps - 1 - w]
    if state is not None and taps > 1:
        y = _add_state_taps(y, weight, packing, state.astype(jnp.float32))
    if bias is not None:
        y += bias.astype(jnp.float32)
    return jax.nn.silu(y) if activate else y


def conv_state(
    x: Float[Array, "N D"], packing: Packing, state: Float[Array, "S history D"]
) -> Float[Array, "S history D"]:
    """The last W-1 inputs of every segment, oldest first, after the rows ``x``.

    Inputs of earlier documents are stored as 0, which is what the next call must see.
    """
    history = state.shape[1]
    place = packing.length[:, None] - history + jnp.arange(history)  # inside the segment; < 0 is in the old state
    rows = packing.start[:, None] + jnp.maximum(place, 0)
    fresh = x.at[rows].get(mode="fill", fill_value=0)
    old = jnp.take_along_axis(state, jnp.clip(place + history, 0, history - 1)[..., None], axis=1)
    kept = jnp.where((place >= 0)[..., None], fresh.astype(state.dtype), old)
    if packing.table.reset is None:
        return kept
    resets = _resets_so_far(packing)
    total = resets.at[packing.start + packing.length].get(mode="clip") - resets.at[packing.start].get(mode="clip")
    before = resets.at[rows + 1].get(mode="clip") - resets.at[packing.start].get(mode="clip")[:, None]
    same_document = jnp.where(place >= 0, before, 0) == total[:, None]
    return jnp.where(same_document[..., None], kept, 0)


def _shift(x: Shaped[Array, "N *rest"], by: int) -> Shaped[Array, "N *rest"]:
    """Moves rows down by ``by``; what wraps around is always masked by the caller."""
    return jnp.roll(x, by, axis=0) if by else x


def _resets_so_far(packing: Packing) -> Int[Array, " N+1"]:
    """Resets in rows before each row, and in all of them."""
    return jnp.pad(jnp.cumsum(packing.table.reset, dtype=jnp.int32), (1, 0))


def _add_state_taps(
    y: Float[Array, "N D"], weight: Float[Array, "D W"], packing: Packing, state: Float[Array, "S W-1 D"]
) -> Float[Array, "N D"]:
    """Adds what the first W-1 rows of every segment read from before the segment."""
    taps = weight.shape[-1]
    for i in range(taps - 1):
        # row i of a segment reads the old input at place i - w < 0, which is state[i - w + taps - 1]
        carried = sum(weight[:, taps - 1 - w] * state[:, i - w + taps - 1] for w in range(i + 1, taps))
        reads = i < packing.length
        if packing.table.reset is not None:
            resets = _resets_so_far(packing)
            reads &= resets.at[packing.start + i + 1].get(mode="clip") == resets.at[packing.start].get(mode="clip")
        row = jnp.where(reads, packing.start + i, y.shape[0])
        y = y.at[row].add(carried, mode="drop")
    return y
