"""Log-linear attention (arXiv 2506.04761): memories that keep the past in a hierarchy of states, by distance.

`LogLinear` goes over any rule of scalar or vector decay, whose state becomes one for each of L levels. A token lies
at level 0 when it is read by itself and at level ``bit_length(t xor i)`` when it is read later, both counted in the
memory's own sequence from where its document begins. A read weighs the levels by ``softplus(scale * W_l x)``:

    o_t = sum over l of softplus(scale_l W_l x_t) * (what the rule would read of the tokens at level l)

With all weights 1 it is the rule itself. A memory forgets everything after every 2^(L-1) of its tokens. The projection
to the weights is each memory's own, their scale is shared by all memories. Over a rule of your own:

    class LogLinearSimpleGLA(LogLinear, SimpleGLA):
        Options = LogLinearSimpleGLAOptions  # of (LogLinearOptions, SimpleGLAOptions)
        per_memory = (*SimpleGLA.per_memory, "level_proj")
"""

import dataclasses
from typing import Annotated, Any

import jax
from flax import nnx

from mom_jax.fields import Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import param
from mom_jax.layers.projections import per_memory, project
from mom_jax.layers.rules.gla import GLA, GLAOptions
from mom_jax.layers.rules.mamba2 import PUBLISHED, Mamba2, state_space_tensors
from mom_jax.layers.rules.published import BLOCK, Form, Row, Table, alone
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleSizes, heads
from mom_jax.ops.log_linear import LogLinearRows, log_linear
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class LogLinearOptions(ConvOptions):
    """Options of log-linear attention."""

    log_linear_levels: Annotated[int, Range(least=2, most=24)] = 15  # L; 15 hold 16,384 tokens


class LogLinear(QueryKeyValueRule):
    """Levels over the rule that follows it among the bases of a class."""

    Options = LogLinearOptions
    options: LogLinearOptions
    paper = Paper("2506.04761", "section 3")
    published = None

    def __init__(self, sizes: RuleSizes, options: LogLinearOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        levels, ones = options.log_linear_levels, jax.nn.initializers.ones
        self.level_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads * levels)
        self.level_scale = param(rngs, ones, (sizes.num_heads, levels), ("tensor", None), decays=False)

    @property
    def primitive(self) -> Primitive:
        """The hierarchy of levels."""
        return log_linear(self.options.log_linear_levels)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[LogLinearRows, Any, MemoryCache | None]:
        """The rule's packed rows with weights of levels, and what it returns besides."""
        rows, rest, cache = super().rows(x, packing, cache, layer)
        (logits,) = project(x, packing, (self.level_proj[...],), self.options.impl)
        logits = heads(widened(logits), self.options.log_linear_levels)
        weights = jax.nn.softplus(self.level_scale[...] * logits)
        return LogLinearRows(rows.q, rows.k, rows.v, weights, packing.valid, rows.g), rest, cache


def _tensors(config: Any) -> Table:
    """Those of Mamba2, with all levels of a head behind the time steps."""
    levels = LogLinearOptions.log_linear_levels
    first = 2 * config.value_dim + 2 * config.head_dim + config.num_heads
    part = (first, first + levels * config.num_heads)
    return state_space_tensors(config, levels) | {
        "attn.rule.level_proj": alone("mixer.in_proj.weight", Form(transposed=True, part=part)),
        "attn.rule.level_scale": Row("mixer.L"),
        "attn_norm.weight": Row("mixer_norm.weight"),
    }


class LogLinearMamba2(LogLinear, Mamba2):
    """Levels over Mamba2: scalar decay."""

    published = dataclasses.replace(
        PUBLISHED,
        model_type="log_linear_mamba2",
        architecture="LogLinearMamba2ForCausalLM",
        tensors=PUBLISHED.tensors._replace(memory=_tensors, block=BLOCK),
        fixed={"intermediate_size": None, "hidden_ratio": 4},
    )
    per_memory = (*Mamba2.per_memory, "level_proj")


@dataclasses.dataclass(frozen=True)
class LogLinearGLAOptions(LogLinearOptions, GLAOptions):
    """Options of both."""


class LogLinearGLA(LogLinear, GLA):
    """Levels over gated linear attention: a decay for each key channel."""

    Options = LogLinearGLAOptions
    options: LogLinearGLAOptions
    per_memory = (*GLA.per_memory, "level_proj")
