"""The gated delta rule over packed rows as Triton kernels, forward and backward (arXiv 2412.06464, equation 10).

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1};   S_t += k_t (beta_t (v_t - S_t^T k_t))^T;   o_t = scale * S_t^T q_t

and chunk by chunk (section 3.3 there), with incoming state S and G the running sum of g inside the chunk:

    A_ti = beta_t e^(G_t - G_i) k_t.k_i  (i < t);    R = V - e^G (K S);    U = (I + A)^-1 (beta R)
    O = scale e^G (Q S) + P U;    P_ti = scale e^(G_t - G_i) q_t.k_i  (i <= t);    S' = e^(G_C) S + (e^(G_C - G) K)^T U

One kernel writes the inverse, P and the decays of all chunks; a second one keeps a block of the state in registers and
runs through the chunks of a segment. The backward pass keeps the inputs and what the first kernel wrote: 2 C more
channels for each row and head. It recomputes the states at chunk borders together with R, runs through the chunks in
reverse for the gradients of those states, and then takes every chunk's gradients at once. Nothing is added up in
memory, so results do not depend on the order in which programs run.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import FLOAT32, GPU, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.gpu import delta_rule_kernels as kernels
from pallas_kernels.gpu.launch import float32_precision, for_device, launch


class _Call(NamedTuple):
    """What is no array."""

    scale: float
    interpret: bool
    device: str


def delta_rule(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    beta: jax.Array,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    interpret: bool = False,
    device: str = "sm_90",
) -> tuple[jax.Array, jax.Array | None]:
    """Outputs and final states of the gated delta rule (module docstring), differentiable.

    Args:
        q, k: [N, H, K] rows in float32, bfloat16 or float16; keys L2-normalised.
        v: [N, H, V] in the same dtype.
        g: [N, H] float32 log decay, at most 0; 0 on padding rows.
        beta: [N, H] float32 write strength; 0 on padding rows.
        chunks: segments and documents of the rows.
        initial_state: [S, H, K, V] float32; None starts from 0.
        scale: of the output.
        interpret: run in Triton's interpreter on the host.
        device: the generation to compile and tune for.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, 0 in unused chunks; and the float32 state of every segment after its last row
        (an empty segment keeps its initial state), or None without an initial state.

    Raises:
        Unsupported: sizes or dtypes that the kernels do not run.
        ValueError: shapes that do not fit each other.
    """
    _check(q, k, v, g, beta, chunks, initial_state, device)
    return _delta_rule(q, k, v, g, beta, chunks, initial_state, _Call(float(scale), interpret, device))


def _check(q, k, v, g, beta, chunks, initial_state, device):
    rows, gates = (q.dtype.name,), q.shape[:2]
    others = {"k": (k, q.shape, rows), "v": (v, (*gates, v.shape[-1]), rows)}
    others |= {"g": (g, gates, FLOAT32), "beta": (beta, gates, FLOAT32)}
    check(GPU, q, v, chunks, initial_state, others)
    for_device(kernels.TUNING, device)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _delta_rule(q, k, v, g, beta, chunks, initial_state, call):
    return _forward(q, k, v, g, beta, chunks, initial_state, call)[0]


def _forward(q, k, v, g, beta, chunks, initial_state, call):
    prepared = _prepare(q, k, g, beta, chunks, call)
    o, final = _outputs(q, k, v, beta, prepared, chunks, initial_state, call)
    return (o, final), (q, k, v, g, beta, prepared, chunks, initial_state)


def _backward(call, saved, cotangents):
    q, k, v, g, beta, prepared, chunks, initial_state = saved
    do, dfinal = cotangents
    border, residual = _borders(k, v, beta, prepared, chunks, initial_state, call)
    dborder, dwritten, dinitial = _reverse(q, k, beta, prepared, chunks, do, dfinal, call)
    gradients = _gradients(q, k, g, beta, prepared, chunks, border, residual, do, dborder, dwritten, call)
    return *gradients, None, dinitial


_delta_rule.defvjp(_forward, _backward)


class _Prepared(NamedTuple):
    """What of the chunks does not depend on the state."""

    inverse: jax.Array  # [N, H, C] in the dtype of the rows
    scores: jax.Array  # [N, H, C] in the dtype of the rows
    enter: jax.Array  # [N, H] float32: decay from the chunk's start to a row
    leave: jax.Array  # [N, H] float32: decay from a row to the chunk's end


def _prepare(q, k, g, beta, chunks, call):
    grid, C = _chunk_grid(k, chunks)
    square = jax.ShapeDtypeStruct((*k.shape[:2], C), k.dtype)
    gate = jax.ShapeDtypeStruct(g.shape, g.dtype)
    document = chunks.segment if chunks.document is None else chunks.document
    tuning = _tuning("prepare", k, call)
    return _Prepared(*_launch(
        "prepare", kernels.prepare_kernel, (q, k, g, beta, document), (square, square, gate, gate), grid, call,
        SCALE=call.scale, DOCUMENTS=chunks.document is not None, HEADS=k.shape[1], K=k.shape[2], C=C,
        BK=min(tuning.keys, k.shape[2]),
    ))  # fmt: skip


def _outputs(q, k, v, beta, prepared, chunks, initial_state, call):
    outputs = (jax.ShapeDtypeStruct(v.shape, v.dtype), _like_states(initial_state))
    inputs = (q, k, v, beta, *prepared, *_runs(chunks, initial_state), _or_nothing(initial_state))
    o, final = _along(
        "forward", kernels.forward_kernel, inputs, outputs, k, v, chunks, initial_state, call, tail=1, SCALE=call.scale
    )
    return o, None if initial_state is None else final


def _borders(k, v, beta, prepared, chunks, initial_state, call):
    """The states that enter the chunks, and the residuals."""
    outputs = (_like_borders(k, v, chunks), jax.ShapeDtypeStruct(v.shape, v.dtype))
    decays = (prepared.inverse, prepared.enter, prepared.leave)
    inputs = (k, v, beta, *decays, *_runs(chunks, initial_state), _or_nothing(initial_state))
    return _along("borders", kernels.borders_kernel, inputs, outputs, k, v, chunks, initial_state, call)


def _reverse(q, k, beta, prepared, chunks, do, dfinal, call):
    """Gradients of the states that leave the chunks, of what rows write, and of the initial states."""
    outputs = (_like_borders(k, do, chunks), jax.ShapeDtypeStruct(do.shape, do.dtype), _like_states(dfinal))
    inputs = (q, k, beta, *prepared, *_runs(chunks, dfinal), do, _or_nothing(dfinal))
    *borders, dinitial = _along(
        "reverse", kernels.reverse_kernel, inputs, outputs, k, do, chunks, dfinal, call, SCALE=call.scale
    )
    return *borders, None if dfinal is None else dinitial


def _gradients(q, k, g, beta, prepared, chunks, border, residual, do, dborder, dwritten, call):
    """Gradients of q, k, v, g and beta."""
    grid, C = _chunk_grid(k, chunks)
    document = chunks.segment if chunks.document is None else chunks.document
    inputs = (q, k, g, beta, document, *prepared, _used(chunks)[None], border, residual, do, dborder, dwritten)
    outputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in (q, k, do, g, beta)]
    tuning = _tuning("gradients", k, call)
    return _launch(
        "gradients", kernels.gradients_kernel, inputs, outputs, grid, call,
        SCALE=call.scale, DOCUMENTS=chunks.document is not None, HEADS=k.shape[1], K=k.shape[2], V=do.shape[2], C=C,
        BK=min(tuning.keys, k.shape[2]), BV=min(tuning.values, do.shape[2]),
    )  # fmt: skip


def _along(name, kernel, inputs, outputs, k, v, chunks, states, call, tail=0, **constants):
    """Runs a kernel that keeps a block of the state and passes through the chunks of each run, the unused ones last."""
    (number, heads), C = _chunk_grid(k, chunks)
    tuning = _tuning(name, k, call)
    block = min(tuning.values, v.shape[2])
    runs = tail + (number if states is None else states.shape[0])
    return _launch(
        name, kernel, inputs, outputs, (v.shape[2] // block, heads, runs), call,
        STATE=states is not None, HEADS=heads, K=k.shape[2], V=v.shape[2], C=C,
        BK=min(tuning.keys, k.shape[2]), BV=block, **constants,
    )  # fmt: skip


def _launch(name, kernel, inputs, outputs, grid, call, **constants):
    rows = inputs[0]  # of all kernels, q or k
    tuning = _tuning(name, rows, call)
    return launch(
        kernel, *inputs, grid=grid, outputs=outputs, interpret=call.interpret, device=call.device,
        num_warps=tuning.num_warps, num_stages=tuning.num_stages, flops=_flops(name, rows, **constants),
        PRECISION=float32_precision(call.device, call.interpret), **constants,
    )  # fmt: skip


def _flops(name, rows, *, K, C, V=0, **constants):
    inside, scores, values = kernels.PRODUCTS[name]
    return 2 * rows.shape[0] * rows.shape[1] * (inside * K * V + scores * C * K + values * C * V)


def _chunk_grid(k, chunks):
    number = chunks.segment.shape[0]
    return (number, k.shape[1]), k.shape[0] // number


def _like_borders(k, v, chunks):
    return jax.ShapeDtypeStruct((chunks.segment.shape[0], k.shape[1], k.shape[2], v.shape[2]), k.dtype)


def _like_states(states):
    """Final states; where there are none, the kernel does not touch what it is given."""
    return jax.ShapeDtypeStruct((1,) if states is None else states.shape, jnp.float32)


def _or_nothing(states):
    return jnp.zeros(1, jnp.float32) if states is None else states


def _used(chunks):
    """How many chunks belong to a segment."""
    return jnp.max(jnp.where(chunks.last, jnp.arange(1, chunks.last.shape[0] + 1, dtype=jnp.int32), 0))


def _runs(chunks, states):
    """First chunk and number of chunks of each segment, then those of the unused chunks.

    Without states the number of segments is not known: then every chunk stands for the segment that it begins, if any.
    """
    segment, used = chunks.segment, _used(chunks)
    if states is None:
        first = jnp.arange(segment.shape[0])
        end = jnp.where(chunks.first, jnp.searchsorted(segment, segment, side="right"), first)
    else:
        first = jnp.searchsorted(segment, jnp.arange(states.shape[0]), side="left")
        end = jnp.searchsorted(segment, jnp.arange(states.shape[0]), side="right")
    first, end = jnp.append(first, used), jnp.append(end, segment.shape[0])
    return first.astype(jnp.int32), (end - first).astype(jnp.int32)


def _tuning(name, k, call):
    return kernels.TUNING[call.device][k.dtype.itemsize][name]
