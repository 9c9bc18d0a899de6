"""Erase-then-Delta memories (arXiv 2606.26560): a direction of its own is erased before the delta rule writes.

Per head, with L2-normalised keys k and directions e, write strengths beta and erase strengths gamma:

    S_t = (I - beta_t k_t k_t^T)(I - gamma_t e_t e_t^T) exp(g_t) S_{t-1} + beta_t k_t v_t^T;   o_t = K^-0.5 S_t^T q_t

It is two steps of the delta rule for each token, of which the first writes 0 (`mom_jax.ops.delta_product`); with
``gamma = 0`` it is Gated DeltaNet. The paper was not at hand: the equation is that of its abstract and of notes on it,
and what they leave open is chosen here. Decays are one for each head, ``gamma = sigmoid(W_gamma x)`` and
``e = l2_norm(W_e x)`` have no convolutions and no biases, all else is Gated DeltaNet's. Each memory has its own key,
value, strength, decay, direction and erase projections; the query projection, the short convolutions, ``A_log`` and
``dt_bias`` are shared by all memories.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.projections import head_log_decay, log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.deltanet import DeltaNet, DeltaNetOptions
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.ops.delta_product import DeltaProductRows, delta_product
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class EraseThenDelta(DeltaNet):
    """Decays are those of Gated DeltaNet; ``allow_neg_eigval`` doubles write strengths alone."""

    paper = Paper("2606.26560", "abstract")
    paces = True
    published = None
    primitive = delta_product(2)
    per_memory = (*DeltaNet.per_memory, "a_proj", "e_proj", "erase_proj")

    def __init__(self, sizes: RuleSizes, options: DeltaNetOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.a_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.e_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.key_dim)
        self.erase_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.A_log = log_rates(rngs, sizes.num_heads, least=1e-4)
        self.dt_bias = time_step_bias(rngs, sizes.num_heads)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[DeltaProductRows, None, MemoryCache | None]:
        """Packed rows of two delta steps, and the cache."""
        gates = self.b_proj[...], self.a_proj[...], self.e_proj[...], self.erase_proj[...]
        q, k, v, (b, a, e, erase), cache = self.qkv(x, packing, cache, layer, *gates)
        g = self.paced(head_log_decay(a, self.A_log[...], self.dt_bias[...]), packing)
        direction = l2_norm(heads(widened(e), self.sizes.head_k_dim)).astype(k.dtype)
        keys, values = jnp.stack([direction, k], 2), jnp.stack([jnp.zeros_like(v), v], 2)
        strengths = jnp.stack([jax.nn.sigmoid(widened(erase)), self.strengths(b)], -1)
        return DeltaProductRows(q, keys, values, g, strengths), None, cache
