"""Scalar decay on a TPU: linear attention whose state decays by one gate for each head.

Per head, with a float32 state S [K, V]: ``S_t = exp(g_t) S_{t-1} + k_t v_t^T``, ``o_t = scale S_t^T q_t``.
Chunk by chunk (arXiv 2405.21060, section 6) with G the running sum of g:

    O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) V;    S' = e^(G_C) S + (e^(G_C - G) K)^T V

The kernels and what the backward pass keeps: `recurrence`. Products of float32 rows are exact to
float32; bfloat16 rows are multiplied as they are, and states, decayed keys and scores are rounded
to bfloat16 as operands of a product, while gates, states and sums stay float32.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import FLOAT32, TPU, Expected, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.tpu import inside as within
from pallas_kernels.tpu import parts, recurrence

TUNING = recurrence.Tuning(
    heads={"v4": (4, 2), "v5e": (8, 4), "v5p": (8, 4), "v6e": (8, 4), "7x": (8, 4)},
    values=(4, 48),
)


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The equations above for one chunk."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v = x["q"], x["k"], x["v"]
        decays = within.head_decays(x["g"], inside) if "g" in x else within.no_decays(q.shape[1], inside)
        between, enter, leave, across = decays
        scores = between * within.product(q, k, "nt", self.dtype)
        o = within.product(scores, v, "nn", self.dtype)
        o += within.times(within.product(q, state, "nn", self.dtype), enter)
        written = within.product(within.times(k, leave), v, "tn", self.dtype)
        return self.scale * o, within.times(state, across) + written


def scalar_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array | None,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    interpret: parts.Interpret = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Linear attention with a decay for each head over packed rows (module docstring), with its gradients.

    Args:
        q, k: [N, H, K], float32 or bfloat16; k or v is 0 on padding rows.
        v: [N, H, V], float32 or bfloat16.
        g: [N, H] float32 log decay, at most 0; 0 on padding rows. None decays nothing, without gate work.
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
    others: dict[str, Expected] = {"k": (k, q.shape, TPU.dtypes)}
    if g is not None:
        others["g"] = (g, q.shape[:2], FLOAT32)
    chunk = check(TPU, q, v, chunks, initial_state, others)
    inputs = {"q": parts.heads_first(q), "k": parts.heads_first(k), "v": parts.heads_first(v)}
    if g is not None:
        inputs["g"] = parts.pack_gates(g, chunk)
    keys, values = q.shape[-1], v.shape[-1]
    flops = 2 * chunk * (2 * keys * values + chunk * (keys + values))
    body = _Chunk(scale, q.dtype.name)
    return recurrence.apply(body, inputs, chunks, initial_state, flops=flops, tuning=TUNING, interpret=interpret)


def vmem_bytes(keys: int, values: int, dtype: jax.typing.DTypeLike, chunk: int, heads: int = 1) -> tuple[int, int]:
    """Bytes of VMEM of the forward and the backward kernels with ``heads`` heads in a program."""
    shapes = {"q": (keys, dtype), "k": (keys, dtype), "v": (values, dtype)}
    inputs = {name: jax.ShapeDtypeStruct((heads, chunk, n), kind) for name, (n, kind) in shapes.items()}
    inputs["g"] = jax.ShapeDtypeStruct((heads, 1, 1, chunk), jnp.float32)
    return recurrence.vmem_bytes(inputs, chunk, heads, TUNING)
