"""Mamba-3 memories with one input and one output (SISO; arXiv 2603.15569, section 3): trapezoidal, with rotations.

In the terms of the other rules: the paper's C is the query, B the key, x the value, K its state size N and V its head
size P. Per head, with ``dt = softplus(W_dt x + dt_bias)``, ``g = A dt`` for a rate ``A < 0`` of the token,
``lambda = sigmoid(W x)``, and R_t(y) that turns pairs of channels by the sum of ``pi tanh(W_angle x) dt`` up to t:

    S_t = e^g S_{t-1} + (1 - lambda) dt e^g R_{t-1}(k_{t-1}) v_{t-1}^T + lambda dt R_t(k_t) v_t^T
    o_t = S_t^T R_t(q_t) + D v_t

Queries and keys are normalised and get a bias of each head before they turn; there are no convolutions. The token
before is the one that the same memory saw. Each memory has its own key, value, rate, step, lambda and angle
projections; the query projection, norms, biases, ``dt_bias`` and the skip ``D`` are shared by all memories.
"""

import dataclasses
import math
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import Output
from mom_jax.layers.projections import per_memory, time_step_bias
from mom_jax.layers.rules.published import (
    BACKBONE,
    MATRIX,
    STATE_DEFAULTS,
    STATE_SIZES,
    TAPS,
    Fields,
    Form,
    Layout,
    Published,
    Row,
    Sizes,
    Table,
    alone,
)
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleOptions, RuleSizes, heads
from mom_jax.ops.norm import rms_norm
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.ops.trapezoid import TrapezoidRows, trapezoid
from mom_jax.typing import Array, Float

_SLOWEST = 1e-4  # the least rate
_RATES = {
    "softplus": jax.nn.softplus,
    "rational": lambda x: jnp.where(x >= 0, 1 + jnp.maximum(x, 0), 1 / (1 - jnp.minimum(x, 0))),
}


@dataclasses.dataclass(frozen=True)
class Mamba3Options(RuleOptions):
    """Options of Mamba-3."""

    rope_fraction: Annotated[float, Range(least=0, most=1)] = 0.5  # of the channels that turn
    rate: Literal["softplus", "rational"] = "softplus"  # of W_A x; rational: 1 + x above 0, 1 / (1 - x) below
    outproj_norm: bool = False  # normalise reads within heads before they are gated


def _tensors(config: Any) -> Table:
    """One projection to gate, value, key, query, then step, rate and lambda of all heads, and angles."""
    values, keys, heads = config.value_dim, config.head_dim, config.num_heads
    turned = config.named_rule_options().get("rope_fraction", Mamba3Options.rope_fraction)
    parts = {
        "attn.output.g_proj.weight": values,
        "attn.rule.v_proj": values,
        "attn.rule.k_proj": keys,
        "attn.rule.q_proj.weight": keys,
        "attn.rule.gate_proj": 3 * heads,
        "attn.rule.angle_proj": int(keys * turned) // 2,
    }
    table: Table = {
        "attn.rule.dt_bias": Row("mixer.dt_bias"),
        "attn.rule.D": Row("mixer.D"),
        "attn.rule.q_norm": Row("mixer.C_norm.weight"),
        "attn.rule.k_norm": Row("mixer.B_norm.weight"),
        "attn.rule.q_bias": Row("mixer.C_bias", TAPS),
        "attn.rule.k_bias": Row("mixer.B_bias", TAPS),
        "attn.output.o_proj.weight": Row("mixer.out_proj.weight", MATRIX),
        "attn_norm.weight": Row("norm.weight"),
    }
    first, total = 0, sum(parts.values())
    for name, rows in parts.items():
        order = (heads, 3) if name == "attn.rule.gate_proj" else None
        form = Form(transposed=True, part=(first, total), swapped=order)
        of_all = name.endswith(".weight")
        table[name] = Row("mixer.in_proj.weight", form) if of_all else alone("mixer.in_proj.weight", form)
        first += rows
    return table


