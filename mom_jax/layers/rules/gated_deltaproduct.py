"""Gated DeltaProduct memories (arXiv 2502.10297): several steps of the delta rule for each token, and one decay.

Per head, with n L2-normalised keys, n values and n write strengths of each token:

    S_t = exp(g_t) S_{t-1};   for j in 1 ... n: S_t += k_tj (beta_tj (v_tj - S_t^T k_tj))^T;   o_t = K^-0.5 S_t^T q_t

A product of n reflections reaches rotations, which one does not. With ``n = 1`` it is Gated DeltaNet. Each memory has
its own key, value, strength and decay projections; the query projection, the short convolutions, ``A_log`` and
``dt_bias`` are shared by all memories. A head's projected channels lie together, step by step.
"""

import dataclasses
from typing import Annotated, Any

import jax.numpy as jnp
from flax import nnx

from mom_jax.fields import Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.projections import head_log_decay, log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.deltanet import DeltaNet, DeltaNetOptions
from mom_jax.layers.rules.gated_deltanet import GATED_DEFAULTS, GATED_TENSORS
from mom_jax.layers.rules.published import CONV, Form, Layout, Published, Row, Table, alone
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.ops.delta_product import DeltaProductRows, delta_product
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class GatedDeltaProductOptions(DeltaNetOptions):
    """Options of Gated DeltaProduct; its paper doubles write strengths (``allow_neg_eigval``)."""

    num_householder: Annotated[int, Range(least=1, most=64)] = 2  # steps of a token, n
    use_forget_gate: bool = True  # without it, DeltaProduct


def _tensors(config: Any) -> Table:
    """Those of Gated DeltaNet, but that channels lie step by step there, head by head within each."""
    steps = config.named_rule_options().get("num_householder", GatedDeltaProductOptions.num_householder)
    order = (config.num_heads, steps)
    own = {f"attn.rule.{x}_proj": alone(f"attn.{x}_proj.weight", Form(transposed=True, swapped=order)) for x in "kvb"}
    taps = {f"attn.rule.{x}_conv1d": Row(f"attn.{x}_conv1d.weight", Form(taps=True, swapped=order)) for x in "kv"}
    return GATED_TENSORS | own | taps


class GatedDeltaProduct(DeltaNet):
    """Decays are those of Gated DeltaNet; strengths are sigmoids, up to 2 with ``allow_neg_eigval``."""

    Options = GatedDeltaProductOptions
    options: GatedDeltaProductOptions
    paper = Paper("2502.10297", "section 3")
    published = Published(
        "gated_deltaproduct",
        "GatedDeltaProductForCausalLM",
        Layout(_tensors),
        options=("use_output_gate", *CONV, "allow_neg_eigval"),
        rule_options=("num_householder", "use_forget_gate"),
        defaults={**GATED_DEFAULTS, "num_householder": 1, "use_forget_gate": False},
    )
    per_memory = (*DeltaNet.per_memory, "a_proj")

    def __init__(self, sizes: RuleSizes, options: GatedDeltaProductOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.paces = options.use_forget_gate
        if options.use_forget_gate:
            self.a_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
            self.A_log = log_rates(rngs, sizes.num_heads, least=1e-4)
            self.dt_bias = time_step_bias(rngs, sizes.num_heads)

    @property
    def primitive(self) -> Primitive:
        """Several steps of the delta rule."""
        return delta_product(self.options.num_householder)

    @property
    def strengths_of_a_head(self) -> int:
        """n: one for each step."""
        return self.options.num_householder

    @property
    def head_channels(self) -> dict[str, int]:
        """Keys and values of all steps."""
        steps, of_step = self.options.num_householder, super().head_channels
        return {"q": of_step["q"], "k": steps * of_step["k"], "v": steps * of_step["v"]}

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[DeltaProductRows, None, MemoryCache | None]:
        """Packed rows of several delta steps, and the cache."""
        steps, forgets = self.options.num_householder, self.options.use_forget_gate
        gates = (self.b_proj[...], self.a_proj[...]) if forgets else (self.b_proj[...],)
        q, k, v, (b, *a), cache = self.qkv(x, packing, cache, layer, *gates)
        beta = heads(self.strengths(b), steps)
        g = head_log_decay(a[0], self.A_log[...], self.dt_bias[...]) if forgets else jnp.zeros_like(beta[..., 0])
        g = self.paced(g, packing)
        k, v = (y.reshape(*beta.shape, -1) for y in (k, v))
        return DeltaProductRows(q, k, v, g, beta), None, cache
