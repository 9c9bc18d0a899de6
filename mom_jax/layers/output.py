"""What follows the reading of memories: norm, gate and the projection back to the hidden size."""

import jax
from flax import nnx

from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.ops.norm import gated_rms_norm, rms_norm
from mom_jax.typing import Array, Float


class HeadNormOutput(nnx.Module):
    """``o_proj(rms_norm(o) * silu(g_proj(x)))``, normalised within each head.

    Args:
        hidden: D.
        num_heads, value_dim: H and V.
        gate: gate the normalised reads.
        norm_eps: of the norm.
    """

    def __init__(self, hidden: int, num_heads: int, value_dim: int, *, gate: bool, norm_eps: float, rngs: nnx.Rngs):
        values = num_heads * value_dim
        if gate:
            self.g_proj = Linear(hidden, values, split="column", init=mixer_init, rngs=rngs)
        self.norm = param(rngs, jax.nn.initializers.ones, (value_dim,), (None,))
        self.o_proj = Linear(values, hidden, split="row", init=mixer_init, rngs=rngs)
        self.gate, self.norm_eps = gate, norm_eps

    def __call__(self, o: Float[Array, "B T H V"], x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """From mixed reads and the layer's input to its output, in ``x.dtype``."""
        if self.gate:
            o = gated_rms_norm(o, self.g_proj(x).reshape(o.shape), self.norm[...], self.norm_eps)
        else:
            o = rms_norm(o, self.norm[...], self.norm_eps)
        return self.o_proj(o.reshape(*o.shape[:2], -1))
