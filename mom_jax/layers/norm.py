"""RMSNorm as a module."""

import jax
from flax import nnx

from mom_jax.layers.linear import param
from mom_jax.ops.norm import rms_norm
from mom_jax.typing import Array, Float


class RMSNorm(nnx.Module):
    """Root-mean-square normalisation over the last axis with a learnt weight [D], in float32."""

    def __init__(self, size: int, eps: float, *, rngs: nnx.Rngs):
        self.weight = param(rngs, jax.nn.initializers.ones, (size,), (None,), decays=False)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        """Normalises; returns ``x.dtype``."""
        return rms_norm(x, self.weight[...], self.eps)
