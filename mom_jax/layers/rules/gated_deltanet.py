"""Gated DeltaNet memories (arXiv 2412.06464, equation 10), the default rule of MoM.

Each memory has its own key, value, gate and strength projections; the query projection, the
short convolutions, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.projections import head_log_decay, log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.deltanet import TENSORS, DeltaNet, DeltaNetOptions
from mom_jax.layers.rules.published import CONV, Layout, Published, Row, alone
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.delta_rule import DeltaRuleRows
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class GatedDeltaNetOptions(DeltaNetOptions):
    """Options of Gated DeltaNet."""

    # without a cache, convolve the sequences of the routed memories end to end (`mom_jax.ops.reference_conv_leak`)
    reference_conv_leak: bool = False


GATED_DEFAULTS = {"expand_v": 2.0, "num_heads": 6, "num_hidden_layers": 21}
GATED_TENSORS = TENSORS | {
    "attn.rule.a_proj": alone("attn.a_proj.weight"),
    "attn.rule.A_log": Row("attn.A_log"),
    "attn.rule.dt_bias": Row("attn.dt_bias"),
}


class GatedDeltaNet(DeltaNet):
    """The delta rule with learnt decay ``exp(-exp(A_log) softplus(W_a x + dt_bias))`` for each head."""

    Options = GatedDeltaNetOptions
    options: GatedDeltaNetOptions
    paper = Paper("2412.06464", "equation 10")
    paces = True
    published = Published(
        "gated_deltanet",
        "GatedDeltaNetForCausalLM",
        Layout(GATED_TENSORS),
        options=("use_output_gate", *CONV, "allow_neg_eigval"),
        names={"use_output_gate": "use_gate"},
        defaults={**GATED_DEFAULTS, "use_gate": True},
        only={"num_v_heads": None, "output_gate_activation": "swish"},
    )
    per_memory = (*DeltaNet.per_memory, "a_proj")

    def __init__(self, sizes: RuleSizes, options: GatedDeltaNetOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.a_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.A_log = log_rates(rngs, sizes.num_heads, least=1e-4)
        self.dt_bias = time_step_bias(rngs, sizes.num_heads)

    @property
    def leaking_memories(self) -> int:
        """The routed ones where that is asked for."""
        return self.sizes.routed if self.options.reference_conv_leak else 0

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[DeltaRuleRows, None, MemoryCache | None]:
        """Packed rows of the delta rule, and the cache."""
        gates = jnp.concatenate([self.b_proj[...], self.a_proj[...]], -1)
        q, k, v, (gates,), cache = self.qkv(x, packing, cache, layer, gates)
        b, a = jnp.split(gates, 2, axis=-1)
        g = self.paced(head_log_decay(a, self.A_log[...], self.dt_bias[...]), packing)
        return DeltaRuleRows(q, k, v, g, self.strengths(b)), None, cache
