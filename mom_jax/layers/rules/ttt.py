"""TTT-Linear memories (arXiv 2407.04620, sections 2.3 to 2.7): a linear model that learns from the tokens it sees.

Each memory has its own key, value and learning-rate projections, and takes its mini-batches from
its own sequence; the query projection, the short convolutions, the inner norm and the initial
weights are shared by all memories.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Count
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.projections import add_bias, per_memory
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.norm import layer_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.ops.ttt import TTTRows, ttt_linear
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class MiniBatchOptions(ConvOptions):
    """Options of rules that learn by mini-batches."""

    mini_batch_size: Count = 16  # tokens that take their gradients at the same weights


class TTTLinear(QueryKeyValueRule):
    """Reads are ``q + layer_norm(q W)``, where W descends on each token's reconstruction loss.

    The rate is ``sigmoid(w x + b)``; queries and keys are L2-normalised.
    """

    Options = MiniBatchOptions
    options: MiniBatchOptions
    paper = Paper("2407.04620", "sections 2.3 to 2.7")
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "lr_proj", "lr_bias")
    activate = True
    normalise = True

    def __init__(self, sizes: RuleSizes, options: MiniBatchOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        memories, heads, keys, values = sizes.projections, sizes.num_heads, sizes.head_k_dim, sizes.head_v_dim
        if keys != values:
            raise InputError("expand_v", values / keys, "must be 1 with memory_rule ttt (values as wide as keys)")
        zeros, of_heads = jax.nn.initializers.zeros, ("tensor", None)
        self.lr_proj = per_memory(rngs, memories, sizes.hidden_size, heads)
        self.lr_bias = param(rngs, zeros, (memories, heads), (None, "tensor"))
        self.norm = param(rngs, jax.nn.initializers.ones, (heads, values), of_heads, decays=False)
        self.norm_bias = param(rngs, zeros, (heads, values), of_heads, decays=False)
        start = jax.nn.initializers.normal(0.02)
        self.start = param(rngs, start, (heads, keys + 1, values), ("tensor", None, None))

    @property
    def primitive(self) -> Primitive:
        """TTT-Linear."""
        return ttt_linear(self.options.mini_batch_size)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[TTTRows, Float[Array, "N H K"], MemoryCache | None]:
        """Packed rows of TTT-Linear, the queries, and the cache."""
        q, k, v, (rate,), cache = self.qkv(x, packing, cache, layer, self.lr_proj[...])
        rate = jax.nn.sigmoid(add_bias(widened(rate), packing, self.lr_bias[...]))
        shared = {"norm_weight": self.norm[...], "norm_bias": self.norm_bias[...], "start": self.start[...]}
        return TTTRows(q, k, widened(v), rate, packing.valid, **shared), q, cache

    def finished(
        self, o: Float[Array, "N H V"], rest: Float[Array, "N H V"], packing: Packing
    ) -> Float[Array, "N H V"]:
        """The query, plus the normalised read."""
        o = widened(rest) + layer_norm(o, self.norm[...], self.norm_bias[...], self.options.norm_eps)
        return jnp.where(packing.valid[:, None, None], o, 0)
