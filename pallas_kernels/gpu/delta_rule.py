"""The gated delta rule over packed rows as Triton kernels, forward and backward (arXiv 2412.06464, equation 10).

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1};   S_t += k_t (beta_t (v_t - S_t^T k_t))^T;   o_t = scale * S_t^T q_t

and chunk by chunk (section 3.3 there), with incoming state S and G the running sum of g inside the chunk:

    A_ti = e^(G_t - G_i) k_t.k_i beta_i  (i < t);    R = V - e^G (K S);    E = (I + A)^-1 R;    U = beta E
    O = scale e^G (Q S) + P U;    P_ti = scale e^(G_t - G_i) q_t.k_i  (i <= t);    S' = e^(G_C) S + (e^(G_C - G) K)^T U

E is what a row finds missing when its turn comes. It is kept instead of U because it also gives the gradient of a beta
of 0. One kernel writes the inverse, P and the decays of all chunks; a second one keeps a block of the state in
registers and runs through the chunks of a segment. The backward pass keeps the inputs and what the first kernel wrote:
2 C more channels for each row and head. It recomputes E, and the state at every second border of chunks; runs through
the chunks in reverse for dv = (I + A)^-T (beta dU) and the gradients of those states; and then takes every chunk's
gradients at once: with E and dv known, two chunks are a longer one of linear attention, in which q reads for dO and k
for -dv. Nothing is accumulated in memory, so results do not depend on the order in which programs run.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import FLOAT32, Expected, like
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import AMD, HOPPER, NVIDIA, Config, Entry
from pallas_kernels.gpu.calls import Call, checked_call
from pallas_kernels.gpu.delta_rule_gradients import gradients_kernel
from pallas_kernels.gpu.delta_rule_kernels import borders_kernel, forward_kernel, prepare_kernel, reverse_kernel
from pallas_kernels.remat import keep

# Of the kernels that keep a block of the state and run through the chunks of a segment. At K = V = 256 and C = 64 no
# kernel of half-precision rows spills registers on sm_90, and all fit in shared memory. Half the blocks of values make
# half the programs that read the same q and k. Float32 kernels spill on NVIDIA whatever the blocks: tf32 parts of
# operands fill registers. There is none for heads above 128 on sm_80, where XLA moves less than what they spill.
_ALONG = [
    Entry(Config(block_k=64, block_v=16, num_warps=4, num_stages=2), ("sm_80",), itemsize=4, size=128),
    Entry(Config(block_k=64, block_v=16, num_warps=4, num_stages=2), HOPPER, itemsize=4),
    Entry(Config(block_k=64, block_v=16, num_warps=4, num_stages=1), AMD, itemsize=4),
    Entry(Config(block_k=256, block_v=64, num_warps=8, num_stages=2), ("sm_90",), itemsize=2),
    Entry(Config(block_k=256, block_v=32, num_warps=4, num_stages=2), ("sm_100",), itemsize=2),
    Entry(Config(block_k=256, block_v=32, num_warps=4, num_stages=1), AMD, itemsize=2),
]
CONFIGS = {
    "prepare": [
        Entry(Config(block_k=32, num_warps=4, num_stages=2), NVIDIA, itemsize=4),
        Entry(Config(block_k=64, num_warps=4, num_stages=2), NVIDIA, itemsize=2),
        Entry(Config(block_k=64, num_warps=4, num_stages=1), AMD),
    ],
    "forward": [
        Entry(Config(block_k=64, block_v=16, num_warps=8, num_stages=2), ("sm_80",), itemsize=2),
        *_ALONG,
    ],
    "borders": [
        Entry(Config(block_k=64, block_v=32, num_warps=8, num_stages=2), ("sm_80",), itemsize=2),
        *_ALONG,
    ],
    "reverse": [
        Entry(Config(block_k=64, block_v=32, num_warps=8, num_stages=1), ("sm_80",), itemsize=2),
        *_ALONG,
    ],
    "gradients": [
        Entry(Config(block_k=16, block_v=16, num_warps=8, num_stages=1), NVIDIA, itemsize=4),
        Entry(Config(block_k=32, block_v=32, num_warps=4, num_stages=1), AMD, itemsize=4),
        Entry(Config(block_k=16, block_v=16, num_warps=8, num_stages=2), ("sm_80",), itemsize=2),
        Entry(Config(block_k=32, block_v=32, num_warps=8, num_stages=2), ("sm_90",), itemsize=2, size=128),
        Entry(Config(block_k=64, block_v=32, num_warps=8, num_stages=2), ("sm_90",), itemsize=2),
        Entry(Config(block_k=32, block_v=32, num_warps=8, num_stages=2), ("sm_100",), itemsize=2),
        Entry(Config(block_k=64, block_v=32, num_warps=4, num_stages=1), AMD, itemsize=2),
    ],
}
# Matrix products of a chunk and head by kernel: of C K V, C C K and C C V multiplications.
_PRODUCTS = {
    "prepare": (0, 2, 0),
    "forward": (3, 0, 2),
    "borders": (2, 0, 1),
    "reverse": (3, 0, 2),
    "gradients": (3, 6, 4),
}


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
    device: str = "sm_90",
    interpret: bool = False,
    along: "Along | None" = None,
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
        device: the generation to compile for, among those of `pallas_kernels.arguments.GPU`.
        interpret: run in the interpreter on the host.
        along: kernels of another compiler for what runs along segments; Triton's if None.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, 0 in unused chunks; and the float32 state of every segment after its last row
        (an empty segment keeps its initial state), or None without an initial state.

    Raises:
        Unsupported: sizes or dtypes that the kernels do not run.
        ValueError: shapes that do not fit each other.
    """
    gates: dict[str, Expected] = {name: (x, q.shape[:2], FLOAT32) for name, x in (("g", g), ("beta", beta))}
    call = checked_call(q, k, v, gates, chunks, initial_state, scale, device, interpret)
    along = along or Along(_outputs, _borders, _reverse)
    along.check(call, chunks)
    return _delta_rule(q, k, v, g, beta, chunks, initial_state, call, along)


