"""Runs a recurrence over chunks on a TPU: the state stays in VMEM from a segment's first chunk to its last.

A recurrence is a ``body`` for one chunk of a block of heads, ``(inputs, state) -> (outputs, state)``
in float32. One kernel runs it over all chunks. The backward pass first runs it again for the states
that enter the chunks, K*V/C values of the rows' dtype for each row and head (K = V = 256, C = 64:
2 KB in bfloat16), which so exist for one layer at a time; then a second kernel goes through the
chunks in reverse, with the gradient of the state in VMEM and the gradient of ``body`` in each.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import parts

Arrays = Mapping[str, Any]  # by name: rows [H, N, K] or [H, N, V], gates [H, chunks, 1, C], a bonus [H, 1, K]
Body = Callable[[Mapping[str, jax.Array], jax.Array, parts.Documents], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Recurrence:
    """What the kernels know beside their arrays; hashable, so ``body`` is a function or a frozen dataclass."""

    body: Body  # ({name: [MB, C, K], [MB, 1, C] or [MB, 1, K]}, [MB, K, V], documents) -> [MB, C, V], [MB, K, V]
    heads: int  # MB, heads of one program
    chunk: int  # C
    interpret: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def run(
    form: Recurrence, inputs: Arrays, chunks: Chunks, initial_state: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs [H, N, V] in the dtype of ``inputs["v"]`` and final states, float32 [S, H, K, V].

    Without an initial state [S, H, K, V] every segment starts from 0, and the final states are None.
    """
    results = _call(form, _forward(form, inputs, chunks, initial_state))
    return results["o"], _final(results, chunks, initial_state)


def _run_fwd(form, inputs, chunks, initial_state):
    return run(form, inputs, chunks, initial_state), (inputs, chunks, initial_state)


def _run_bwd(form, residuals, cotangents):
    inputs, chunks, initial_state = residuals
    do, dfinal = cotangents
    states = _call(form, _entering(form, inputs, chunks, initial_state))["states"]
    results = _call(form, _backward(form, inputs, chunks, do, states, dfinal))
    dinputs = {name: results[name] for name in inputs}
    return dinputs, None, _final(results, chunks, dfinal)


run.defvjp(_run_fwd, _run_bwd)


def _final(results, chunks, otherwise):
    """The stored states; segments without a chunk keep ``otherwise``."""
    if otherwise is None:
        return None
    segments = otherwise.shape[0]
    return jnp.where(parts.visited(chunks, segments), results["stored"][:segments], otherwise.astype(jnp.float32))


# Kernels.


def _forward_kernel(body, table, given, results, state):
    """One chunk: results hold the outputs ``o``, or the ``states`` that enter it."""
    entry = table[pl.program_id(1)]
    _load(entry, given.get("loaded"), state)
    entering = state[...]
    o, state[...] = body(_values(given), entering, _documents(given))
    if "states" in results:
        results["states"][...] = entering.astype(results["states"].dtype)
    else:
        results["o"][...] = o.astype(results["o"].dtype)
    _store(entry, results.get("stored"), state)


def _backward_kernel(body, blocks, table, given, results, dstate):
    """One chunk in reverse: gradients of its inputs, from those of its outputs and of the state that leaves it."""
    entry = table[blocks.place(pl.program_id(1))]
    _load(entry, given.get("loaded"), dstate, reverse=True)
    inside = _documents(given)
    entering = given["states"][...].astype(jnp.float32)
    _, pull = jax.vjp(lambda x, state: body(x, state, inside), _values(given), entering)
    gradients, dstate[...] = pull((given["do"][...].astype(jnp.float32), dstate[...]))
    for name, gradient in gradients.items():
        if name == "bonus":
            _accumulate(results[name], gradient)
        else:
            results[name][...] = gradient.astype(results[name].dtype)
    _store(entry, results.get("stored"), dstate, reverse=True)


def _load(entry, loaded, state, reverse=False):
    """The state a segment begins with; unused chunks begin with 0 to stay finite."""
    begins = parts.is_last(entry) if reverse else parts.is_first(entry)

    @pl.when(pl.program_id(1) == 0)
    def _():
        state[...] = jnp.zeros_like(state)

    @pl.when(begins)
    def _():
        state[...] = jnp.zeros_like(state) if loaded is None else loaded[...]


