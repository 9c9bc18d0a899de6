"""The gated delta rule on Hopper: what runs along the chunks of a segment by Mosaic GPU (`hopper`), the rest by Triton.

The kernels have the operands and outputs of those in `delta_rule_kernels`; gates, which are no rows that TMA could
copy, are rearranged first. What the equations of `delta_rule` multiply from the left is on the right here.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.arguments import like
from pallas_kernels.gpu import delta_rule as by_triton
from pallas_kernels.gpu.delta_rule import Along, like_borders
from pallas_kernels.gpu.hopper import TILE, Consumer, State, along, check, turned

_ENTER, _BETA, _LEAVE, _ASK = range(4)


def _gates(prepared, beta, call):
    """[H, 4, N]. The first is negative, so that no product needs to be: an assembler took a negated one for 0. The last
    is the first again, lest a consumer keeps it in registers."""
    return jnp.stack([-prepared.enter, beta, prepared.leave, call.scale * prepared.enter]).transpose(2, 0, 1)


def _outputs(q, k, v, beta, prepared, chunks, initial_state, call):
    outputs = {"o": like(v)} | ({} if initial_state is None else {"final": like(initial_state)})
    made = along(
        _outputs_of_segment, call, chunks.runs,
        whole={"k": k, "q": q, "inverse": prepared.inverse, "scores": prepared.scores}, own={"v": v},
        gates=_gates(prepared, beta, call), outputs=outputs, states=initial_state, fill="o",
    )  # fmt: skip
    return made["o"], made.get("final")


def _outputs_of_segment(consumer: Consumer, initial, o, final=None):
    """Outputs, and the last state if there is a first."""

    def chunk(n, slot, state):
        missed, out = _read(consumer, slot, state, ("k", "q"))
        residual = (consumer.values("v", slot) + consumer.gate(slot, _ENTER) * missed).astype(consumer.dtype)
        update = consumer.gate(slot, _BETA) * _error(consumer, slot, residual)
        written = (consumer.gate(slot, _LEAVE) * update).astype(consumer.dtype)
        update, out = update.astype(consumer.dtype), consumer.gate(slot, _ASK) * out

        def write(out, *state):
            consumer.product(out, update, turned(consumer.tile("scores", slot)))
            _write(consumer, slot, state, "k", written)

        out, *state = consumer.added(write, out, *_decayed(consumer, slot, state))
        consumer.put(out, consumer.part(o, n), n)
        return state

    state = consumer.along(chunk, _first(consumer, initial))
    if final is not None:
        _last(consumer, final, state)


def _borders(k, v, beta, prepared, chunks, initial_state, call):
    outputs = {"border": like_borders(k, chunks, call), "error": like(v), "place": like(chunks.segment)}
    made = along(
        _borders_of_segment, call, chunks.runs, whole={"k": k, "inverse": prepared.inverse}, own={"v": v},
        gates=_gates(prepared, beta, call), outputs=outputs, states=initial_state,
    )  # fmt: skip
    return tuple(made.values())


def _borders_of_segment(consumer: Consumer, initial, border, error, place):
    """States that enter pairs of chunks, errors, and each chunk's number."""

    def chunk(n, slot, state):
        @pl.when(jnp.logical_and(consumer.head == 0, consumer.column == 0))
        def _():
            place[consumer.first + n] = n

        (missed,) = _read(consumer, slot, state, ("k",), _to_border(consumer, border, n, lax.rem(n, 2) == 0))
        residual = (consumer.values("v", slot) + consumer.gate(slot, _ENTER) * missed).astype(consumer.dtype)
        found = _error(consumer, slot, residual)
        written = (consumer.gate(slot, _LEAVE) * (consumer.gate(slot, _BETA) * found)).astype(consumer.dtype)
        state = consumer.added(
            lambda *state: _write(consumer, slot, state, "k", written), *_decayed(consumer, slot, state)
        )
        consumer.put(found, consumer.part(error, n), n)
        return state

    consumer.along(chunk, _first(consumer, initial))


def _reverse(q, k, beta, prepared, chunks, do, dfinal, call):
    outputs = {"dborder": like_borders(k, chunks, call), "dv": like(do)}
    made = along(
        _reverse_of_segment, call, chunks.runs,
        whole={"k": k, "q": q, "inverse": prepared.inverse, "scores": prepared.scores}, own={"do": do},
        gates=_gates(prepared, beta, call), outputs=outputs | ({} if dfinal is None else {"dinitial": like(dfinal)}),
        states=dfinal, fill="dv", backwards=True,
    )  # fmt: skip
    return made["dborder"], made["dv"], made.get("dinitial")