class Along(NamedTuple):
    """What runs along the chunks of a segment, by whichever compiler."""

    outputs: Callable[..., Sequence[Any]]  # of values, and final states or None
    borders: Callable[..., Sequence[jax.Array]]
    reverse: Callable[..., Sequence[Any]]  # gradients of borders and values, and of initial states or None
    check: Callable[[Call, Chunks], None] = lambda call, chunks: None  # raises `Unsupported` for what they do not take


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _delta_rule(q, k, v, g, beta, chunks, initial_state, call, along):
    return _forward(q, k, v, g, beta, chunks, initial_state, call, along)[0]


def _forward(q, k, v, g, beta, chunks, initial_state, call, along):
    prepared = keep(_prepare(q, k, g, beta, chunks, call))
    o, final = along.outputs(q, k, v, beta, prepared, chunks, initial_state, call)
    return (o, final), (q, k, v, g, beta, prepared, chunks, initial_state)


def _backward(call, along, saved, cotangents):
    q, k, v, g, beta, prepared, chunks, initial_state = saved
    do, dfinal = cotangents
    border, error, place = along.borders(k, v, beta, prepared, chunks, initial_state, call)
    dborder, dv, dinitial = along.reverse(q, k, beta, prepared, chunks, do, dfinal, call)
    dq, dk, dg, dbeta = _gradients(q, k, g, beta, prepared, chunks, place, border, error, do, dborder, dv, call)
    return dq, dk, dv, dg, dbeta, None, dinitial


_delta_rule.defvjp(_forward, _backward)


class Prepared(NamedTuple):
    """The part of all chunks that does not depend on the state."""

    inverse: jax.Array  # (I + A)^-1, [N, H, C] in the dtype of the rows
    scores: jax.Array  # P, [N, H, C] in the dtype of the rows
    enter: jax.Array  # [N, H] float32: decay from the chunk's start to a row
    leave: jax.Array  # [N, H] float32: decay from a row to the chunk's end


