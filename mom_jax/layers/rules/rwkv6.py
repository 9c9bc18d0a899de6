"""RWKV6 memories (arXiv 2404.05892, section 4.2): data-dependent decay, a bonus for the present, token shift.

A token is blended with the one that the same memory saw before it. Each memory has its own key,
value and decay projections; the query (receptance), gate and blending projections, the bonus and
the norm are shared by all memories.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.rules.parts import add_bias, per_memory, recur, through, token_before
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.ops.flops import vector_decay_flops
from mom_jax.ops.norm import layer_norm
from mom_jax.ops.segments import Packing, pack
from mom_jax.ops.vector_decay import vector_decay, vector_decay_step
from mom_jax.typing import Array, Float


class RWKV6(MemoryRule):
    """Decay ``exp(-exp(W_2 tanh(W_1 x_w) + b))``; reads are normalised within heads and gated before they are mixed.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        blend_rank: of each of the five blends of a token with the one before.
        decay_rank: of the decay's projection.
        norm_eps: of the norm.
    """

    per_memory = ("k_proj", "v_proj", "w_down", "w_up", "w_bias")
    per_row = ("q_proj", "g_proj", "x_down", "x_up")
    whole_history = ("x",)

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        blend_rank: int = 32,
        decay_rank: int = 64,
        norm_eps: float = 1e-5,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_heads, key_dim, value_dim)
        keys, values, zeros = num_heads * key_dim, num_heads * value_dim, jax.nn.initializers.zeros
        self.x_mix = param(rngs, zeros, (hidden,), (None,))
        self.x_down = Linear(hidden, 5 * blend_rank, split="whole", init=mixer_init, rngs=rngs)
        self.x_up = param(rngs, mixer_init, (5, blend_rank, hidden), (None, None, "fsdp"))
        self.x_bias = param(rngs, zeros, (5, hidden), (None, None))
        self.q_proj = Linear(hidden, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, keys)
        self.v_proj = per_memory(rngs, memories, hidden, values)
        self.w_down = per_memory(rngs, memories, hidden, decay_rank, split=False)
        self.w_up = per_memory(rngs, memories, decay_rank, keys)
        self.w_bias = param(rngs, zeros, (memories, keys), (None, "tensor"))
        self.g_proj = Linear(hidden, values, split="column", init=mixer_init, rngs=rngs)
        self.bonus = param(rngs, zeros, (num_heads, key_dim), ("tensor", None))
        self.norm = param(rngs, jax.nn.initializers.ones, (num_heads, value_dim), ("tensor", None))
        self.norm_bias = param(rngs, zeros, (num_heads, value_dim), ("tensor", None))
        self.hidden, self.norm_eps = hidden, norm_eps

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        (r, w, k, v, g), cache = self._blends(pack(x, packing), packing, cache, layer)
        q, gate = self.q_proj(r), self.g_proj(g)
        k, v = through(k, packing, self.k_proj[...], self.impl), through(v, packing, self.v_proj[...], self.impl)
        low = jnp.tanh(through(w, packing, self.w_down[...], self.impl))
        w = through(low, packing, self.w_up[...], self.impl)
        decay = -jnp.exp(add_bias(w.astype(jnp.float32), packing, self.w_bias[...]))
        q, k, decay = (y.reshape(y.shape[0], -1, self.key_dim) for y in (q, k, decay))
        valid = packing.valid[:, None, None]
        v, decay = jnp.where(valid, v.reshape(*q.shape[:2], self.value_dim), 0), jnp.where(valid, decay, 0)
        bonus = self.bonus[...]
        o, cache = recur(
            lambda state: vector_decay(q, k, v, decay, packing.table, state, bonus=bonus, scale=1.0, impl=self.impl),
            lambda state: vector_decay_step(q, k, v, decay, bonus, state, 1.0),
            packing,
            cache,
            layer,
        )
        o = layer_norm(o, self.norm[...], self.norm_bias[...], self.norm_eps)
        o = o * jax.nn.silu(gate.astype(jnp.float32)).reshape(o.shape)
        return jnp.where(valid, o, 0).astype(x.dtype), cache

    def _blends(self, rows, packing, cache, layer):
        """Each row blended with the one before in five ways, for receptance, decay, key, value and gate."""
        before, cache = token_before(rows, packing, cache, layer)
        delta = before - rows
        low = jnp.tanh(self.x_down(rows + delta * self.x_mix[...].astype(rows.dtype)))
        low = low.reshape(low.shape[0], 5, -1)
        mix = jnp.einsum("nsr,srd->snd", low, self.x_up[...].astype(rows.dtype))
        mix = mix + self.x_bias[...].astype(rows.dtype)[:, None]
        return rows + delta * mix, cache

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the chunk-parallel recurrence for one row and head: (forward, backward)."""
        return vector_decay_flops(chunk, self.key_dim, self.value_dim)

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """The last token that each memory saw: (1, D)."""
        return {"x": (1, self.hidden)}
