"""Mamba2 memories (arXiv 2405.21060, sections 6 and 7): a state-space recurrence with one decay for each head.

In the terms of the other rules: the paper's C is the query, B the key, x the value, and all heads
share queries and keys. Each memory has its own key, value and time-step projections; the query
projection, the convolutions, ``A_log``, ``dt_bias`` and the skip ``D`` are shared by all memories.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import HiddenNormOutput, Output
from mom_jax.layers.projections import log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.precision import widened
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class Mamba2(QueryKeyValueRule):
    """``S_t = exp(-exp(A_log) dt) S_{t-1} + k (dt v)^T;  o = S^T q + D v`` with ``dt = softplus(W x + dt_bias)``.

    K is the paper's state size N, V its head size P.
    """

    paper = Paper("2405.21060", "sections 6 and 7")
    primitive = SCALAR_DECAY
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "dt_proj")
    whole_history = ("q", "k")
    activate = True
    shared_keys = True
    conv_bias = True

    def __init__(self, sizes: RuleSizes, options: ConvOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        heads = sizes.num_heads
        self.dt_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, heads)
        self.A_log = log_rates(rngs, heads, least=1.0)
        self.dt_bias = time_step_bias(rngs, heads)
        self.D = param(rngs, jax.nn.initializers.ones, (heads,), ("tensor",), decays=False)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: ConvOptions, rngs: nnx.Rngs) -> Output:
        """Gate, then a norm over all heads."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        return HiddenNormOutput(*shape, gate=options.use_output_gate, norm_eps=options.norm_eps, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[ScalarDecayRows, Float[Array, "N H V"], MemoryCache | None]:
        """Packed rows of scalar decay, the values for the skip, and the cache."""
        q, k, v, (dt,), cache = self.qkv(x, packing, cache, layer, self.dt_proj[...])
        q, k = (jnp.broadcast_to(y, (*v.shape[:2], y.shape[-1])) for y in (q, k))
        step, value = jax.nn.softplus(widened(dt) + self.dt_bias[...]), widened(v)
        rows = ScalarDecayRows(q, k, value * step[..., None], -jnp.exp(self.A_log[...]) * step)
        return rows, value, cache

    def finished(
        self, o: Float[Array, "N H V"], rest: Float[Array, "N H V"], packing: Packing
    ) -> Float[Array, "N H V"]:
        """Reads, with D times the token's own value."""
        return o + jnp.where(packing.valid[:, None, None], self.D[...][:, None] * rest, 0)
