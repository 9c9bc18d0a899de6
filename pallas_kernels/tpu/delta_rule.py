"""The gated delta rule over packed rows on a TPU (Gated DeltaNet, arXiv 2412.06464, equation 10).

Per head, with a state S of shape [K, V] in float32:

    S_t = exp(g_t) S_{t-1};   S_t += k_t (beta_t (v_t - S_t^T k_t))^T;   o_t = scale * S_t^T q_t

Chunk by chunk (WY form, section 3.3), with the incoming state S and G the running sum of g:

    A_ti = e^(G_t - G_i) k_t.k_i beta_i  (i < t);    E = (I + A)^-1 (V - e^G (K S))
    O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i beta_i)_(i <= t) E;    S' = e^(G_C) S + (e^(G_C - G) beta K)^T E

E has the error of every row, what it finds missing at its turn. A single kernel computes all of this; the state
stays in VMEM from a segment's first chunk to its last. For the backward pass it also writes the inverse, C values
for each row and head (256 bytes at C = 128 in bfloat16, compared with 1536 bytes of inputs at K = V = 256); nothing
else is kept. In the backward pass a second kernel recomputes the states and writes the one that enters each chunk,
K V values for C rows of a head, and E, which spares the third kernel v and two products. That one runs in reverse,
with the state's gradient in VMEM, and writes all gradients.

Two rows that meet the same matrix (q and k; the gradients of what they read) are one operand of twice the rows, so that
the matrix goes into the MXU once.

Matrix products of float32 rows are exact to float32. Rows in bfloat16 are multiplied as they are;
gates, sums and the state in VMEM are float32, and rounded to bfloat16 as operands of a product and in memory. That
gives results within 2^-6 of the largest value for keys in general position. Nearly equal keys that
are written with a strength near 2 carry errors on instead of forgetting them: use float32 rows there.
"""

import functools

import jax

from pallas_kernels.arguments import FLOAT32, TPU, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.remat import keep
from pallas_kernels.tpu import calls
from pallas_kernels.tpu.calls import Interpret
from pallas_kernels.tpu.delta_rule_calls import CONFIGS, KERNELS, Sizes, heads_per_block, run, vmem_bytes
from pallas_kernels.tpu.layout import heads_first, pack_gates, pack_table, rows_first, unpack_gates

__all__ = ["CONFIGS", "delta_rule"]


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
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Gated delta rule over packed rows (module docstring), with its gradients.

    Args:
        q, k: [N, H, K], float32 or bfloat16; keys L2-normalised.
        v: [N, H, V] in the dtype of q and k.
        g: [N, H] float32 log decay, at most 0; 0 on padding rows.
        beta: [N, H] float32 write strength; 0 on padding rows.
        chunks: segments and documents of the rows, in chunks of C = N / chunks rows.
        initial_state: [S, H, K, V] float32; None starts from 0 and returns no state.
        scale: of the output.
        interpret: run on the host, without a TPU.

    Returns:
        Outputs [N, H, V] in ``v.dtype``, and the float32 state of every segment after its last row
        (one without rows keeps its initial state), or None without an initial state.

    Raises:
        Unsupported: a size or dtype that the kernels do not take.
        ValueError: arrays do not fit each other.
    """
    _check(q, k, v, g, beta, chunks, initial_state)
    return _rule(q, k, v, g, beta, chunks, initial_state, scale, interpret)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7, 8))
def _rule(q, k, v, g, beta, chunks, initial_state, scale, interpret):
    return _forward(q, k, v, g, beta, chunks, initial_state, scale, interpret, outputs=("o", "final"))[0]


def _rule_fwd(q, k, v, g, beta, chunks, initial_state, scale, interpret):
    outputs = ("o", "final", "inverse")
    results, inverse = _forward(q, k, v, g, beta, chunks, initial_state, scale, interpret, outputs=outputs)
    return results, (q, k, v, g, beta, chunks, initial_state, keep(inverse))


def _forward(q, k, v, g, beta, chunks, initial, scale, interpret, *, outputs):
    sizes, inputs = _sizes(q, v, chunks, initial), _inputs(q, k, v, g, beta, chunks) | {"initial": initial}
    outputs = [name for name in outputs if name != "final" or initial is not None]
    results = run("forward", sizes, pack_table(chunks), inputs, outputs, interpret, scale=scale)
    final = chunks.where_visited(results.get("final"), initial)
    return (rows_first(results["o"]), final), results.get("inverse")


def _sizes(q, v, chunks, initial):
    count, (rows, heads, keys) = chunks.segment.shape[0], q.shape
    segments = 0 if initial is None else initial.shape[0]
    return Sizes(heads, count, rows // count, keys, v.shape[-1], segments, str(q.dtype))


def _inputs(q, k, v, g, beta, chunks):
    size = q.shape[0] // chunks.segment.shape[0]
    rows = {"q": heads_first(q), "k": heads_first(k), "v": heads_first(v)}
    gates = {"g": pack_gates(g, size), "beta": pack_gates(beta, size)}
    return rows | gates | {"document": chunks.by_chunk()}


def _rule_bwd(scale, interpret, residuals, cotangents):
    q, k, v, g, beta, chunks, initial, inverse = residuals
    do, dfinal = cotangents
    sizes, table = _sizes(q, v, chunks, initial), pack_table(chunks)
    inputs = _inputs(q, k, v, g, beta, chunks) | {"inverse": inverse}
    inputs |= run("borders", sizes, table, inputs | {"initial": initial}, KERNELS["borders"].outputs, interpret)
    inputs |= {"do": heads_first(do), "dfinal": dfinal}
    outputs = [name for name in KERNELS["reverse"].outputs if name != "dinitial" or initial is not None]
    results = run("reverse", sizes, table, inputs, outputs, interpret, scale=scale)
    rows = (rows_first(results[name]) for name in ("dq", "dk", "dv"))
    gates = (unpack_gates(results[name]) for name in ("dg", "dbeta"))
    return *rows, *gates, None, chunks.where_visited(results.get("dinitial"), dfinal)


_rule.defvjp(_rule_fwd, _rule_bwd)


def _check(q, k, v, g, beta, chunks, initial):
    rows, gates = (q.dtype.name,), q.shape[:2]
    others = {"k": (k, q.shape, rows), "v": (v, (*gates, v.shape[-1]), rows)}
    others |= {"g": (g, gates, FLOAT32), "beta": (beta, gates, FLOAT32)}
    chunk = check(TPU, q, v, chunks, initial, others)
    sizes, generation = _sizes(q, v, chunks, initial), calls.device().generation
    need = max(vmem_bytes(name, sizes, heads_per_block(name, sizes, generation)) for name in KERNELS)
    calls.check_vmem(need, f"K={sizes.keys}, V={sizes.values}, chunk={chunk} in {sizes.dtype}")
