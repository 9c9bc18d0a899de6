"""Titans' linear memories (arXiv 2501.00663, sections 3.1 and 3.2): gradient descent with momentum and forgetting.

Each memory has its own key, value and gate projections, and takes its mini-batches from its own
sequence; the query projection and the short convolutions are shared by all memories.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.projections import add_bias, per_memory
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.layers.rules.ttt import MiniBatchOptions
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.ops.titans import TitansRows, titans_linear
from mom_jax.typing import Array, Float

_GATES = (-2.0, -4.0, 0.0)  # initial logits of theta (0.12), alpha (0.018) and eta (0.5)


class Titans(QueryKeyValueRule):
    """Surprise gate theta, forgetting alpha and momentum eta are sigmoids of a projection, one each for a head.

    Queries and keys are L2-normalised.
    """

    Options = MiniBatchOptions
    options: MiniBatchOptions
    paper = Paper("2501.00663", "sections 3.1 and 3.2")
    per_memory = (*QueryKeyValueRule.per_memory, "gate_proj", "gate_bias")
    activate = True
    normalise = True

    def __init__(self, sizes: RuleSizes, options: MiniBatchOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        memories, gates = sizes.projections, sizes.num_heads * len(_GATES)
        self.gate_proj = per_memory(rngs, memories, sizes.hidden_size, gates)
        logits = lambda _, shape, dtype: jnp.broadcast_to(jnp.array(_GATES * sizes.num_heads, dtype), shape)  # noqa: E731
        self.gate_bias = param(rngs, logits, (memories, gates), (None, "tensor"))

    @property
    def primitive(self) -> Primitive:
        """Titans' linear memory."""
        return titans_linear(self.options.mini_batch_size)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[TitansRows, None, MemoryCache | None]:
        """Packed rows of Titans' memory, and the cache."""
        q, k, v, (gates,), cache = self.qkv(x, packing, cache, layer, self.gate_proj[...])
        gates = jax.nn.sigmoid(add_bias(widened(gates), packing, self.gate_bias[...]))
        theta, alpha, eta = jnp.moveaxis(heads(gates, len(_GATES)), -1, 0)
        return TitansRows(q, k, v, theta, alpha, eta, packing.valid), None, cache