def _write_sizes(fields: Fields) -> Fields:
    if fields["rope_fraction"] not in (0.5, 1):
        raise InputError("rope_fraction", fields["rope_fraction"], "the PyTorch library's mamba3 has 0.5 or 1 only")
    return STATE_SIZES.write(fields)


class Mamba3(QueryKeyValueRule):
    """All heads share queries and keys but for their biases and angles."""

    Options = Mamba3Options
    options: Mamba3Options
    paper = Paper("2603.15569", "section 3")
    paces = True
    published = Published(
        "mamba3",
        "Mamba3ForCausalLM",
        Layout(_tensors, {}, BACKBONE, "backbone.layers.{layer}."),
        sizes=Sizes(STATE_SIZES.read, _write_sizes),
        rule_options=("rope_fraction",),
        defaults=STATE_DEFAULTS,
        only={
            "n_groups": 1,
            "use_bias": False,
            "A_floor": _SLOWEST,
            "is_outproj_norm": False,
            "is_mimo": False,
            "attn": None,
        },
        fixed={"intermediate_size": 0},
        written={"attn": None, "use_output_gate": True},
    )
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "gate_proj", "angle_proj")
    shared_keys = True

    def __init__(self, sizes: RuleSizes, options: Mamba3Options, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        ones, keys, of_head = jax.nn.initializers.ones, sizes.head_k_dim, (sizes.num_heads, sizes.head_k_dim)
        self.gate_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, 3 * sizes.num_heads)
        self.angle_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, self.pairs, split=False)
        self.dt_bias = time_step_bias(rngs, sizes.num_heads)
        self.q_norm = param(rngs, ones, (keys,), (None,), decays=False)
        self.k_norm = param(rngs, ones, (keys,), (None,), decays=False)
        self.q_bias = param(rngs, ones, of_head, ("tensor", None), decays=False)
        self.k_bias = param(rngs, ones, of_head, ("tensor", None), decays=False)
        self.D = param(rngs, ones, (sizes.num_heads,), ("tensor",), decays=False)

    @property
    def pairs(self) -> int:
        """Pairs of channels that turn."""
        return int(self.sizes.head_k_dim * self.options.rope_fraction) // 2

    @property
    def primitive(self) -> Primitive:
        """The trapezoidal rule."""
        return trapezoid(self.pairs)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: Mamba3Options, rngs: nnx.Rngs) -> Output:
        """A gate, behind a norm within heads if asked for."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        norm_eps = options.norm_eps if options.outproj_norm else None
        return Output(*shape, gate=options.use_output_gate, norm_eps=norm_eps, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[TrapezoidRows, Float[Array, "N H V"], MemoryCache | None]:
        """Packed rows of the trapezoidal rule, the values for the skip, and the cache."""
        q, k, v, (gates, angle), cache = self.qkv(x, packing, cache, layer, self.gate_proj[...], self.angle_proj[...])
        step, rate, share = jnp.moveaxis(heads(widened(gates), 3), -1, 0)
        step, share = jax.nn.softplus(step + self.dt_bias[...]), jax.nn.sigmoid(share)
        g = self.paced(-jnp.maximum(_RATES[self.options.rate](rate), _SLOWEST) * step, packing)
        turn = math.pi * jnp.tanh(widened(angle))[:, None] * step[..., None]
        q, k, v = widened(q), widened(k), widened(v)
        q = rms_norm(q, self.q_norm[...], self.options.norm_eps) + self.q_bias[...]
        k = rms_norm(k, self.k_norm[...], self.options.norm_eps) + self.k_bias[...]
        return TrapezoidRows(q, k, v, g, share * step, (1 - share) * step, turn, packing.valid), v, cache

    def finished(
        self, o: Float[Array, "N H V"], rest: Float[Array, "N H V"], packing: Packing
    ) -> Float[Array, "N H V"]:
        """Reads, with D times the token's own value."""
        return o + jnp.where(packing.valid[:, None, None], self.D[...][:, None] * rest, 0)