def _reverse_of_segment(consumer: Consumer, dfinal, dborder, dv, dinitial=None):
    """Gradients of the states that leave pairs of chunks, of values, and of the first state if there is one."""

    def chunk(n, slot, dstate):
        leaves = jnp.logical_or(lax.rem(n, 2) == 1, n == consumer.chunks - 1)
        (read,) = _read(consumer, slot, dstate, ("k",), _to_border(consumer, dborder, n, leaves))
        (dupdate,) = consumer.added(
            lambda x: consumer.product(x, turned(consumer.tile("do", slot)), consumer.tile("scores", slot)),
            consumer.gate(slot, _LEAVE) * read,
        )
        derror = (consumer.gate(slot, _BETA) * dupdate).astype(consumer.dtype)
        (dvalue,) = consumer.added(
            lambda x: consumer.product(x, derror, consumer.tile("inverse", slot)), consumer.zero()
        )
        asked = (consumer.gate(slot, _ASK) * consumer.values("do", slot)).astype(consumer.dtype)
        recalled = (consumer.gate(slot, _ENTER) * dvalue).astype(consumer.dtype)

        def write(*dstate):
            _write(consumer, slot, dstate, "q", asked)
            _write(consumer, slot, dstate, "k", recalled)

        dstate = consumer.added(write, *_decayed(consumer, slot, dstate))
        consumer.put(dvalue, consumer.part(dv, n), n)
        return dstate

    dstate = consumer.along(chunk, _first(consumer, dfinal))
    if dinitial is not None:
        _last(consumer, dinitial, dstate)


def _error(consumer: Consumer, slot, residual):
    """The inverse applied to a residual, transposed."""
    start = lambda x: consumer.product(x, residual, turned(consumer.tile("inverse", slot)))  # noqa: E731
    return consumer.added(start, consumer.zero())[0]


def _read(consumer: Consumer, slot, state: State, names, rounded: Callable[[int, jax.Array], None] | None = None):
    """What the state answers to rows of the chunk, transposed; its blocks, once rounded, are handed on."""

    def start(*answers):
        for b, block in enumerate(state):
            half = block.astype(consumer.dtype)
            for answer, name in zip(answers, names, strict=True):
                consumer.product(answer, half, turned(consumer.tile(name, slot, b)))
            plgpu.wgmma_wait(0)  # no more than one rounded block in registers
            if rounded is not None:
                rounded(b, half)

    return consumer.added(start, *[consumer.zero() for _ in names])


def _write(consumer: Consumer, slot, accumulators, name, values):
    for b, accumulator in enumerate(accumulators):
        consumer.product(accumulator, values, consumer.tile(name, slot, b))


def _decayed(consumer: Consumer, slot, state: State):
    across = -consumer.gates[slot, _ENTER, TILE - 1]
    return [across * block for block in state]


def _to_border(consumer: Consumer, borders, n, there):
    """Writes the blocks of the state at a border of the n-th chunk's pair, if ``there``."""
    pair = lax.div(consumer.first + consumer.segment, 2) + lax.div(n, 2)

    def rounded(b, block):
        pl.when(there)(lambda: consumer.put(block, consumer.state_block(borders, pair, b), n + b))

    return rounded


def _first(consumer: Consumer, states) -> State:
    """The state that a segment begins with; 0 without ``states`` [S, H, K, V]."""
    blocks = range(consumer.blocks)
    if states is None:
        return tuple(consumer.zero() for _ in blocks)
    read = [turned(consumer.state_block(states, consumer.segment, b)) for b in blocks]
    read = [plgpu.load(x, layout=plgpu.Layout.WGMMA_TRANSPOSED, optimized=False) for x in read]
    return tuple(plgpu.layout_cast(x, plgpu.Layout.WGMMA) for x in read)


def _last(consumer: Consumer, states, state: State):
    for b, block in enumerate(state):
        turned(consumer.state_block(states, consumer.segment, b))[...] = plgpu.layout_cast(
            block, plgpu.Layout.WGMMA_TRANSPOSED
        )


# As `delta_rule.delta_rule`, for what `hopper.check` takes. Interpreted, reads and writes are also checked for races.
delta_rule = functools.partial(by_triton.delta_rule, along=Along(_outputs, _borders, _reverse, check))
