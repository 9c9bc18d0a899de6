"""Simple GLA on a TPU: linear attention whose state decays by one gate for each head.

Per head, with a float32 state S [K, V]: ``S_t = exp(g_t) S_{t-1} + k_t v_t^T``, ``o_t = scale S_t^T q_t``.
Chunk by chunk (arXiv 2405.21060, section 6) with G the running sum of g:

    O = e^G (Q S) + (e^(G_t - G_i) q_t.k_i)_(i <= t) V;    S' = e^(G_C) S + (e^(G_C - G) K)^T V

The kernels and what the backward pass keeps: `recurrence`. Products of float32 rows are exact to
float32; bfloat16 rows are multiplied as they are, and states, decayed keys and scores are rounded
to bfloat16 as operands of a product, while gates, states and sums stay float32.
"""

import dataclasses

import jax

from pallas_kernels.arguments import FLOAT32, TPU, Expected, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Config, Entry
from pallas_kernels.tpu import recurrence
from pallas_kernels.tpu.calls import Interpret
from pallas_kernels.tpu.decays import head_decays, no_decays, times
from pallas_kernels.tpu.layout import heads_first, pack_gates
from pallas_kernels.tpu.products import rounded_product

CONFIGS = {
    "forward": [Entry(Config(block_h=4), ("v4",)), Entry(Config(block_h=8))],
    "backward": [Entry(Config(block_h=2), ("v4",)), Entry(Config(block_h=4))],
}
_INSIDE = (4, 48)  # as `recurrence.apply` takes it


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """The equations above for one chunk."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v = x["q"], x["k"], x["v"]
        decays = head_decays(x["g"], inside) if "g" in x else no_decays(q.shape[1], inside)
        between, enter, leave, across = decays
        scores = between * rounded_product(q, k, "nt", self.dtype)
        o = rounded_product(scores, v, "nn", self.dtype)
        o += times(rounded_product(q, state, "nn", self.dtype), enter)
        written = rounded_product(times(k, leave), v, "tn", self.dtype)
        return self.scale * o, times(state, across) + written


def scalar_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array | None,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array | None]:
    """Simple GLA, linear attention with a decay for each head over packed rows (module docstring), with its gradients.

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
    inputs = {"q": heads_first(q), "k": heads_first(k), "v": heads_first(v)}
    if g is not None:
        inputs["g"] = pack_gates(g, chunk)
    keys, values = q.shape[-1], v.shape[-1]
    flops = 2 * chunk * (2 * keys * values + chunk * (keys + values))
    body = _Chunk(scale, q.dtype.name)
    return recurrence.apply(
        body, inputs, chunks, initial_state, configs=CONFIGS, inside=_INSIDE, flops=flops, interpret=interpret
    )
