"""RWKV6 memories (arXiv 2404.05892, section 4.2): data-dependent decay, a bonus for the present, token shift.

A token is blended with the one that the same memory saw before it. Each memory has its own key,
value and decay projections; the query (receptance), gate and blending projections, the bonus and
the norm are shared by all memories.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.fields import Channels
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.convolution import token_before
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.output import Output
from mom_jax.layers.projections import add_bias, per_memory, through
from mom_jax.layers.rules.published import Unreadable
from mom_jax.layers.rules.rule import MemoryRule, Paper, RuleOptions, RuleSizes, heads
from mom_jax.ops.norm import layer_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing, pack
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class RWKV6Options(RuleOptions):
    """Options of RWKV6."""

    proj_low_rank_dim: Channels = 32  # rank of each of the five blends of a token with the one before
    decay_low_rank_dim: Channels = 64  # rank of the decay's projection
    has_own_gate = True


class TokenShiftRule(MemoryRule):
    """A rule that blends a token with the one that the same memory saw before it, and finishes its reads by itself."""

    paces = True
    scale = 1.0
    whole_history = ("x",)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: RuleOptions, rngs: nnx.Rngs) -> Output:
        """A projection alone: reads are normed and gated before they are mixed."""
        return Output(sizes.hidden_size, sizes.num_heads, sizes.head_v_dim, rngs=rngs)

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """The last token that each memory saw: (1, D)."""
        return {"x": (1, self.sizes.hidden_size)}


class RWKV6(TokenShiftRule):
    """Decay ``exp(-exp(W_2 tanh(W_1 x_w) + b))``; reads are normalised within heads and gated before they are mixed."""

    Options = RWKV6Options
    paper = Paper("2404.05892", "section 4.2")
    published = Unreadable(
        "rwkv6",
        "its blocks have layer norms with biases and a channel mixing that carries a token from call to call",
    )
    primitive = VECTOR_DECAY
    per_memory = ("k_proj", "v_proj", "w_down", "w_up", "w_bias")
    per_row = ("q_proj", "g_proj", "x_down", "x_up")

    def __init__(self, sizes: RuleSizes, options: RWKV6Options, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        hidden, keys, values = sizes.hidden_size, sizes.key_dim, sizes.value_dim
        memories, blend, zeros = sizes.projections, options.proj_low_rank_dim, jax.nn.initializers.zeros
        of_heads = (sizes.num_heads, sizes.head_v_dim)
        self.x_mix = param(rngs, zeros, (hidden,), (None,))
        self.x_down = Linear(hidden, 5 * blend, split="whole", init=mixer_init, rngs=rngs)
        self.x_up = param(rngs, mixer_init, (5, blend, hidden), (None, None, "fsdp"))
        self.x_bias = param(rngs, zeros, (5, hidden), (None, None))
        self.q_proj = Linear(hidden, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, keys)
        self.v_proj = per_memory(rngs, memories, hidden, values)
        self.w_down = per_memory(rngs, memories, hidden, options.decay_low_rank_dim, split=False)
        self.w_up = per_memory(rngs, memories, options.decay_low_rank_dim, keys)
        self.w_bias = param(rngs, zeros, (memories, keys), (None, "tensor"))
        self.g_proj = Linear(hidden, values, split="column", init=mixer_init, rngs=rngs)
        self.bonus = param(rngs, zeros, (sizes.num_heads, sizes.head_k_dim), ("tensor", None))
        self.norm = param(rngs, jax.nn.initializers.ones, of_heads, ("tensor", None), decays=False)
        self.norm_bias = param(rngs, zeros, of_heads, ("tensor", None), decays=False)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[VectorDecayRows, Float[Array, "N H*V"], MemoryCache | None]:
        """Packed rows of vector decay with a bonus, the gate, and the cache."""
        impl, keys = self.options.impl, self.sizes.head_k_dim
        (r, w, k, v, g), cache = self._blends(pack(x, packing), packing, cache, layer)
        q, gate = self.q_proj(r), self.g_proj(g)
        k, v = through(k, packing, self.k_proj[...], impl), through(v, packing, self.v_proj[...], impl)
        low = jnp.tanh(through(w, packing, self.w_down[...], impl))
        w = through(low, packing, self.w_up[...], impl)
        decay = self.paced(heads(-jnp.exp(add_bias(widened(w), packing, self.w_bias[...])), keys), packing)
        v = heads(v, self.sizes.head_v_dim)
        return VectorDecayRows(heads(q, keys), heads(k, keys), v, decay, self.bonus[...]), gate, cache

    def finished(
        self, o: Float[Array, "N H V"], rest: Float[Array, "N H*V"], packing: Packing
    ) -> Float[Array, "N H V"]:
        """Reads, normalised within heads and gated."""
        o = layer_norm(o, self.norm[...], self.norm_bias[...], self.options.norm_eps)
        o = o * jax.nn.silu(widened(rest)).reshape(o.shape)
        return jnp.where(packing.valid[:, None, None], o, 0)

    def _blends(
        self, rows: Float[Array, "N D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "5 N D"], MemoryCache | None]:
        """Each row blended with the one before in five ways, for receptance, decay, key, value and gate."""
        before, cache = token_before(rows, packing, cache, layer, self.options.impl)
        delta = before - rows
        low = jnp.tanh(self.x_down(rows + delta * self.x_mix[...].astype(rows.dtype)))
        low = low.reshape(low.shape[0], 5, -1)
        mix = jnp.einsum("nsr,srd->snd", low, self.x_up[...].astype(rows.dtype))
        mix = mix + self.x_bias[...].astype(rows.dtype)[:, None]
        return rows + delta * mix, cache
