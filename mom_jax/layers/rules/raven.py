"""Raven memories (goombalab/raven, equation 18 of its paper): slots of which a token moves the few that it chooses.

Per head, with M slots whose keys hk are [M, K] and values hv are [M, V], and a router inside of the memory:

    m = sigmoid(W_r x);   r_i = m_i / sum of m over the k slots with the largest m + bias, 0 at all others
    f_i = a r_i  with  a = -exp(A_log) softplus(W_a x + dt_bias)
    hk_t = diag(e^f) hk_{t-1} + (1 - e^f) k_t^T;   hv_t = diag(e^f) hv_{t-1} + (1 - e^f) v_t^T
    o_t = hv_t^T softmax(hk_t q_t)

A slot that is not chosen stays bit for bit. Queries and keys are SiLU, then normalised within heads with a weight. The
published layer adds Gumbel noise to the logits in training, which there is none of here: a layer draws no numbers. Its
rotary embedding and its router of two layers are not available either. Each memory has its own key, value, router,
bias and decay projections; the query projection, norms, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import dataclasses
import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Divisor, Slots
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import HiddenNormOutput, Output
from mom_jax.layers.projections import add_bias, head_log_decay, log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.published import (
    MATRIX,
    RATIO_DEFAULTS,
    RATIOS,
    SAME,
    Fields,
    Layout,
    Published,
    Row,
    Sizes,
    Table,
    alone,
    ratio,
)
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleOptions, RuleSizes, heads
from mom_jax.ops.gated_slots import GatedSlotsRows, gated_slots
from mom_jax.ops.norm import rms_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.ops.sparse_choice import among_largest
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class RavenOptions(RuleOptions):
    """Options of Raven."""

    num_slots: Slots = 64  # M for each head
    slot_top_k: Slots | None = None  # slots that a token moves; M / 8 if None
    slot_scores: Literal["sigmoid", "softmax"] = "sigmoid"  # softmax is not renormalised over the chosen
    slot_decay: Literal["head", "slot"] = "head"  # a; slot: log sigmoid(W_f x) / gate_logit_normalizer, for each
    slot_bias: bool = True  # the choice of slots has a bias
    gate_logit_normalizer: Divisor = 8  # with slot_decay slot: the larger, the slower slots move

    def __post_init__(self):
        super().__post_init__()
        if self.slot_top_k is not None and self.slot_top_k > self.num_slots:
            raise InputError("slot_top_k", self.slot_top_k, f"must be at most num_slots ({self.num_slots})")

    @property
    def moved(self) -> int:
        """Slots that a token moves."""
        return self.slot_top_k or max(1, self.num_slots // 8)


_DECAYS = {"Mamba2": "head", "GLA": "slot"}


def _tensors(config: Any) -> Table:
    """Gate and norm have other names with a gate than without."""
    own = config.named_rule_options().get("slot_decay", RavenOptions.slot_decay)
    return {
        **{f"attn.rule.{x}_proj": alone(f"attn.{x}_proj.weight") for x in ("k", "v", "r")},
        "attn.rule.q_proj.weight": Row("attn.q_proj.weight", MATRIX),
        "attn.rule.r_bias": alone("attn.r_bias", SAME),
        "attn.rule.decay_proj": alone("attn.a_proj.weight" if own == "head" else "attn.f_proj.weight"),
        **{f"attn.rule.{x}": Row(f"attn.{x}") for x in ("A_log", "dt_bias")},
        **{f"attn.rule.{x}_norm": Row(f"attn.{x}_norm.weight") for x in ("q", "k")},
        "attn.output.g_proj.weight": Row("attn.o_gate_proj.weight", MATRIX),
        "attn.output.norm": Row("attn.o_norm.weight" if config.use_output_gate else "attn.g_norm.weight"),
        "attn.output.o_proj.weight": Row("attn.o_proj.weight", MATRIX),
    }


def _read_sizes(fields: Fields) -> Fields:
    decay = fields["decay_type"]
    if not isinstance(decay, str) or decay not in _DECAYS:
        raise InputError("decay_type", decay, f"expected {' or '.join(_DECAYS)}")
    for name in ("expand_k", "expand_v"):
        channels = fields["hidden_size"] * fields[name]
        if not math.isclose(channels, round(channels)):
            raise InputError(name, fields[name], f"times hidden_size ({fields['hidden_size']}) must be a whole number")
        fields = fields | {name: ratio((fields["hidden_size"], round(channels)))}
    sizes = RATIOS.read(fields)
    slots = fields["num_slots"] or sizes["head_dim"]
    few = fields["slot_top_k"]
    if fields["num_slots"] is None and isinstance(few, int):
        few = min(few, slots)
    return sizes | {"num_slots": slots, "slot_top_k": few, "slot_decay": _DECAYS[decay]}


def _write_sizes(fields: Fields) -> Fields:
    few = fields["slot_top_k"] or max(1, fields["num_slots"] // 8)
    decay = next(theirs for theirs, ours in _DECAYS.items() if ours == fields["slot_decay"])
    return RATIOS.write(fields) | {"topk": few, "decay_type": decay, "add_gumbel_noise": False}


class Raven(QueryKeyValueRule):
    """Gated slots, moved by a sparse router inside of each memory."""

    Options = RavenOptions
    options: RavenOptions
    paper = Paper("github.com/goombalab/raven", "equation 18")
    paces = True
    published = Published(
        "raven",
        "RavenForCausalLM",
        Layout(_tensors),
        sizes=Sizes(_read_sizes, _write_sizes),
        options=("use_output_gate", "num_slots", "gate_logit_normalizer"),
        rule_options=("slot_top_k", "slot_scores", "slot_decay", "slot_bias"),
        names={"slot_top_k": "topk", "slot_scores": "router_score", "slot_bias": "bias_rmm"},
        defaults={
            **RATIO_DEFAULTS,
            "num_slots": 64,
            "gate_logit_normalizer": 8,
            "use_output_gate": False,
            "topk": 32,
            "decay_type": "Mamba2",
            "router_score": "sigmoid",
            "bias_rmm": False,
        },
        only={
            "num_kv_heads": None,
            "feature_map": "swish",
            "router_type": "lin",
            "use_rope": False,
            "elementwise_affine": True,
        },
    )
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "r_proj", "r_bias", "decay_proj")

    def __init__(self, sizes: RuleSizes, options: RavenOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        slots, ones, zeros = sizes.num_heads * options.num_slots, jax.nn.initializers.ones, jax.nn.initializers.zeros
        decays = slots if options.slot_decay == "slot" else sizes.num_heads
        self.r_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, slots)
        if options.slot_bias:
            of_slots = sizes.projections, sizes.num_heads, options.num_slots
            self.r_bias = param(rngs, zeros, of_slots, (None, "tensor", None), decays=False)
        self.decay_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, decays)
        self.q_norm = param(rngs, ones, (sizes.head_k_dim,), (None,), decays=False)
        self.k_norm = param(rngs, ones, (sizes.head_k_dim,), (None,), decays=False)
        if options.slot_decay == "head":
            self.A_log = log_rates(rngs, sizes.num_heads, least=1e-4)
            self.dt_bias = time_step_bias(rngs, sizes.num_heads)

    @property
    def primitive(self) -> Primitive:
        """Gated slots."""
        return gated_slots(self.options.num_slots)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: RavenOptions, rngs: nnx.Rngs) -> Output:
        """SiLU, norm within heads and gate; without the gate SiLU and a norm over all heads."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        if options.use_output_gate:
            return Output(*shape, before=jax.nn.silu, gate=True, norm_eps=options.norm_eps, rngs=rngs)
        return HiddenNormOutput(*shape, before=jax.nn.silu, norm_eps=options.norm_eps, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[GatedSlotsRows, None, MemoryCache | None]:
        """Packed rows of gated slots, and the cache."""
        q, k, v, (r, a), cache = self.qkv(x, packing, cache, layer, self.r_proj[...], self.decay_proj[...])
        q, k, v = (jax.nn.silu(widened(y)) for y in (q, k, v))
        q = rms_norm(q, self.q_norm[...], self.options.norm_eps)
        k = rms_norm(k, self.k_norm[...], self.options.norm_eps)
        g = self.paced(self._log_decays(a) * self._shares(r, packing), packing)
        return GatedSlotsRows(q, k, v, g, -jnp.expm1(g)), None, cache

    def _shares(self, logits: Float[Array, "N F"], packing: Packing) -> Float[Array, "N H M"]:
        """How much of its decay each slot gets, 0 but for the chosen ones."""
        logits, slots, sigmoid = widened(logits), self.options.num_slots, self.options.slot_scores == "sigmoid"
        scores = jax.nn.sigmoid(heads(logits, slots)) if sigmoid else jax.nn.softmax(heads(logits, slots), -1)
        biased = scores
        if self.options.slot_bias:
            bias = self.r_bias[...]
            biased = heads(add_bias(scores.reshape(logits.shape), packing, bias.reshape(len(bias), -1)), slots)
        chosen = jnp.where(among_largest(biased, self.options.moved), scores, 0)
        return chosen / (jnp.sum(chosen, -1, keepdims=True) + 1e-9) if sigmoid else chosen

    def _log_decays(self, logits: Float[Array, "N F"]) -> Float[Array, "N H M"] | Float[Array, "N H 1"]:
        if self.options.slot_decay == "head":
            return head_log_decay(logits, self.A_log[...], self.dt_bias[...])[..., None]
        per_slot = heads(widened(logits), self.options.num_slots)
        return jax.nn.log_sigmoid(per_slot) / self.options.gate_logit_normalizer
