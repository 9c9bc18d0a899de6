"""TTT-Linear memories (arXiv 2407.04620, sections 2.3 to 2.7): a linear model that learns from the tokens it sees.

Each memory has its own key, value and learning-rate projections, and takes its mini-batches from
its own sequence; the query projection, the short convolutions, the inner norm and the initial
weights are shared by all memories.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.rules.parts import add_bias, per_memory, recur
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.ops.fast_weights import window_rows
from mom_jax.ops.flops import fast_weights_flops
from mom_jax.ops.norm import l2_norm, layer_norm
from mom_jax.ops.segments import Packing
from mom_jax.ops.ttt import ttt_linear, ttt_linear_step
from mom_jax.typing import Array, Float


class TTTLinear(QueryKeyValueRule):
    """Reads are ``q + layer_norm(q W)``, where W descends on each token's reconstruction loss.

    The rate is ``sigmoid(w x + b)``; queries and keys are L2-normalised. K must equal V.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        mini_batch: tokens that take their gradients at the same weights.
        norm_eps: of the norm of reads.
        options: of `QueryKeyValueRule`.
    """

    per_memory = (*QueryKeyValueRule.per_memory, "lr_proj", "lr_bias")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        mini_batch: int = 16,
        norm_eps: float = 1e-6,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        sizes = (hidden, num_heads, key_dim, value_dim)
        super().__init__(*sizes, memories=memories, activate=True, rngs=rngs, **options)
        zeros, of_heads = jax.nn.initializers.zeros, ("tensor", None)
        self.lr_proj = per_memory(rngs, memories, hidden, num_heads)
        self.lr_bias = param(rngs, zeros, (memories, num_heads), (None, "tensor"))
        self.norm = param(rngs, jax.nn.initializers.ones, (num_heads, value_dim), of_heads)
        self.norm_bias = param(rngs, zeros, (num_heads, value_dim), of_heads)
        start = jax.nn.initializers.normal(0.02)
        self.start = param(rngs, start, (num_heads, key_dim + 1, value_dim), ("tensor", None, None))
        self.mini_batch, self.norm_eps = mini_batch, norm_eps

    def __call__(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N H V"], MemoryCache | None]:
        """Writes the tokens into their memories and reads them, row by packed row."""
        q, k, v, (rate,), cache = self.rows(x, packing, cache, layer, self.lr_proj[...])
        q, k = l2_norm(q), l2_norm(k)
        rate = jax.nn.sigmoid(add_bias(rate.astype(jnp.float32), packing, self.lr_bias[...]))
        norm, start = (self.norm[...], self.norm_bias[...]), self.start[...]
        written = v.astype(jnp.float32)
        o, cache = recur(
            lambda state: ttt_linear(
                q,
                k,
                written,
                rate,
                norm,
                packing.valid,
                packing.table,
                state,
                start=start,
                mini_batch=self.mini_batch,
                scale=1.0,
                impl=self.impl,
            ),
            lambda state: ttt_linear_step(q, k, written, rate, None, norm, start, state, 1.0, self.mini_batch),
            packing,
            cache,
            layer,
        )
        o = q.astype(jnp.float32) + layer_norm(o, *norm, self.norm_eps)
        return jnp.where(packing.valid[:, None, None], o, 0).astype(x.dtype), cache

    def flops(self, chunk: int) -> tuple[float, float]:
        """FLOPs of the recurrence by mini-batches for one row and head: (forward, backward)."""
        return fast_weights_flops(window_rows(chunk, self.mini_batch), self.key_dim + 1, self.value_dim, 2)

    def state_shapes(self) -> Any:
        """Weights and gathered gradients [H, 2, K + 1, V], and how many tokens of a mini-batch were seen."""
        shape = (self.num_heads, 2, self.key_dim + 1, self.value_dim)
        return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((), jnp.float32)
