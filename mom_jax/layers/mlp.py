"""The channel mixer of a block."""

import jax
from flax import nnx

from mom_jax.layers.devices import Devices
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
        """Mixes channels; returns ``x.dtype``. On a mesh each device mixes its own tokens, and channels are summed."""
        devices = Devices.of(*x.shape[:2])
        if devices is None:
            return self._mixed(x)
        local = lambda mlp, x: devices.summed(mlp._mixed(x))  # noqa: E731
        return devices.run(self, local, (x,), (devices.tokens,), devices.tokens, x.dtype)

    def _mixed(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        return self.down_proj(jax.nn.silu(self.gate_proj(x)) * self.up_proj(x))
