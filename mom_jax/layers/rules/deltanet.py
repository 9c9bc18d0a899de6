"""DeltaNet memories (arXiv 2406.06484, equation 2): the delta rule without decay.

Each memory has its own key, value and strength projections; the query projection and the short
convolutions are shared by all memories.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.projections import per_memory
from mom_jax.layers.rules.published import CONV, QKV, RATIOS, Layout, Published, Row, alone
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class DeltaNetOptions(ConvOptions):
    """Options of the delta rules."""

    allow_neg_eigval: bool = False  # write strengths up to 2 instead of 1 (arXiv 2411.12537)


TENSORS = QKV | {"attn.rule.b_proj": alone("attn.b_proj.weight"), "attn.output.norm": Row("attn.o_norm.weight")}


class DeltaNet(QueryKeyValueRule):
    """The delta rule with learnt write strength; keys and queries are L2-normalised."""

    Options = DeltaNetOptions
    options: DeltaNetOptions
    paper = Paper("2406.06484", "equation 2")
    published = Published(
        "delta_net",
        "DeltaNetForCausalLM",
        Layout(TENSORS),
        sizes=RATIOS,
        options=("use_output_gate", *CONV, "allow_neg_eigval"),
        names={"use_output_gate": "use_gate"},
        defaults={"expand_k": 1.0, "expand_v": 1.0, "num_heads": 16, "hidden_size": 2048, "use_gate": False},
        only={"use_beta": True, "qk_norm": "l2", "qk_activation": "silu"},
    )
    primitive = DELTA_RULE
    per_memory = (*QueryKeyValueRule.per_memory, "b_proj")
    activate = True
    normalise = True

    def __init__(self, sizes: RuleSizes, options: DeltaNetOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        strengths = sizes.num_heads * self.strengths_of_a_head
        self.b_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, strengths)

    @property
    def strengths_of_a_head(self) -> int:
        """How many strengths a token has in each head."""
        return 1

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[DeltaRuleRows, None, MemoryCache | None]:
        """Packed rows of the delta rule, and the cache."""
        q, k, v, (b,), cache = self.qkv(x, packing, cache, layer, self.b_proj[...])
        beta = self.strengths(b)
        return DeltaRuleRows(q, k, v, jnp.zeros_like(beta), beta), None, cache

    def strengths(self, logits: Float[Array, "N F"]) -> Float[Array, "N F"]:
        """Write strengths from their logits."""
        largest = 2.0 if self.options.allow_neg_eigval else 1.0
        return largest * jax.nn.sigmoid(widened(logits))
