"""MesaNet memories (arXiv 2506.05233): reads come from the linear map that fits all that was written best.

Per head, with ``beta = sigmoid(W_b x + b)``, ``g = log sigmoid(W_a x + a)`` and ``L = softplus(l) + lower bound``:

    H_t = exp(g_t) H_{t-1} + beta_t k_t k_t^T;   U_t = exp(g_t) U_{t-1} + beta_t k_t v_t^T
    o_t = U_t^T (H_t + diag(L))^-1 q_t

Queries and keys are convolved and L2-normalised, values are neither. The authors take thirty steps of conjugate
gradients with 1e-5 in the denominators; here the solution is exact but for rounding. Each memory has its own key,
value, decay and strength projections with their biases; the query projection, the short convolutions and l are shared
by all memories.
"""

import dataclasses
import math
from typing import Annotated

import jax
from flax import nnx

from mom_jax.fields import Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.projections import add_bias, per_memory
from mom_jax.layers.rules.published import QKV, SAME, Fields, Layout, Published, Row, Sizes, alone
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.mesa import MESA, MesaRows
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float

_START = math.log(math.expm1(0.75))  # l at first: with the default lower bound L is 1


@dataclasses.dataclass(frozen=True)
class MesaNetOptions(ConvOptions):
    """Options of MesaNet; its published layer has no output gate."""

    lambda_lower_bound: Annotated[float, Range(above=0, most=1e4)] = 0.25  # what the regulariser is at least


_TENSORS = QKV | {
    "attn.rule.a_proj": alone("attn.a_proj.weight"),
    "attn.rule.a_bias": alone("attn.a_proj.bias", SAME),
    "attn.rule.b_proj": alone("attn.b_proj.weight"),
    "attn.rule.b_bias": alone("attn.b_proj.bias", SAME),
    "attn.rule.ridge": Row("attn.lambda_params"),
    "attn.output.norm": Row("attn.o_norm.weight"),
}


def _write_sizes(fields: Fields) -> Fields:
    return {name: fields[name] for name in ("num_heads", "head_dim")}


class MesaNet(QueryKeyValueRule):
    """Decays and strengths are sigmoids with biases, one of each for a head."""

    Options = MesaNetOptions
    options: MesaNetOptions
    paper = Paper("2506.05233", "section 3")
    paces = True
    published = Published(
        "mesa_net",
        "MesaNetForCausalLM",
        Layout(_TENSORS),
        sizes=Sizes(lambda fields: {}, _write_sizes),
        options=("use_output_gate", "conv_size"),
        rule_options=("lambda_lower_bound",),
        defaults={"num_heads": 16, "head_dim": 128, "use_output_gate": False},
        fixed={"expand_v": 1.0, "use_short_conv": True},
    )
    primitive = MESA
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "a_proj", "a_bias", "b_proj", "b_bias")
    per_row = ("q_conv1d", "k_conv1d")
    activate = True
    normalise = True
    convolved = ("q", "k")

    def __init__(self, sizes: RuleSizes, options: MesaNetOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        zeros, of_heads, axes = jax.nn.initializers.zeros, (sizes.projections, sizes.num_heads), (None, "tensor")
        self.a_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.a_bias = param(rngs, zeros, of_heads, axes)
        self.b_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.b_bias = param(rngs, zeros, of_heads, axes)
        start = jax.nn.initializers.constant(_START)
        self.ridge = param(rngs, start, (sizes.key_dim,), ("tensor",), decays=False)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[MesaRows, None, MemoryCache | None]:
        """Packed rows of a memory that solves, and the cache."""
        q, k, v, (a, b), cache = self.qkv(x, packing, cache, layer, self.a_proj[...], self.b_proj[...])
        g = self.paced(jax.nn.log_sigmoid(add_bias(widened(a), packing, self.a_bias[...])), packing)
        beta = jax.nn.sigmoid(add_bias(widened(b), packing, self.b_bias[...]))
        ridge = jax.nn.softplus(self.ridge[...]) + self.options.lambda_lower_bound
        return MesaRows(q, k, v, g, beta, ridge.reshape(-1, self.sizes.head_k_dim)), None, cache
