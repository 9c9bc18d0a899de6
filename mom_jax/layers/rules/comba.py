"""Comba memories (arXiv 2506.02475): a delta rule that corrects what it reads before it decays, and its query.

Per head, with L2-normalised queries, keys and feedback keys p, and a scalar D for each head:

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - S_{t-1}^T p_t)^T
    o_t = K^-0.5 S_t^T q'_t;   q' = l2_norm(q - D sigmoid(decay) k)  of the queries and keys before they are normalised

In the authors' kernels ``p = l2_norm(sigmoid(decay) k)``, from which the factor cancels; with the option
``feedback_decay`` it acts, ``p = sigmoid(decay) l2_norm(k)``. With ``g = 0`` and ``D = 0`` it is the delta rule. Each
memory has its own key, value, strength and decay projections; the query projection, the short convolutions, ``A_log``,
``dt_bias``, ``decay`` and ``D`` are shared by all memories.
"""

import dataclasses
from typing import Annotated

import jax
from flax import nnx

from mom_jax.fields import Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import Output
from mom_jax.layers.projections import head_log_decay, log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.gated_deltanet import GATED_DEFAULTS, GATED_TENSORS
from mom_jax.layers.rules.published import CONV, Layout, Published, Row
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.erase_and_write import ERASE_AND_WRITE, EraseAndWriteRows, comba_rows, erase_and_write_flops
from mom_jax.ops.norm import l2_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class CombaOptions(ConvOptions):
    """Options of Comba."""

    correction_factor: Annotated[float, Range(least=0, most=100)] = 1.0  # D at first; small models may want 0.02
    feedback_decay: bool = False  # erase with sigmoid(decay) k, where the authors' kernels erase with k


_TENSORS = GATED_TENSORS | {"attn.rule.decay": Row("attn.decay"), "attn.rule.D": Row("attn.D")}


class Comba(QueryKeyValueRule):
    """Decays and write strengths are those of Gated DeltaNet; the output's gate is a sigmoid."""

    Options = CombaOptions
    options: CombaOptions
    paper = Paper("2506.02475", "section 3")
    paces = True
    published = Published(
        "comba",
        "CombaForCausalLM",
        Layout(_TENSORS),
        options=("use_output_gate", *CONV),
        rule_options=("correction_factor",),
        defaults=GATED_DEFAULTS,
        only={"num_v_heads": None},
    )
    primitive = ERASE_AND_WRITE
    per_memory = (*QueryKeyValueRule.per_memory, "b_proj", "a_proj")
    activate = True

    def __init__(self, sizes: RuleSizes, options: CombaOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        heads, constant = sizes.num_heads, jax.nn.initializers.constant
        self.b_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, heads)
        self.a_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, heads)
        self.A_log = log_rates(rngs, heads, least=1e-4)
        self.dt_bias = time_step_bias(rngs, heads)
        self.decay = param(rngs, constant(1.0), (heads,), ("tensor",), decays=False)
        self.D = param(rngs, constant(options.correction_factor), (heads,), ("tensor",), decays=False)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: CombaOptions, rngs: nnx.Rngs) -> Output:
        """Norm within heads and a sigmoid gate."""
        gate = {"gate": options.use_output_gate, "activation": jax.nn.sigmoid, "norm_eps": options.norm_eps}
        return Output(sizes.hidden_size, sizes.num_heads, sizes.head_v_dim, **gate, rngs=rngs)

    def flops(self, chunk: int) -> tuple[float, float]:
        """Of decays of heads."""
        return erase_and_write_flops(chunk, self.sizes.head_k_dim, self.sizes.head_v_dim, by_head=True)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[EraseAndWriteRows, None, MemoryCache | None]:
        """Packed rows of a delta rule with two keys, and the cache."""
        q, k, v, (b, a), cache = self.qkv(x, packing, cache, layer, self.b_proj[...], self.a_proj[...])
        g = self.paced(head_log_decay(a, self.A_log[...], self.dt_bias[...]), packing)
        share, key = jax.nn.sigmoid(self.decay[...])[:, None], widened(k)
        corrected = l2_norm(widened(q) - self.D[...][:, None] * share * key)
        feedback = share * l2_norm(key) if self.options.feedback_decay else l2_norm(share * key)
        rows = comba_rows(corrected, l2_norm(key), v, feedback, g, jax.nn.sigmoid(widened(b)))
        return rows, None, cache
