"""What follows the reads: mixing, norm, gate, and projection back to the hidden size.

`HeadNormOutput` is MoM's own; the others belong to rules whose published layer ends in another way.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.ops.mixing import Ending, Reads, mix
from mom_jax.ops.precision import widened
from mom_jax.typing import Array, Float


class Output(nnx.Module):
    """``o_proj(o)``: for rules that norm and gate their reads themselves, and the base of all outputs.

    Attributes:
        scale_free: reads times a number give the same, but for the norm's epsilon.
        heads_axis: the mesh axis that heads are split over, where the mixer runs on each device's own; the caller sums
            over it.

    Args:
        hidden: D.
        num_heads, value_dim: H and V.
    """

    scale_free: bool = False
    heads_axis: str | None = None

    def __init__(self, hidden: int, num_heads: int, value_dim: int, *, rngs: nnx.Rngs):
        self.o_proj = Linear(num_heads * value_dim, hidden, split="row", init=mixer_init, rngs=rngs)

    def __call__(self, reads: Reads, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """From reads and the layer's input to its output, in ``x.dtype``."""
        return self.o_proj(self.mixed(reads, x).reshape(*x.shape[:2], -1))

    def mixed(self, reads: Reads, x: Float[Array, "B T D"]) -> Float[Array, "B T H V"]:
        """What is projected."""
        return mix(reads, self.ending(x))

    def ending(self, x: Float[Array, "B T D"]) -> Ending:
        """What becomes of each head of the mixed reads."""
        return Ending()


class GateOutput(Output):
    """``o_proj(o * silu(g_proj(x)))``, without a norm.

    Args:
        hidden: D.
        num_heads, value_dim: H and V.
    """

    def __init__(self, hidden: int, num_heads: int, value_dim: int, *, rngs: nnx.Rngs):
        self.g_proj = Linear(hidden, num_heads * value_dim, split="column", init=mixer_init, rngs=rngs)
        super().__init__(hidden, num_heads, value_dim, rngs=rngs)

    def ending(self, x: Float[Array, "B T D"]) -> Ending:
        """What becomes of each head of the mixed reads."""
        return Ending(gate=self.g_proj(x, apart=True))


class HeadNormOutput(Output):
    """``o_proj(rms_norm(f(o)) * f'(g_proj(x)))``, normalised within each head.

    Args:
        hidden: D.
        num_heads, value_dim: H and V.
        before: f, before the norm; none if None.
        gate: gate the normalised reads.
        activation: f', of the gate.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        value_dim: int,
        *,
        before: Callable[[Array], Array] | None = None,
        gate: bool,
        activation: Callable[[Array], Array] = jax.nn.silu,
        norm_eps: float,
        rngs: nnx.Rngs,
    ):
        if gate:
            self.g_proj = Linear(hidden, num_heads * value_dim, split="column", init=mixer_init, rngs=rngs)
        self.norm = param(rngs, jax.nn.initializers.ones, (value_dim,), (None,), decays=False)
        super().__init__(hidden, num_heads, value_dim, rngs=rngs)
        self.before, self.gate, self.activation, self.norm_eps = before, gate, activation, norm_eps
        self.scale_free = before is None

    def ending(self, x: Float[Array, "B T D"]) -> Ending:
        """What becomes of each head of the mixed reads."""
        gate = self.g_proj(x, apart=True) if self.gate else None
        return Ending(self.before, self.norm[...], gate, self.activation, self.norm_eps)


class LowRankGateOutput(Output):
    """``o_proj(rms_norm(o) * sigmoid(g_up(g_down(x))))``: the end of Kimi delta attention.

    Args:
        hidden: D.
        num_heads, value_dim: H and V; V is the rank of the gate too.
        norm_eps: of the norm.
    """

    def __init__(self, hidden: int, num_heads: int, value_dim: int, *, norm_eps: float, rngs: nnx.Rngs):
        self.g_down = Linear(hidden, value_dim, split="whole", init=mixer_init, rngs=rngs)
        self.g_up = Linear(value_dim, num_heads * value_dim, split="column", init=mixer_init, bias=True, rngs=rngs)
        self.norm = param(rngs, jax.nn.initializers.ones, (value_dim,), (None,), decays=False)
        super().__init__(hidden, num_heads, value_dim, rngs=rngs)
        self.norm_eps, self.scale_free = norm_eps, True

    def ending(self, x: Float[Array, "B T D"]) -> Ending:
        """What becomes of each head of the mixed reads."""
        return Ending(None, self.norm[...], self.g_up(self.g_down(x, apart=True)), jax.nn.sigmoid, self.norm_eps)


class HiddenNormOutput(Output):
    """``o_proj(rms_norm(f(o)))`` with one norm over the channels of all heads.

    f is an activation (GSA: SiLU, HGRN2: none) or, with ``gate``, ``o * silu(g_proj(x))`` (Mamba2).

    Args:
        hidden: D.
        num_heads, value_dim: H and V.
        activation: before the norm.
        gate: gate the reads before the norm.
        norm_eps: of the norm.
    """

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        value_dim: int,
        *,
        norm_eps: float,
        activation: Callable[[Array], Array] | None = None,
        gate: bool = False,
        rngs: nnx.Rngs,
    ):
        if gate:
            self.g_proj = Linear(hidden, num_heads * value_dim, split="column", init=mixer_init, rngs=rngs)
        self.norm = param(rngs, jax.nn.initializers.ones, (num_heads * value_dim,), ("tensor",), decays=False)
        super().__init__(hidden, num_heads, value_dim, rngs=rngs)
        self.num_heads, self.activation, self.gate, self.norm_eps = num_heads, activation, gate, norm_eps
        self.scale_free = activation is None

    def mixed(self, reads: Reads, x: Float[Array, "B T D"]) -> Float[Array, "B T H V"]:
        """What is projected; under a mesh the norm sums over all devices that hold heads."""
        o = mix(reads)
        y = widened(o)
        if self.activation is not None:
            y = self.activation(y)
        if self.gate:
            y = y * jax.nn.silu(widened(self.g_proj(x, apart=True))).reshape(o.shape)
        squares = jnp.sum(y * y, (-2, -1), keepdims=True)
        if self.heads_axis is not None:
            squares = jax.lax.psum(squares, self.heads_axis)
        y = y * jax.lax.rsqrt(squares / (self.num_heads * o.shape[-1]) + self.norm_eps)
        return (y * self.norm[...].reshape(o.shape[-2:])).astype(o.dtype)
