"""Gated DeltaNet-2 memories (arXiv 2605.22791): what is erased and what is written have gates of their own.

Per head, with L2-normalised keys, an erase gate b for each key channel and a write gate w for each value channel:

    S_t = (I - k_t (b_t * k_t)^T) diag(exp(g_t)) S_{t-1} + k_t (w_t * v_t)^T;   o_t = K^-0.5 S_t^T q_t

With ``b = w = beta`` it is Kimi delta attention, with one decay for all channels besides Gated DeltaNet. Each memory
has its own key, value, erase, write and low-rank decay projections; the query projection, the short convolutions,
``A_log`` and ``dt_bias`` are shared by all memories.
"""

import jax
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.projections import per_memory
from mom_jax.layers.rules.deltanet import DeltaNetOptions
from mom_jax.layers.rules.kda import KDA
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.ops.erase_and_write import EraseAndWriteRows, gated_deltanet2_rows
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


class GatedDeltaNet2(KDA):
    """Erase and write gates are sigmoids of full projections; decays are those of Kimi delta attention.

    ``allow_neg_eigval`` doubles the erase gate, not the write gate.
    """

    paper = Paper("2605.22791", "the gated delta rule-2")
    published = None
    per_memory = (*KDA.per_memory, "w_proj")

    def __init__(self, sizes: RuleSizes, options: DeltaNetOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.w_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.value_dim)

    @property
    def strengths_of_a_head(self) -> int:
        """K: one for each channel of the key."""
        return self.sizes.head_k_dim

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[EraseAndWriteRows, None, MemoryCache | None]:
        """Packed rows of a delta rule with two keys, and the cache."""
        gates = self.b_proj[...], self.w_proj[...], self.f_down[...]
        q, k, v, (b, w, low), cache = self.qkv(x, packing, cache, layer, *gates)
        erase = heads(self.strengths(b), self.sizes.head_k_dim)
        write = heads(jax.nn.sigmoid(widened(w)), self.sizes.head_v_dim)
        g = self.log_decays(low, packing)
        return gated_deltanet2_rows(q, k, v, g, erase, write), None, cache
