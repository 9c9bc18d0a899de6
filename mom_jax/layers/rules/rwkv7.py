"""RWKV7 memories (arXiv 2503.14456, section 4): the generalised delta rule, diagonal plus rank one.

A token is blended with the one that the same memory saw before it. Each memory has its own key,
value, decay and rate projections; the query (receptance) and gate projections, the blends, the
bonus and the norm are shared by all memories.

The paper blends the values of each layer with the first layer's. In a mixture, memories of different
layers do not correspond to each other, so this is left out here.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.fields import Channels, Epsilon
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.convolution import token_before
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.projections import add_bias, per_memory, through
from mom_jax.layers.rules.published import Unreadable
from mom_jax.layers.rules.rule import Paper, RuleOptions, RuleSizes, heads
from mom_jax.layers.rules.rwkv6 import TokenShiftRule
from mom_jax.ops.norm import l2_norm, layer_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.rank_one_decay import RANK_ONE_DECAY, RankOneDecayRows
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float

_LOG_DECAY = -0.6065306597126334  # -exp(-1/2): the strongest decay, of one token


@dataclasses.dataclass(frozen=True)
class RWKV7Options(RuleOptions):
    """Options of RWKV7: ranks of its three low-rank projections."""

    decay_low_rank_dim: Channels = 64
    a_low_rank_dim: Channels = 64  # of the removal rate
    gate_low_rank_dim: Channels = 128
    norm_eps: Epsilon = 1e-5  # for one key channel; K times that is added to variances
    has_own_gate = True


class RWKV7(TokenShiftRule):
    """Decay ``exp(-e^-0.5 sigmoid(w))`` and removal key kk at the rate a, for each channel.

    Reads are normalised within heads, get the bonus of the present token and are gated before they
    are mixed.
    """

    Options = RWKV7Options
    paper = Paper("2503.14456", "section 4")
    published = Unreadable(
        "rwkv7",
        "its layers add the first layer's values to their own, and its channel mixing carries a token from call "
        "to call",
    )
    primitive = RANK_ONE_DECAY
    per_memory = ("k_proj", "v_proj", "w_down", "w_up", "w_bias", "a_down", "a_up", "a_bias")
    per_row = ("q_proj", "g_down", "g_up")

    def __init__(self, sizes: RuleSizes, options: RWKV7Options, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        hidden, keys, values, memories = sizes.hidden_size, sizes.key_dim, sizes.value_dim, sizes.projections
        constant, of_heads = jax.nn.initializers.constant, ("tensor", None)
        key_heads, value_heads = (sizes.num_heads, sizes.head_k_dim), (sizes.num_heads, sizes.head_v_dim)
        self.x_mix = param(rngs, constant(0.5), (6, hidden), (None, None))
        self.q_proj = Linear(hidden, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, keys)
        self.v_proj = per_memory(rngs, memories, hidden, values)
        self.w_down = per_memory(rngs, memories, hidden, options.decay_low_rank_dim, split=False)
        self.w_up = per_memory(rngs, memories, options.decay_low_rank_dim, keys)
        self.w_bias = param(rngs, constant(-2.5), (memories, keys), (None, "tensor"))
        self.a_down = per_memory(rngs, memories, hidden, options.a_low_rank_dim, split=False)
        self.a_up = per_memory(rngs, memories, options.a_low_rank_dim, keys)
        self.a_bias = param(rngs, constant(-0.19), (memories, keys), (None, "tensor"))
        self.g_down = Linear(hidden, options.gate_low_rank_dim, split="whole", init=mixer_init, rngs=rngs)
        self.g_up = Linear(options.gate_low_rank_dim, values, split="column", init=mixer_init, rngs=rngs)
        self.k_k = param(rngs, constant(0.71), key_heads, of_heads)
        self.k_a = param(rngs, constant(1.02), key_heads, of_heads)
        self.r_k = param(rngs, constant(-0.04), key_heads, of_heads)
        self.norm = param(rngs, constant(1.0), value_heads, of_heads, decays=False)
        self.norm_bias = param(rngs, constant(0.0), value_heads, of_heads, decays=False)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[RankOneDecayRows, tuple[Float[Array, "N H V"], Float[Array, "N H*V"]], MemoryCache | None]:
        """Packed rows of diagonal plus rank one; the token's own bonus and the gate; and the cache."""
        impl, size = self.options.impl, self.sizes.head_k_dim
        rows = pack(x, packing)
        before, cache = token_before(rows, packing, cache, layer, self.options.impl)
        blends = rows + (before - rows) * self.x_mix[...].astype(rows.dtype)[:, None]
        of_receptance, of_decay, of_key, of_value, of_rate, of_gate = blends
        r, gate = self.q_proj(of_receptance), self.g_up(jax.nn.sigmoid(self.g_down(of_gate)))
        k, v = through(of_key, packing, self.k_proj[...], impl), through(of_value, packing, self.v_proj[...], impl)
        low = jnp.tanh(through(of_decay, packing, self.w_down[...], impl))
        w = add_bias(widened(through(low, packing, self.w_up[...], impl)), packing, self.w_bias[...])
        low = through(of_rate, packing, self.a_down[...], impl)
        a = add_bias(widened(through(low, packing, self.a_up[...], impl)), packing, self.a_bias[...])

        r, k, w, a = (heads(widened(y), size) for y in (r, k, w, a))
        removal, rate = l2_norm(k * self.k_k[...]), jax.nn.sigmoid(a)
        k, v = k * (1 + (rate - 1) * self.k_a[...]), heads(v, self.sizes.head_v_dim)
        bonus = jnp.sum(r * k * self.r_k[...], -1, keepdims=True) * widened(v)
        g = self.paced(_LOG_DECAY * jax.nn.sigmoid(w), packing)
        return RankOneDecayRows(r, k, v, g, a=-removal, b=removal * rate), (bonus, gate), cache

    def finished(
        self, o: Float[Array, "N H V"], rest: tuple[Float[Array, "N H V"], Float[Array, "N H*V"]], packing: Packing
    ) -> Float[Array, "N H V"]:
        """Reads, normalised within heads, with the bonus, and gated."""
        bonus, gate = rest
        o = layer_norm(o, self.norm[...], self.norm_bias[...], self.sizes.head_k_dim * self.options.norm_eps)
        return jnp.where(packing.valid[:, None, None], (o + bonus) * widened(gate).reshape(o.shape), 0)
