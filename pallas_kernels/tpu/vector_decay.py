"""GLA on a TPU: linear attention in which every key channel decays by a gate of its own.

Per head, with a float32 state S [K, V]: ``S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T``, read as
``o_t = scale S_t^T q_t`` (GLA, arXiv 2312.06635, section 4.1), or with a bonus u before the token is
written, ``o_t = scale (S_{t-1} + diag(u) k_t v_t^T)^T q_t`` (RWKV6, arXiv 2404.05892, section 4.2).

Both readings are one: ``S_t^T q_t`` is ``S_{t-1}^T (e^g q_t) + (q_t.k_t) v_t``. Scores between the rows of a
chunk come from halving it recursively (`cuts.channel_decays`), so gates of any strength are exact.

The kernels and what the backward pass keeps: `recurrence`. Products of float32 rows are exact to
float32. With bfloat16 rows, decayed rows, states and scores are rounded to bfloat16 as operands of a
product, while gates, decays, states and sums stay float32.
"""

import dataclasses

import jax
import jax.numpy as jnp

from pallas_kernels.arguments import FLOAT32, TPU, Expected, check
from pallas_kernels.chunks import Chunks
from pallas_kernels.configs import Config, Entry
from pallas_kernels.tpu import recurrence
from pallas_kernels.tpu.calls import Interpret
from pallas_kernels.tpu.cuts import channel_decays, cut_masks, decayed_scores
from pallas_kernels.tpu.layout import heads_first
from pallas_kernels.tpu.products import diagonal, rounded_product

CONFIGS = {
    "forward": [Entry(Config(block_h=2), ("v4",)), Entry(Config(block_h=4))],
    "backward": [Entry(Config(block_h=1), ("v4",)), Entry(Config(block_h=2))],
}
_INSIDE = (16, 128)  # as `recurrence.apply` takes it


@dataclasses.dataclass(frozen=True)
class _Chunk:
    """One chunk: reads of the incoming state, scores between its rows, and what is written."""

    scale: float
    dtype: str

    def __call__(self, x, state, inside):
        q, k, v, g = x["q"], x["k"], x["v"], x["g"]
        decays = channel_decays(g, inside)
        reads, itself = (q, q * k * x["bonus"]) if "bonus" in x else (jnp.exp(g) * q, q * k)
        scores = decayed_scores(reads, k, decays, cut_masks(q.shape[1], inside), self.dtype)
        scores += diagonal(jnp.sum(itself, -1, keepdims=True))
        o = rounded_product(scores, v, "nn", self.dtype)
        o += rounded_product(decays.enter * reads, state, "nn", self.dtype)
        written = rounded_product(decays.leave * k, v, "tn", self.dtype)
        return self.scale * o, decays.across * state + written


def vector_decay(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    g: jax.Array,
    bonus: jax.Array | None,
    chunks: Chunks,
    initial_state: jax.Array | None,
    scale: float,
    *,
    interpret: Interpret = False,
) -> tuple[jax.Array, jax.Array | None]:
    """GLA, linear attention with a decay for each key channel over packed rows (module docstring), with its gradients.

    Args:
        q, k: [N, H, K], float32 or bfloat16; k or v is 0 on padding rows.
        v: [N, H, V], float32 or bfloat16.
        g: [N, H, K] float32 log decay, at most 0; 0 on padding rows.
        bonus: [H, K] float32 weight u of the current token, which reads the state before it; None reads the new state.
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
    others: dict[str, Expected] = {"k": (k, q.shape, TPU.dtypes), "g": (g, q.shape, FLOAT32)}
    if bonus is not None:
        others["bonus"] = (bonus, q.shape[1:], FLOAT32)
    chunk = check(TPU, q, v, chunks, initial_state, others)
    inputs = {name: heads_first(x) for name, x in zip("qkvg", (q, k, v, g), strict=True)}
    if bonus is not None:
        inputs["bonus"] = bonus[:, None]
    keys, values = q.shape[-1], v.shape[-1]
    levels = chunk.bit_length() - 1
    flops = 2 * chunk * (2 * keys * values + chunk * (levels * keys + values))
    body = _Chunk(scale, q.dtype.name)
    return recurrence.apply(
        body, inputs, chunks, initial_state, configs=CONFIGS, inside=_INSIDE, flops=flops, interpret=interpret
    )