def _store(entry, stored, state, reverse=False):
    if stored is None:
        return

    @pl.when(parts.is_first(entry) if reverse else parts.is_last(entry))
    def _():
        stored[...] = state[...]


def _accumulate(total, gradient):
    @pl.when(pl.program_id(1) == 0)
    def _():
        total[...] = jnp.zeros_like(total)

    total[...] += gradient


_NO_INPUTS = ("document", "loaded", "do", "states")


def _values(given):
    return {name: ref[...].astype(jnp.float32) for name, ref in given.items() if name not in _NO_INPUTS}


def _documents(given):
    return parts.documents(given["document"][...] if "document" in given else None)


# Calls.


@dataclasses.dataclass(frozen=True)
class _Call:
    """One launch: arrays and results by name, each with its blocks."""

    kernel: Callable
    blocks: parts.Blocks
    table: Any
    arrays: dict[str, Any]
    results: dict[str, jax.ShapeDtypeStruct]
    state: tuple[int, ...]  # scratch, float32

    def specs(self, arrays):
        return {name: _spec(self.blocks, name, x) for name, x in arrays.items()}


def _spec(blocks, name, x):
    if name == "loaded":
        return blocks.loaded(x.shape[0], *x.shape[2:])
    if name == "stored":
        return blocks.stored(*x.shape[2:])
    if name == "document":
        return blocks.documents()
    if name == "states":
        return blocks.per_chunk(*x.shape[2:])
    if name == "bonus":
        return pl.BlockSpec((blocks.heads, *x.shape[1:]), lambda h, c, table: (h, 0, 0))
    return blocks.gates() if x.ndim == 4 else blocks.rows(x.shape[-1])


def _given(form, inputs, chunks, loaded, reverse=False):
    """Blocks, the table and what every kernel reads."""
    arrays = dict(inputs)
    if chunks.document is not None:
        arrays["document"] = parts.pack_documents(chunks)
    if loaded is not None:
        arrays["loaded"] = loaded
    blocks = parts.Blocks(form.heads, form.chunk, inputs["q"].shape[1] // form.chunk, reverse)
    return blocks, parts.pack_table(chunks), arrays


def _sizes(inputs):
    heads, rows, keys = inputs["q"].shape
    return heads, rows, keys, inputs["v"].shape[-1]


def _stored(loaded):
    if loaded is None:
        return {}
    return {"stored": jax.ShapeDtypeStruct((loaded.shape[0] + 1, *loaded.shape[1:]), jnp.float32)}


def _forward(form, inputs, chunks, initial_state):
    blocks, table, arrays = _given(form, inputs, chunks, initial_state)
    keys, v = inputs["q"].shape[-1], inputs["v"]
    results = {"o": jax.ShapeDtypeStruct(v.shape, v.dtype)} | _stored(initial_state)
    kernel = functools.partial(_forward_kernel, form.body)
    return _Call(kernel, blocks, table, arrays, results, (form.heads, keys, v.shape[-1]))


def _entering(form, inputs, chunks, initial_state):
    blocks, table, arrays = _given(form, inputs, chunks, initial_state)
    heads, _, keys, values = _sizes(inputs)
    states = jax.ShapeDtypeStruct((heads, blocks.chunks, keys, values), inputs["v"].dtype)
    kernel = functools.partial(_forward_kernel, form.body)
    return _Call(kernel, blocks, table, arrays, {"states": states}, (form.heads, keys, values))


def _backward(form, inputs, chunks, do, states, dfinal):
    blocks, table, arrays = _given(form, inputs, chunks, dfinal, reverse=True)
    results = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in inputs.items()} | _stored(dfinal)
    kernel = functools.partial(_backward_kernel, form.body, blocks)
    arrays |= {"do": do, "states": states}
    return _Call(kernel, blocks, table, arrays, results, (form.heads, *states.shape[2:]))


def _call(form, call):
    inputs = call.arrays["q"]
    return pl.pallas_call(
        call.kernel,
        out_shape=call.results,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(inputs.shape[0] // form.heads, call.blocks.chunks),
            in_specs=[call.specs(call.arrays)],
            out_specs=call.specs(call.results),
            scratch_shapes=[pltpu.VMEM(call.state, jnp.float32)],
        ),
        compiler_params=parts.compiler_params(100 * 2**20),
        interpret=form.interpret,
    )(call.table, call.arrays)
