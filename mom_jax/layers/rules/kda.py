"""Kimi delta attention memories (arXiv 2510.26692, section 3): the delta rule with a decay for each key channel.

Each memory has its own key, value, strength and low-rank decay projections; the query projection,
the short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.output import LowRankGateOutput, Output
from mom_jax.layers.projections import log_rates, per_memory, through, time_step_bias
from mom_jax.layers.rules.deltanet import TENSORS, DeltaNet, DeltaNetOptions
from mom_jax.layers.rules.published import CONV, MATRIX, Layout, Published, Row, alone
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.ops.erase_and_write import ERASE_AND_WRITE, EraseAndWriteRows, kda_rows
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class KDAOptions(DeltaNetOptions):
    """Options of Kimi delta attention."""

    has_own_gate = True


_TENSORS = TENSORS | {
    "attn.rule.A_log": Row("attn.A_log"),
    "attn.rule.dt_bias": Row("attn.dt_bias"),
    "attn.rule.f_down": alone("attn.f_proj.0.weight"),
    "attn.rule.f_up": alone("attn.f_proj.1.weight"),
    "attn.output.g_down.weight": Row("attn.g_proj.0.weight", MATRIX),
    "attn.output.g_up.weight": Row("attn.g_proj.1.weight", MATRIX),
    "attn.output.g_up.bias": Row("attn.g_proj.1.bias"),
}


class KDA(DeltaNet):
    """Log decay ``-exp(A_log) softplus(W_2 W_1 x + dt_bias)``, A_log for each head and the rest for each channel."""

    Options = KDAOptions
    paper = Paper("2510.26692", "section 3")
    paces = True
    published = Published(
        "kda",
        "KDAForCausalLM",
        Layout(_TENSORS),
        options=(*CONV, "allow_neg_eigval"),
        defaults={"hidden_size": 2048, "head_dim": 128, "num_heads": 16, "expand_v": 1.0},
        only={"num_v_heads": None, "safe_gate": False, "lower_bound": None},
    )
    primitive = ERASE_AND_WRITE
    per_memory = (*DeltaNet.per_memory, "f_down", "f_up")

    def __init__(self, sizes: RuleSizes, options: DeltaNetOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        rank = sizes.head_v_dim
        self.f_down = per_memory(rngs, sizes.projections, sizes.hidden_size, rank, split=False)
        self.f_up = per_memory(rngs, sizes.projections, rank, sizes.key_dim)
        self.A_log = log_rates(rngs, sizes.num_heads, least=1.0)
        self.dt_bias = time_step_bias(rngs, sizes.key_dim)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: DeltaNetOptions, rngs: nnx.Rngs) -> Output:
        """Norm within heads and a low-rank sigmoid gate."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        return LowRankGateOutput(*shape, norm_eps=options.norm_eps, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[EraseAndWriteRows, None, MemoryCache | None]:
        """Packed rows of a delta rule with two keys, and the cache."""
        q, k, v, (b, low), cache = self.qkv(x, packing, cache, layer, self.b_proj[...], self.f_down[...])
        g = self.log_decays(low, packing)
        return kda_rows(q, k, v, g, self.strengths(b)), None, cache

    def log_decays(self, low: Float[Array, "N rank"], packing: Packing) -> Float[Array, "N H K"]:
        """Of each channel, from ``W_1 x``."""
        f = through(low, packing, self.f_up[...], self.options.impl)
        step = heads(jax.nn.softplus(widened(f) + self.dt_bias[...]), self.sizes.head_k_dim)
        return self.paced(-jnp.exp(self.A_log[...])[:, None] * step, packing)
