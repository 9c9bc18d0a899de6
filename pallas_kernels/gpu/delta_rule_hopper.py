"""The gated delta rule's kernels along the chunks of a segment, for Hopper: those of `delta_rule_kernels`, by `hopper`.

Each has the operands and outputs of the Triton kernel in its place; gates, which are no rows that TMA could
copy, are rearranged first. What the equations of `delta_rule` multiply from the left is on the right here.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.gpu.calls import Call
from pallas_kernels.gpu.hopper import TILE, Consumer, State, along, turned

_ENTER, _BETA, _LEAVE = range(3)


def _gates(prepared, beta):
    """[H, 3, N]: the first is negative, since assemblers have mistaken products for zero that are negated."""
    return jnp.stack([-prepared.enter, beta, prepared.leave]).transpose(2, 0, 1)


def forward(q, k, v, beta, prepared, runs, states, outputs, call: Call) -> dict[str, jax.Array]:
    """Outputs, and final states if there are initial ``states``; as `delta_rule_kernels.forward_kernel`."""
    whole = {"k": k, "q": q, "inverse": prepared.inverse, "scores": prepared.scores}

    def body(consumer: Consumer, initial, o, final=None):
        def chunk(n, slot, state):
            missed, out = _read(consumer, slot, state, ("k", "q"))
            enter = consumer.gate(slot, _ENTER)
            residual = (consumer.values("v", slot) + enter * missed).astype(q.dtype)
            out = -call.scale * enter * out
            (error,) = consumer.added(
                lambda x: consumer.product(x, residual, turned(consumer.tile("inverse", slot))), consumer.zero()
            )
            update = consumer.gate(slot, _BETA) * error
            written = (consumer.gate(slot, _LEAVE) * update).astype(q.dtype)
            update = update.astype(q.dtype)

            def write(out, *state):
                consumer.product(out, update, turned(consumer.tile("scores", slot)))
                _write(consumer, slot, state, "k", written)

            out, *state = consumer.added(write, out, *_decayed(consumer, slot, state))
            consumer.put(out, o.at[consumer.rows(n), consumer.head, pl.ds(consumer.column, TILE)], n)
            return state

        state = consumer.along(chunk, _first(consumer, initial, call))
        if final is not None:
            _last(consumer, final, state)

    return along(body, call, runs, whole, {"v": v}, _gates(prepared, beta), outputs, states=states, fill="o")


def borders(k, v, beta, prepared, runs, states, outputs, call: Call) -> dict[str, jax.Array]:
    """As `delta_rule_kernels.borders_kernel`."""

    def body(consumer: Consumer, initial, border, error, place):
        def chunk(n, slot, state):
            pl.when(_counts(consumer))(lambda: _store(place, consumer.first + n, n))
            at = consumer.rows(n), consumer.head, pl.ds(consumer.column, TILE)
            (missed,) = _read(consumer, slot, state, ("k",), _to_border(consumer, border, n, lax.rem(n, 2) == 0))
            residual = (consumer.values("v", slot) + consumer.gate(slot, _ENTER) * missed).astype(k.dtype)
            (found,) = consumer.added(
                lambda x: consumer.product(x, residual, turned(consumer.tile("inverse", slot))), consumer.zero()
            )
            written = (consumer.gate(slot, _LEAVE) * (consumer.gate(slot, _BETA) * found)).astype(k.dtype)
            state = consumer.added(
                lambda *state: _write(consumer, slot, state, "k", written), *_decayed(consumer, slot, state)
            )
            consumer.put(found, error.at[at], n)
            return state

        consumer.along(chunk, _first(consumer, initial, call))

    whole = {"k": k, "inverse": prepared.inverse}
    return along(body, call, runs, whole, {"v": v}, _gates(prepared, beta), outputs, states=states)


def reverse(q, k, beta, prepared, runs, do, states, outputs, call: Call) -> dict[str, jax.Array]:
    """As `delta_rule_kernels.reverse_kernel`; ``states`` are the gradients of the final ones."""
    whole = {"k": k, "q": q, "inverse": prepared.inverse, "scores": prepared.scores}

    def body(consumer: Consumer, dfinal, dborder, dv, dinitial=None):
        def chunk(n, slot, dstate):
            stored = jnp.logical_or(lax.rem(n, 2) == 1, n == consumer.chunks - 1)
            (read,) = _read(consumer, slot, dstate, ("k",), _to_border(consumer, dborder, n, stored))
            (dupdate,) = consumer.added(
                lambda x: consumer.product(x, turned(consumer.tile("do", slot)), consumer.tile("scores", slot)),
                consumer.gate(slot, _LEAVE) * read,
            )
            derror = (consumer.gate(slot, _BETA) * dupdate).astype(k.dtype)
            (dvalue,) = consumer.added(
                lambda x: consumer.product(x, derror, consumer.tile("inverse", slot)), consumer.zero()
            )
            enter = consumer.gate(slot, _ENTER)
            asked = (-call.scale * enter * consumer.values("do", slot)).astype(k.dtype)
            recalled = (enter * dvalue).astype(k.dtype)

            def write(*dstate):
                _write(consumer, slot, dstate, "q", asked)
                _write(consumer, slot, dstate, "k", recalled)

            dstate = consumer.added(write, *_decayed(consumer, slot, dstate))
            consumer.put(dvalue, dv.at[consumer.rows(n), consumer.head, pl.ds(consumer.column, TILE)], n)
            return dstate

        dstate = consumer.along(chunk, _first(consumer, dfinal, call))
        if dinitial is not None:
            _last(consumer, dinitial, dstate)

    gates = _gates(prepared, beta)
    return along(body, call, runs, whole, {"do": do}, gates, outputs, states=states, fill="dv", backwards=True)


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


def _first(consumer: Consumer, states, call: Call) -> State:
    blocks = range(call.keys // TILE)
    if states is None:
        return tuple(consumer.zero() for _ in blocks)
    read = [turned(consumer.state_block(states, consumer.segment, b)) for b in blocks]
    read = [plgpu.load(x, layout=plgpu.Layout.WGMMA_TRANSPOSED, optimized=False) for x in read]
    return tuple(plgpu.layout_cast(x, plgpu.Layout.WGMMA) for x in read)


def _last(consumer: Consumer, states, state: State):
    for b, block in enumerate(state):
        turned(consumer.state_block(states, consumer.segment, b))[...] = plgpu.layout_cast(block, plgpu.Layout.WGMMA_TRANSPOSED)
