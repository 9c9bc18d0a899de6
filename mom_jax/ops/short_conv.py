"""Short causal depthwise convolutions along each memory's own token sequence, up to the rows that a recurrence reads.

In XLA the rows of a chunk stand behind the W-1 inputs before it, which the chunk before or the segment's state has.
Then a tap is a slice, and nothing is masked but what documents hide.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.errors import InputError
from mom_jax.ops.dispatch import may_be_kernels, select
from mom_jax.ops.norm import l2_norm_of_heads
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float, Int, Shaped

KERNELS = {name: f"pallas_kernels.{name}.short_conv:short_conv" for name in ("gpu", "tpu")}
STEP_KERNELS = {"gpu": "pallas_kernels.gpu.short_conv_step:short_conv_step"}
Reach = Int[Array, " N"] | None


def short_conv(
    x: Float[Array, "N D"] | Float[Array, "B T D"],
    weight: Float[Array, "D W"],
    packing: Packing,
    state: Float[Array, "S W-1 D"] | None = None,
    bias: Float[Array, " D"] | None = None,
    *,
    activate: bool = True,
    head: int | None = None,
    normalise: bool = False,
    impl: str = "auto",
) -> Float[Array, "N D"]:
    """Causal convolution, then SiLU: ``silu(sum_w weight[:, W-1-w] * x[n-w] + bias)`` inside segments.

    Taps never cross the border of a segment or of a document. Sums in float32.

    Args:
        x: packed rows, or the tokens whose copies they are.
        weight: the last tap is the row's own.
        packing: of the rows.
        state: what the taps of a segment's first rows read: the inputs that came before, oldest first; 0 if None.
        bias: added before the SiLU.
        activate: False leaves the SiLU out.
        head: channels of a head, by which kernels lay rows out; None: there are no heads.
        normalise: each head by its L2 norm at last (`mom_jax.ops.norm.l2_norm`).
        impl: ``auto``, or the kernels of ``tpu`` or ``gpu``; every other name is XLA, as are single steps (C = 1).

    Returns:
        Rows in ``x.dtype``. Padding rows hold no meaningful value, and their cotangents are to be 0.

    Raises:
        InputError: a kernel that cannot run here, or a norm without heads.
    """
    if normalise and head is None:
        raise InputError("head", head, "normalise is each head's norm: say how many channels a head has")
    table, reach = packing.table, _reach(packing, weight.shape[1])
    gathered = (packing.token, packing.row.reshape(-1, packing.row.shape[-1])) if x.ndim == 3 else (None, None)
    name = impl if may_be_kernels(impl) and table.chunk_size > 1 else "xla"

    def by_xla(*_: Any) -> Float[Array, "N D"]:
        rows = pack(x, packing) if x.ndim == 3 else x
        y: Any = _convolved(rows, weight, bias, state, packing, reach, activate)
        return l2_norm_of_heads(y, head) if normalise and head else y

    run = select(name, {"xla": by_xla}, KERNELS)
    flat, options = x.reshape(-1, x.shape[-1]), (activate, head, normalise)
    return run(flat, weight, bias, state, table, reach, *gathered, table.num_segments, *options)


def short_conv_step(
    x: Float[Array, "N D"] | Float[Array, "B 1 D"],
    weight: Float[Array, "D W"],
    packing: Packing,
    before: Float[Array, "N W-1 D"],
    bias: Float[Array, " D"] | None,
    *,
    activate: bool = True,
    head: int | None = None,
    normalise: bool = False,
) -> tuple[Float[Array, "N D"], Float[Array, "N W-1 D"]]:
    """`short_conv` for rows of one token (C = 1), whose inputs before them are given, and what the next token finds."""
    rows = pack(x, packing) if x.ndim == 3 else x
    inputs = jnp.concatenate([before.astype(rows.dtype), rows[:, None]], 1)
    t = _filtered(inputs, weight, bias, None)[:, 0]
    y = (jax.nn.silu(t) if activate else t).astype(x.dtype)
    return l2_norm_of_heads(y, head or y.shape[1]) if normalise else y, inputs[:, 1:]


def conv_state(
    x: Float[Array, "N D"] | Float[Array, "B T D"], packing: Packing, state: Float[Array, "S history D"]
) -> Float[Array, "S history D"]:
    """The last W-1 inputs of every segment, oldest first, after the rows ``x``, given as in `short_conv`.

    Inputs of earlier documents are stored as 0, which is what the next call must see.
    """
    history = state.shape[1]
    place = packing.length[:, None] - history + jnp.arange(history)
    kept = _inputs_at(x, packing, jnp.arange(state.shape[0]), place, state).astype(state.dtype)
    if packing.table.reset is None:
        return kept
    resets = jnp.pad(jnp.cumsum(packing.table.reset, dtype=jnp.int32), (1, 0))  # before each row, and in all
    total = resets.at[packing.start + packing.length].get(mode="clip") - resets.at[packing.start].get(mode="clip")
    rows = packing.start[:, None] + jnp.maximum(place, 0)
    seen = resets.at[rows + 1].get(mode="clip") - resets.at[packing.start].get(mode="clip")[:, None]
    same_document = jnp.where(place >= 0, seen, 0) == total[:, None]
    return jnp.where(same_document[..., None], kept, 0)


def _reach(packing: Packing, taps: int) -> Reach:
    """How many rows before it each row sees, at most W-1: 0 where a document begins. None without documents."""
    reset = packing.table.reset
    if reset is None:
        return None
    reach = jnp.full(reset.shape, taps - 1, jnp.int32)
    for w in reversed(range(taps - 1)):
        begun = jax.lax.pad(reset, False, ((w, -w, 0),)) & (packing.position >= w)
        reach = jnp.where(begun, w, reach)
    return reach


def _inputs_at(
    x: Float[Array, "..."],
    packing: Packing,
    segment: Int[Array, " count"],
    place: Int[Array, "count history"],
    state: Float[Array, "S history D"] | None,
) -> Float[Array, "count history D"]:
    """Inputs at places of segments, each W-1 that follow each other; those before a segment are in its state."""
    rows = packing.start.at[segment].get(mode="clip")[:, None] + jnp.maximum(place, 0)
    if x.ndim == 3:
        x = x.reshape(-1, x.shape[-1])
        rows = packing.token.at[rows].get(mode="fill", fill_value=x.shape[0])
    fresh = x.at[rows].get(mode="fill", fill_value=0)
    old = 0
    if state is not None:
        old = state.at[segment[:, None], place + place.shape[1]].get(mode="fill", fill_value=0)
    return jnp.where((place >= 0)[..., None], fresh, old)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _convolved(
    x: Float[Array, "N D"],
    weight: Float[Array, "D W"],
    bias: Float[Array, " D"] | None,
    state: Float[Array, "S W-1 D"] | None,
    packing: Packing,
    reach: Reach,
    activate: bool,
) -> Float[Array, "N D"]:
    reach_of_rows = None if reach is None else _cut(reach, packing)
    t = _filtered(_with_history(x, packing, state, weight.shape[1] - 1), weight, bias, reach_of_rows)
    return (jax.nn.silu(t) if activate else t).reshape(x.shape).astype(x.dtype)


def _convolved_fwd(*arguments: Any) -> tuple[Float[Array, "N D"], tuple[Any, ...]]:
    return _convolved(*arguments), arguments[:-1]


def _convolved_bwd(activate: bool, residuals: tuple[Any, ...], dy: Float[Array, "N D"]) -> tuple[Any, ...]:
    """Keeps x alone; each tap adds to the gradients of the rows before, some of which the chunk before has."""
    x, weight, bias, state, packing, reach = residuals
    taps, reach_of_rows = weight.shape[1], None if reach is None else _cut(reach, packing)
    inputs, d = _with_history(x, packing, state, taps - 1), _cut(widened(dy), packing)
    if activate:
        d = jax.vjp(jax.nn.silu, _filtered(inputs, weight, bias, reach_of_rows))[1](d)[0]
    products = [_visible(d, reach_of_rows, w) * widened(_tap(inputs, w, taps)) for w in reversed(range(taps))]
    # Over a chunk's rows first: one sum over both axes takes a CPU longer, as does one reduction of all taps.
    dweight = jnp.stack([x.sum(1).sum(0) for x in products], -1).astype(weight.dtype)
    dbias = None if bias is None else jnp.sum(d, (0, 1)).astype(bias.dtype)
    d = d.reshape(x.shape)
    dx = _input_gradient(d, weight, packing, reach).reshape(x.shape).astype(x.dtype)
    dstate = None if state is None else _state_gradient(d, weight, packing, reach).astype(state.dtype)
    return dx, dweight, dbias, dstate, None, None


_convolved.defvjp(_convolved_fwd, _convolved_bwd)


def _cut(x: Shaped[Array, "N *rest"], packing: Packing) -> Shaped[Array, "chunks C *rest"]:
    return x.reshape(-1, packing.table.chunk_size, *x.shape[1:])


def _with_history(
    x: Float[Array, "N D"], packing: Packing, state: Float[Array, "S {history} D"] | None, history: int
) -> Float[Array, "chunks rows D"]:
    """The rows of each chunk behind the W-1 inputs before it."""
    place = packing.position[:: packing.table.chunk_size, None] - history + jnp.arange(history)
    return jnp.concatenate([_inputs_at(x, packing, packing.table.segment, place, state), _cut(x, packing)], 1)


def _tap(inputs: Float[Array, "chunks rows D"], w: int, taps: int) -> Float[Array, "chunks C D"]:
    """What rows see ``w`` rows before them."""
    first = taps - 1 - w
    return inputs[:, first : inputs.shape[1] - w]


def _visible(x: Float[Array, "chunks rows D"], reach: Int[Array, "chunks rows"] | None, w: int) -> Float[Array, "..."]:
    """What belongs to the rows that see as far as ``w`` rows before them, else 0."""
    return x if reach is None or w == 0 else jnp.where((reach >= w)[..., None], x, 0)


def _filtered(
    inputs: Float[Array, "chunks rows D"],
    weight: Float[Array, "D W"],
    bias: Float[Array, " D"] | None,
    reach: Int[Array, "chunks C"] | None,
) -> Float[Array, "chunks C D"]:
    taps = weight.shape[1]
    weight = widened(weight)
    seen = (_visible(widened(_tap(inputs, w, taps)), reach, w) * weight[:, taps - 1 - w] for w in range(taps))
    t = functools.reduce(jnp.add, seen)
    return t if bias is None else t + widened(bias)


def _input_gradient(
    d: Float[Array, "N D"], weight: Float[Array, "D W"], packing: Packing, reach: Reach
) -> Float[Array, "chunks C D"]:
    """The gradient of rows: each chunk's before the W-1 rows of its segment after it."""
    size, history = packing.table.chunk_size, weight.shape[1] - 1
    number = jnp.arange(history)
    after = jnp.arange(size, d.shape[0] + 1, size)[:, None] + number
    same_segment = packing.position.at[after].get(mode="fill", fill_value=0) > number
    d_after = jnp.where(same_segment[..., None], d.at[after].get(mode="fill", fill_value=0), 0)
    reach_of_rows = None
    if reach is not None:
        reach_of_rows = jnp.concatenate([_cut(reach, packing), reach.at[after].get(mode="fill", fill_value=0)], 1)
    d = jnp.concatenate([_cut(d, packing), d_after], 1)
    weight = widened(weight)
    seen = (_visible(d, reach_of_rows, w)[:, w : w + size] * weight[:, history - w] for w in range(history + 1))
    return functools.reduce(jnp.add, seen)


def _state_gradient(
    d: Float[Array, "N D"], weight: Float[Array, "D W"], packing: Packing, reach: Reach
) -> Float[Array, "S W-1 D"]:
    """The gradient of what came before each segment, of which row n sees places n - w < 0."""
    history = weight.shape[1] - 1
    number = jnp.arange(history)
    rows = packing.start[:, None] + number
    d = jnp.where((number < packing.length[:, None])[..., None], d.at[rows].get(mode="fill", fill_value=0), 0)
    reach_of_rows = None if reach is None else reach.at[rows].get(mode="fill", fill_value=0)
    weight = widened(weight)
    parts = [_visible(d, reach_of_rows, w)[:, :w] * weight[:, history - w] for w in range(1, history + 1)]
    return sum((jnp.pad(x, ((0, 0), (history - x.shape[1], 0), (0, 0))) for x in parts), jnp.zeros_like(d))