def _prepare(q, k, g, beta, chunks, call):
    square = jax.ShapeDtypeStruct((*k.shape[:2], call.rows), k.dtype)
    inputs = (q, k, g, beta, chunks.document)
    outputs = (square, square, like(g), like(g))
    return Prepared(*_each("prepare", prepare_kernel, inputs, outputs, call))


def _outputs(q, k, v, beta, prepared, chunks, initial_state, call):
    inputs, outputs = (q, k, v, beta, *prepared, chunks.runs), (like(v), like(initial_state))
    return _along("forward", forward_kernel, inputs, outputs, initial_state, chunks, call, tail=1)


def _borders(k, v, beta, prepared, chunks, initial_state, call):
    """The states that enter the pairs of chunks, the errors, and each chunk's number in its segment."""
    decays = (prepared.inverse, prepared.enter, prepared.leave)
    inputs = (k, v, beta, *decays, chunks.runs)
    outputs = (like_borders(k, chunks, call), like(v), like(chunks.segment))
    return _along("borders", borders_kernel, inputs, outputs, initial_state, chunks, call)


def _reverse(q, k, beta, prepared, chunks, do, dfinal, call):
    """Gradients of the states that leave the pairs of chunks, of values, and of the initial states.

    That of values is 0 in unused chunks, for which the kernel has no program.
    """
    inputs, outputs = (q, k, beta, *prepared, chunks.runs, do), (like_borders(k, chunks, call), like(do), like(dfinal))
    return _along("reverse", reverse_kernel, inputs, outputs, dfinal, chunks, call, tail=1)


def _gradients(q, k, g, beta, prepared, chunks, place, border, error, do, dborder, dv, call):
    """Gradients of q, k, g and beta."""
    inputs = (q, k, g, beta, chunks.document, *prepared[1:], chunks.segment, place, border, error, do, dborder, dv)
    outputs = [*(like(x) for x in (q, k, g, beta)), jax.ShapeDtypeStruct((call.chunks, call.heads), jnp.float32)]
    segments = chunks.runs.shape[0] - 1
    dq, dk, dg, dbeta, beyond = _each("gradients", gradients_kernel, inputs, outputs, call, segments=segments)
    return dq, dk, dg + jnp.repeat(beyond, call.rows, axis=0), dbeta


def _each(name, kernel, inputs, outputs, call, **scalars):
    """Runs a kernel that has a program for each chunk and head."""
    config, grid = call.config(CONFIGS, name), {"chunks": call.chunks, "heads": call.heads}
    return call.run(kernel, config, *inputs, grid=grid, outputs=outputs, flops=_flops(name, call), **scalars)


def _along(name, kernel, inputs, outputs, states, chunks, call, tail=0):
    """Runs a kernel that keeps a block of the state and passes through the chunks of each run, the unused ones last.

    ``states``, with which segments begin, are its last input.
    """
    config, segments = call.config(CONFIGS, name), chunks.runs.shape[0] - 1
    grid = {"blocks": call.values // config.block_v, "heads": call.heads, "segments": segments + tail}
    return call.run(
        kernel, config, *inputs, states, grid=grid, outputs=outputs, flops=_flops(name, call), STATE=states is not None
    )


def _flops(name, call):
    (inside, scores, values), C, K, V = _PRODUCTS[name], call.rows, call.keys, call.values
    return 2 * call.chunks * C * call.heads * (inside * K * V + scores * C * K + values * C * V)


def like_borders(k: jax.Array, chunks: Chunks, call: Call) -> jax.ShapeDtypeStruct:
    """States at the borders of the pairs of chunks."""
    pairs = (call.chunks + chunks.runs.shape[0] - 1) // 2
    return jax.ShapeDtypeStruct((pairs, call.heads, call.keys, call.values), k.dtype)
