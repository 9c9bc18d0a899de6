"""Mamba2 memories (arXiv 2405.21060, sections 6 and 7): a state-space recurrence with one decay for each head.

In the terms of the other rules: the paper's C is the query, B the key, x the value, and all heads
share queries and keys. Each memory has its own key, value and time-step projections; the query
projection, the convolutions, ``A_log``, ``dt_bias`` and the skip ``D`` are shared by all memories.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.output import HiddenNormOutput, Output
from mom_jax.layers.projections import log_rates, per_memory, time_step_bias
from mom_jax.layers.rules.published import (
    BACKBONE,
    MATRIX,
    STATE_DEFAULTS,
    STATE_SIZES,
    Fields,
    Form,
    Layout,
    Published,
    Row,
    Sizes,
    Table,
    alone,
)
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes
from mom_jax.ops.precision import widened
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float

_ANY_STEP = (0.0, math.inf)


def state_space_tensors(config: Any, further: int = 0) -> Table:
    """One projection to gate, value, key, query and time step, and to ``further`` numbers for each head; one
    convolution over value, key and query."""
    values, keys, heads = config.value_dim, config.head_dim, config.num_heads
    steps = 2 * values + 2 * keys  # first row
    total = steps + heads * (1 + further)
    convolved = {"v": 0, "k": values, "q": values + keys}  # first rows
    table: Table = {
        "attn.output.g_proj.weight": Row("mixer.in_proj.weight", Form(transposed=True, part=(0, total))),
        "attn.rule.A_log": Row("mixer.A_log"),
        "attn.rule.dt_bias": Row("mixer.dt_bias"),
        "attn.rule.D": Row("mixer.D"),
        "attn.output.norm": Row("mixer.norm.weight"),
        "attn.output.o_proj.weight": Row("mixer.out_proj.weight", MATRIX),
        "attn_norm.weight": Row("norm.weight"),
    }
    for name, first in convolved.items():
        form = Form(transposed=True, part=(values + first, total))
        row = Row("mixer.in_proj.weight", form) if name == "q" else alone("mixer.in_proj.weight", form)
        table["attn.rule.q_proj.weight" if name == "q" else f"attn.rule.{name}_proj"] = row
        part = (first, values + 2 * keys)
        table[f"attn.rule.{name}_conv1d"] = Row("mixer.conv1d.weight", Form(taps=True, part=part))
        table[f"attn.rule.{name}_conv1d_bias"] = Row("mixer.conv1d.bias", Form(part=part))
    return table | {"attn.rule.dt_proj": alone("mixer.in_proj.weight", Form(transposed=True, part=(steps, total)))}


def _read_sizes(fields: Fields) -> Fields:
    limit = fields.get("dt_limit", _ANY_STEP)
    if not isinstance(limit, list | tuple) or tuple(map(_number, limit)) != _ANY_STEP:
        raise InputError("dt_limit", limit, f"not available in a mamba2 model; only {_ANY_STEP} is")
    return STATE_SIZES.read(fields) | {"conv_size": fields["conv_kernel"]}


def _number(value: Any) -> Any:
    """A number of a ``config.json``; the transformers library writes infinity as an object."""
    return math.inf if value == {"__float__": "Infinity"} else value


def _write_sizes(fields: Fields) -> Fields:
    return STATE_SIZES.write(fields) | {"conv_kernel": fields["conv_size"]}


PUBLISHED = Published(
    "mamba2",
    "Mamba2ForCausalLM",
    Layout(state_space_tensors, {}, BACKBONE, "backbone.layers.{layer}."),
    sizes=Sizes(_read_sizes, _write_sizes),
    defaults={**STATE_DEFAULTS, "conv_kernel": 4},
    only={
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "D_has_hdim": False,
        "rmsnorm": True,
        "norm_before_gate": False,
        "attn": None,
    },
    fixed={"intermediate_size": 0},
    written={"attn": None, "use_output_gate": True, "use_short_conv": True},
)


class Mamba2(QueryKeyValueRule):
    """``S_t = exp(-exp(A_log) dt) S_{t-1} + k (dt v)^T;  o = S^T q + D v`` with ``dt = softplus(W x + dt_bias)``.

    K is the paper's state size N, V its head size P.
    """

    paper = Paper("2405.21060", "sections 6 and 7")
    paces = True
    published = PUBLISHED
    primitive = SCALAR_DECAY
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "dt_proj")
    whole_history = ("q", "k")
    activate = True
    shared_keys = True
    conv_bias = True

    def __init__(self, sizes: RuleSizes, options: ConvOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        heads = sizes.num_heads
        self.dt_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, heads)
        self.A_log = log_rates(rngs, heads, least=1.0)
        self.dt_bias = time_step_bias(rngs, heads)
        self.D = param(rngs, jax.nn.initializers.ones, (heads,), ("tensor",), decays=False)

    @classmethod
    def make_output(cls, sizes: RuleSizes, options: ConvOptions, rngs: nnx.Rngs) -> Output:
        """Gate, then a norm over all heads."""
        shape = (sizes.hidden_size, sizes.num_heads, sizes.head_v_dim)
        return HiddenNormOutput(*shape, gate=options.use_output_gate, norm_eps=options.norm_eps, rngs=rngs)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[ScalarDecayRows, Float[Array, "N H V"], MemoryCache | None]:
        """Packed rows of scalar decay, the values for the skip, and the cache."""
        q, k, v, (dt,), cache = self.qkv(x, packing, cache, layer, self.dt_proj[...])
        q, k = (jnp.broadcast_to(y, (*v.shape[:2], y.shape[-1])) for y in (q, k))
        step, value = jax.nn.softplus(widened(dt) + self.dt_bias[...]), widened(v)
        g = self.paced(-jnp.exp(self.A_log[...]) * step, packing)
        rows = ScalarDecayRows(q, k, value * step[..., None], g)
        return rows, value, cache

    def finished(
        self, o: Float[Array, "N H V"], rest: Float[Array, "N H V"], packing: Packing
    ) -> Float[Array, "N H V"]:
        """Reads, with D times the token's own value."""
        return o + jnp.where(packing.valid[:, None, None], self.D[...][:, None] * rest, 0)
