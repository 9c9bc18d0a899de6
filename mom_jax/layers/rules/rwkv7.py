"""RWKV7 memories (arXiv 2503.14456, section 4): the generalised delta rule, diagonal plus rank one.

A token is blended with the one that the same memory saw before it. Each memory has its own key,
value, decay and rate projections; the query (receptance) and gate projections, the blends, the
bonus and the norm are shared by all memories.

The paper blends the values of each layer with the first layer's. Memories of different layers have
nothing to do with each other, so that a mixture has no such thing; it is left out here.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.rules.parts import add_bias, per_memory, recur, through, token_before
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.ops.flops import rank_one_decay_flops
from mom_jax.ops.norm import l2_norm, layer_norm
from mom_jax.ops.rank_one_decay import rank_one_decay, rank_one_decay_step
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float

_LOG_DECAY = -0.6065306597126334  # -exp(-1/2): the strongest decay, of one token


class RWKV7(MemoryRule):
    """Decay ``exp(-e^-0.5 sigmoid(w))`` and removal key kk at the rate a, for each channel.

    Reads are normalised within heads, get the bonus of the present token and are gated before they
    are mixed.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        decay_rank, rate_rank, gate_rank: of the three low-rank projections.
        norm_eps: of the norm, for one key channel; K times that is added to variances.
    """

    per_memory = ("k_proj", "v_proj", "w_down", "w_up", "w_bias", "a_down", "a_up", "a_bias")
    per_row = ("q_proj", "g_down", "g_up")
    whole_history = ("x",)

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        decay_rank: int = 64,
        rate_rank: int = 64,
        gate_rank: int = 128,
        norm_eps: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_heads, key_dim, value_dim)
        keys, values = num_heads * key_dim, num_heads * value_dim
        constant, of_heads = jax.nn.initializers.constant, ("tensor", None)
        self.x_mix = param(rngs, constant(0.5), (6, hidden), (None, None))
        self.q_proj = Linear(hidden, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, keys)
        self.v_proj = per_memory(rngs, memories, hidden, values)
        self.w_down = per_memory(rngs, memories, hidden, decay_rank, split=False)
        self.w_up = per_memory(rngs, memories, decay_rank, keys)
        self.w_bias = param(rngs, constant(-2.5), (memories, keys), (None, "tensor"))
        self.a_down = per_memory(rngs, memories, hidden, rate_rank, split=False)
        self.a_up = per_memory(rngs, memories, rate_rank, keys)
        self.a_bias = param(rngs, constant(-0.19), (memories, keys), (None, "tensor"))
        self.g_down = Linear(hidden, gate_rank, split="whole", init=mixer_init, rngs=rngs)
        self.g_up = Linear(gate_rank, values, split="column", init=mixer_init, rngs=rngs)
        self.k_k = param(rngs, constant(0.71), (num_heads, key_dim), of_heads)
        self.k_a = param(rngs, constant(1.02), (num_heads, key_dim), of_heads)
        self.r_k = param(rngs, constant(-0.04), (num_heads, key_dim), of_heads)
        self.norm = param(rngs, constant(1.0), (num_heads, value_dim), of_heads)
        self.norm_bias = param(rngs, constant(0.0), (num_heads, value_dim), of_heads)
        self.hidden, self.norm_eps = hidden, norm_eps

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        rows = pack(x, packing)
        before, cache = token_before(rows, packing, cache, layer)
        blends = rows + (before - rows) * self.x_mix[...].astype(rows.dtype)[:, None]
        of_receptance, of_decay, of_key, of_value, of_rate, of_gate = blends
        r, k, v = (
            self.q_proj(of_receptance),
            through(of_key, packing, self.k_proj[...], self.impl),
            through(of_value, packing, self.v_proj[...], self.impl),
        )
        low = jnp.tanh(through(of_decay, packing, self.w_down[...], self.impl))
        w = add_bias(through(low, packing, self.w_up[...], self.impl).astype(jnp.float32), packing, self.w_bias[...])
        low = through(of_rate, packing, self.a_down[...], self.impl)
        a = add_bias(through(low, packing, self.a_up[...], self.impl).astype(jnp.float32), packing, self.a_bias[...])
        gate = self.g_up(jax.nn.sigmoid(self.g_down(of_gate)))

        r, k, w, a = (y.astype(jnp.float32).reshape(y.shape[0], -1, self.key_dim) for y in (r, k, w, a))
        valid, rate = packing.valid[:, None, None], jax.nn.sigmoid(a)
        removal = jnp.where(valid, l2_norm(k * self.k_k[...]), 0)
        k = k * (1 + (rate - 1) * self.k_a[...])
        v = jnp.where(valid, v.reshape(*r.shape[:2], self.value_dim), 0)
        g = jnp.where(valid, _LOG_DECAY * jax.nn.sigmoid(w), 0)
        change = -removal, removal * rate
        o, cache = recur(
            lambda state: rank_one_decay(r, k, v, *change, g, packing.table, state, scale=1.0, impl=self.impl),
            lambda state: rank_one_decay_step(r, k, v, *change, g, state, 1.0),
            packing,
            cache,
            layer,
        )
        o = layer_norm(o, self.norm[...], self.norm_bias[...], self.key_dim * self.norm_eps)
        o = o + jnp.sum(r * k * self.r_k[...], -1, keepdims=True) * v.astype(jnp.float32)
        o = o * gate.astype(jnp.float32).reshape(o.shape)
        return jnp.where(valid, o, 0).astype(x.dtype), cache

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return rank_one_decay_flops(chunk, self.key_dim, self.value_dim)

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """The last token that each memory saw: (1, D)."""
        return {"x": (1, self.hidden)}
