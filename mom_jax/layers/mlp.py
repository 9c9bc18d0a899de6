"""The channel mixer of a block."""

import jax
from flax import nnx

from mom_jax.layers.linear import Linear
from mom_jax.typing import Array, Float


class SwiGLU(nnx.Module):
    """``down(silu(gate(x)) * up(x))`` (arXiv 2002.05202)."""

    def __init__(self, hidden: int, width: int, initializer_range: float, *, rngs: nnx.Rngs):
        init = jax.nn.initializers.normal(initializer_range)
        self.gate_proj = Linear(hidden, width, split="column", init=init, rngs=rngs)
        self.up_proj = Linear(hidden, width, split="column", init=init, rngs=rngs)
        self.down_proj = Linear(width, hidden, split="row", init=init, rngs=rngs)

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """Mixes channels; returns ``x.dtype``."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))
