"""What follows the reads: mixing, norm, gate, and projection back to the hidden size.

`Output` is how MoM's layer and most others end; the rest belong to rules whose published layer ends in another way.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.ops.mixing import Ending, Reads, mix
from mom_jax.ops.precision import widened
from mom_jax.typing import Array, Float


class Output(nnx.Module):
    """``o_proj(rms_norm(f(o)) * f'(g_proj(x)))``, normalised within each head; all but ``o_proj`` is optional.

    Attributes:
        scale_free: reads times a number give the same, but for the norm's epsilon.
        heads_axis: the mesh axis that heads are split over, where the mixer runs on each device's own; the caller sums
            over it.
        of_all_heads: the norm is one over the channels of all heads.

    Args:
        hidden: D.
        num_heads, value_dim: H and V.
        before: f, before the norm; none if None.
        gate: gate what is read.
        activation: f', of the gate.
        norm_eps: of the norm; None: there is none.
    """

    heads_axis: str | None = None
    of_all_heads: bool = False

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        value_dim: int,
        *,
        before: Callable[[Array], Array] | None = None,
        gate: bool = False,
        activation: Callable[[Array], Array] = jax.nn.silu,
        norm_eps: float | None = None,
        rngs: nnx.Rngs,
    ):
        if gate:
            self.g_proj = Linear(hidden, num_heads * value_dim, split="column", init=mixer_init, rngs=rngs)
        if norm_eps is not None:
            channels, axis = (num_heads * value_dim, "tensor") if self.of_all_heads else (value_dim, None)
            self.norm = param(rngs, jax.nn.initializers.ones, (channels,), (axis,), decays=False)
        self.o_proj = Linear(num_heads * value_dim, hidden, split="row", init=mixer_init, rngs=rngs)
        self.num_heads, self.norm_eps = num_heads, norm_eps
        self.before, self.gate, self.activation = before, gate, activation
        self.scale_free = norm_eps is not None and before is None

    def __call__(self, reads: Reads, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """From reads and the layer's input to its output, in ``x.dtype``."""
        return self.o_proj(self.mixed(reads, x).reshape(*x.shape[:2], -1))

    def mixed(self, reads: Reads, x: Float[Array, "B T D"]) -> Float[Array, "B T H V"]:
        """What is projected."""
        return mix(reads, self.ending(x))

    def ending(self, x: Float[Array, "B T D"]) -> Ending:
        """What becomes of each head of the mixed reads."""
        gate = self.g_proj(x, apart=True) if self.gate else None
        norm = None if self.norm_eps is None else self.norm[...]
        return Ending(self.before, norm, gate, self.activation, self.norm_eps or 0.0)


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
        super().__init__(hidden, num_heads, value_dim, activation=jax.nn.sigmoid, norm_eps=norm_eps, rngs=rngs)

    def ending(self, x: Float[Array, "B T D"]) -> Ending:
        """What becomes of each head of the mixed reads."""
        return dataclasses.replace(super().ending(x), gate=self.g_up(self.g_down(x, apart=True)))


class HiddenNormOutput(Output):
    """``o_proj(rms_norm(f(o) * f'(g_proj(x))))`` with one norm over the channels of all heads, behind the gate.

    GSA has SiLU for f and no gate, HGRN2 has neither, Mamba2 a gate alone. ``norm_eps`` must be given.
    """

    of_all_heads = True
    norm_eps: float

    def mixed(self, reads: Reads, x: Float[Array, "B T D"]) -> Float[Array, "B T H V"]:
        """What is projected; under a mesh the norm sums over all devices that hold heads."""
        o = mix(reads)
        y = widened(o)
        if self.before is not None:
            y = self.before(y)
        if self.gate:
            y = y * self.activation(widened(self.g_proj(x, apart=True))).reshape(o.shape)
        squares = jnp.sum(y * y, (-2, -1), keepdims=True)
        if self.heads_axis is not None:
            squares = jax.lax.psum(squares, self.heads_axis)
        y = y * jax.lax.rsqrt(squares / (self.num_heads * o.shape[-1]) + self.norm_eps)
        return (y * self.norm[...].reshape(o.shape[-2:])).astype(o.dtype)
