"""Runs a recurrence over chunks on a TPU: the state stays in VMEM from a segment's first chunk to its last.

A recurrence is a ``body`` for one chunk of a block of heads, ``(inputs, state) -> (outputs, state)``
in float32. One kernel runs it over all chunks. The backward pass first runs it again to get the states
that enter the chunks, K*V/C values of the rows' dtype for each row and head (K = V = 256, C = 64:
2 KB in bfloat16), so that they exist for one layer at a time. Then a second kernel runs through the
chunks in reverse, with the gradient of the state in VMEM, and takes the gradient of ``body`` in each.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.arguments import like
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Configs, find
from pallas_kernels.tpu import calls
from pallas_kernels.tpu.calls import Interpret, Operand
from pallas_kernels.tpu.decays import Documents, documents
from pallas_kernels.tpu.layout import Blocks, pack_table, rows_first
from pallas_kernels.tpu.states import load_state, store_state

Arrays = Mapping[str, Any]  # by name: rows [H, N, K] or [H, N, V], gates [H, chunks, 1, C], a bonus [H, 1, K]
Body = Callable[[Arrays, jax.Array, Documents], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """The static arguments of the kernels; hashable, so ``body`` is a function or a frozen dataclass."""

    body: Body  # ({name: [MB, C, K], [MB, 1, C] or [MB, 1, K]}, [MB, K, V], documents) -> [MB, C, V], [MB, K, V]
    heads: tuple[int, int]  # MB, heads of one program, forward and backward
    inside: tuple[int, int]  # as in `apply`, forward and backward
    chunk: int  # C
    flops: int  # of one chunk and head, forward
    interpret: Interpret


def apply(
    body: Body,
    inputs: Arrays,
    chunks: Chunks,
    initial_state: jax.Array | None,
    *,
    configs: Configs,
    inside: tuple[int, int],
    flops: int,
    interpret: Interpret,
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [N, H, V] and final states of a recurrence, with gradients of inputs and initial state.

    Args:
        body: one chunk (module docstring).
        inputs: by name; q and v are among them.
        chunks: of the rows.
        initial_state: [S, H, K, V] float32 or None.
        configs: of ``forward`` and ``backward``: a program gets as many heads as ``block_h`` allows, divide H and fit
            the device's VMEM.
        inside: float32 arrays [C, max(K, V)] that each head needs in VMEM beside the blocks, forward and backward.
        flops: the work of ``body`` for one chunk and head.
        interpret: run on the host.
    """
    q, v = inputs["q"], inputs["v"]
    chunk, target = q.shape[1] // chunks.segment.shape[0], calls.device()
    sizes = f"K={q.shape[-1]}, V={v.shape[-1]}, chunk={chunk} in {q.dtype}"
    calls.check_vmem(max(vmem_bytes(inputs, chunk, 1, inside)), sizes)

    def most(way, name):
        size = max(q.shape[-1], v.shape[-1])
        limit = find(configs[name], target.generation, q.dtype.itemsize, size).block_h or 1
        possible = calls.block_heads(q.shape[0], limit)
        return max(n for n in possible if vmem_bytes(inputs, chunk, n, inside)[way] <= target.vmem)

    heads = most(0, "forward"), most(1, "backward")
    o, final = run(Recurrence(body, heads, inside, chunk, flops, interpret), inputs, chunks, initial_state)
    return rows_first(o), final


def vmem_bytes(inputs: Arrays, chunk: int, heads: int, inside: tuple[int, int]) -> tuple[int, int]:
    """Bytes of VMEM that the forward and the backward kernels need with ``heads`` in a program."""
    q, v = inputs["q"], inputs["v"]
    state = (1, heads, q.shape[-1], v.shape[-1])
    loaded, document = jax.ShapeDtypeStruct(state, jnp.float32), jax.ShapeDtypeStruct((1, 1, chunk), jnp.int32)
    blocks = Blocks(heads, chunk, 1)
    backward = dict(inputs) | {"do": v, "states": jax.ShapeDtypeStruct(state, q.dtype)}
    ways = (inputs, {"o": v}), (backward, {f"d{name}": x for name, x in inputs.items()})
    forward, backward = (
        _vmem(blocks, arrays, _operands(blocks, arrays, outputs, document, loaded, store=True), working)
        for (arrays, outputs), working in zip(ways, inside, strict=True)
    )
    return forward, backward


def _run(
    form: Recurrence, inputs: Arrays, chunks: Chunks, initial_state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [H, N, V] in the dtype of ``inputs["v"]`` and final states, float32 [S, H, K, V].

    Without an initial state [S, H, K, V] every segment starts from 0, and the final states are None.
    """
    results = _launch(form, _forward_kernel, inputs, {"o": inputs["v"]}, chunks, initial_state)
    return results["o"], chunks.where_visited(results.get("stored"), initial_state)


run = jax.custom_vjp(_run, nondiff_argnums=(0,))


def _run_fwd(form, inputs, chunks, initial_state):
    return run(form, inputs, chunks, initial_state), (inputs, chunks, initial_state)


def _run_bwd(form, residuals, cotangents):
    inputs, chunks, initial_state = residuals
    do, dfinal = cotangents
    heads, keys, values = inputs["q"].shape[0], inputs["q"].shape[-1], inputs["v"].shape[-1]
    entering = jax.ShapeDtypeStruct((heads, chunks.segment.shape[0], keys, values), inputs["q"].dtype)
    states = _launch(form, _states_kernel, inputs, {"states": entering}, chunks, initial_state, store=False)["states"]
    arrays = dict(inputs) | {"do": do, "states": states}
    gradients = {f"d{name}": x for name, x in inputs.items()}
    results = _launch(form, _backward_kernel, arrays, gradients, chunks, dfinal, reverse=True)
    return {name: results[f"d{name}"] for name in inputs}, None, chunks.where_visited(results.get("stored"), dfinal)


run.defvjp(_run_fwd, _run_bwd)


# Kernels. What segments load and store is the state, or in reverse its gradient.


def _forward_kernel(table, *, body, blocks, state, document, loaded, o, stored, **inputs):
    entry = load_state(table, blocks, loaded, state)
    outputs, state[...] = body(_values(inputs), state[...], documents(document))
    o[...] = outputs.astype(o.dtype)
    store_state(entry, blocks, stored, state)


def _states_kernel(table, *, body, blocks, state, document, loaded, states, stored, **inputs):
    load_state(table, blocks, loaded, state)
    entering = state[...]
    states[...] = entering.astype(states.dtype)
    _, state[...] = body(_values(inputs), entering, documents(document))


def _backward_kernel(table, *, body, blocks, state, document, loaded, states, do, stored, **refs):
    entry = load_state(table, blocks, loaded, state)
    inside = documents(document)
    inputs = {name: ref for name, ref in refs.items() if f"d{name}" in refs}
    entering = states[...].astype(jnp.float32)
    _, pull = jax.vjp(lambda x, before: body(x, before, inside), _values(inputs), entering)
    gradients, state[...] = pull((do[...].astype(jnp.float32), state[...]))
    for name, gradient in gradients.items():
        ref = refs[f"d{name}"]
        if name == "bonus":
            _accumulate(ref, gradient)
        else:
            ref[...] = gradient.astype(ref.dtype)
    store_state(entry, blocks, stored, state)


def _accumulate(total, gradient):
    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    total[...] += gradient


def _values(refs):
    return {name: ref[...].astype(jnp.float32) for name, ref in refs.items()}


# Calls.


def _launch(form, kernel, arrays, outputs, chunks, loaded, *, store=True, reverse=False):
    """Runs a kernel: ``arrays`` and ``outputs`` by name, and the states that segments load and store."""
    blocks = Blocks(form.heads[reverse], form.chunk, chunks.segment.shape[0], reverse)
    operands, heads = _operands(blocks, arrays, outputs, chunks.by_chunk(), loaded, store), arrays["q"].shape[0]
    return calls.launch(
        functools.partial(kernel, body=form.body, blocks=blocks),
        pack_table(chunks),
        *operands,
        grid=(heads // blocks.heads, blocks.chunks),
        scratch={"state": _state_block(blocks, arrays)},
        # half as much again, since compilers differ in what they spill
        vmem=min(_vmem(blocks, arrays, operands, form.inside[reverse]) * 3 // 2, calls.device().vmem),
        flops=form.flops * heads * blocks.chunks * (3 if reverse else 1),
        interpret=form.interpret,
    )


def _operands(blocks, arrays, shapes, document, loaded, store):
    inputs: dict[str, Operand | None] = {name: Operand(x, _spec(blocks, name, x)) for name, x in arrays.items()}
    outputs: dict[str, Operand | None] = {name: Operand(like(x), _spec(blocks, name, x)) for name, x in shapes.items()}
    inputs["document"] = None if document is None else Operand(document, blocks.documents())
    inputs["loaded"] = outputs["stored"] = None
    if loaded is not None:
        segments, _, *state = loaded.shape
        inputs["loaded"] = Operand(loaded, blocks.loaded(segments, *state))
        after = jax.ShapeDtypeStruct((segments + 1, *loaded.shape[1:]), jnp.float32)
        outputs["stored"] = Operand(after, blocks.stored(*state)) if store else None
    return inputs, outputs


def _spec(blocks, name, x):
    if name == "states":
        return blocks.per_chunk(*x.shape[2:])
    if name.endswith("bonus"):
        return pl.BlockSpec((blocks.heads, *x.shape[1:]), lambda h, c, table: (h, 0, 0))
    return blocks.gates() if x.ndim == 4 else blocks.rows(x.shape[-1])


def _state_block(blocks, arrays):
    return blocks.heads, arrays["q"].shape[-1], arrays["v"].shape[-1]


def _vmem(blocks, arrays, operands, working):
    state = heads, keys, values = _state_block(blocks, arrays)
    inside = 4 * working * heads * blocks.size * max(keys, values, calls.LANES)
    inputs, outputs = operands
    return calls.vmem_bytes({**inputs, **outputs}, state, inside)
