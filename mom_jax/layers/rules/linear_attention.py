"""Linear attention memories (arXiv 2006.16236, equations 16-20), without and with a fixed decay.

`LinearAttention` never forgets. `RetNet` (arXiv 2307.08621, equations 5-8) and `Lightning` (Lightning
Attention-2, arXiv 2401.04658) forget at a rate that is fixed for each head. In all three the key
and value projections are each memory's own and the query projection is shared; there are no
other parameters.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.rules.published import CONV, QKV, RATIO_DEFAULTS, RATIOS, Layout, Published, Row
from mom_jax.layers.rules.qkv import ConvOptions, QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper
from mom_jax.ops.pieces import count_before
from mom_jax.ops.precision import widened
from mom_jax.ops.rotary import rotary
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.segments import Packing
from mom_jax.typing import Array, Float, Int

GATED_TENSORS = QKV | {"attn.output.norm": Row("attn.g_norm_swish_gate.weight", also="attn.g_norm.weight")}
FEATURE_MAPS: dict[str, Callable[[Array], Array]] = {
    "identity": lambda x: x,
    "elu": lambda x: jax.nn.elu(x) + 1,
    "relu": jax.nn.relu,
}


@dataclasses.dataclass(frozen=True)
class LinearAttentionOptions(ConvOptions):
    """Options of linear attention."""

    feature_map: Literal["identity", "elu", "relu"] = "identity"  # of queries and keys: identity, elu (elu + 1) or relu
    norm_feature_map: bool = False  # divide reads by the sum of their weights


class LinearAttention(QueryKeyValueRule):
    """Linear attention with a feature map on queries and keys.

    Where reads are divided by the sum of their weights, the state has one more value channel for it.
    """

    Options = LinearAttentionOptions
    options: LinearAttentionOptions
    paper = Paper("2006.16236", "equations 16-20")
    published = Published(
        "linear_attn",
        "LinearAttentionForCausalLM",
        Layout(QKV | {"attn.output.norm": Row("attn.norm.weight")}),
        sizes=RATIOS,
        options=("feature_map", "norm_feature_map"),
        # its own default has parameters, which no map here has
        defaults={**RATIO_DEFAULTS, "feature_map": "elementwise_product"},
        only={"num_kv_heads": None, "norm_q": False, "norm_k": False, "elementwise_affine": True},
        fixed={"use_short_conv": False, "use_output_gate": False},
    )
    primitive = SCALAR_DECAY

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[ScalarDecayRows, None, MemoryCache | None]:
        """Packed rows of scalar decay without a gate, and the cache."""
        q, k, v, _, cache = self.qkv(x, packing, cache, layer)
        q, k = (FEATURE_MAPS[self.options.feature_map](y) for y in (q, k))
        if self.options.norm_feature_map:
            v = widened(v)
            v = jnp.concatenate([v, jnp.ones_like(v[..., :1])], -1)
        return ScalarDecayRows(q, k, v), None, cache

    def finished(self, o: Float[Array, "N H read"], rest: None, packing: Packing) -> Float[Array, "N H V"]:
        """Reads, divided by the sum of their weights if asked for."""
        if not self.options.norm_feature_map:
            return o
        return jnp.where(packing.valid[:, None, None], o[..., :-1] / (o[..., -1:] + 1e-10), 0)

    def state_shapes(self) -> Any:
        """[H, K, V], or [H, K, V + 1] with the normaliser in the last column."""
        values = self.sizes.head_v_dim + self.options.norm_feature_map
        return self.primitive.state(self.sizes.num_heads, self.sizes.head_k_dim, values)


class RetNet(QueryKeyValueRule):
    """Retention (arXiv 2307.08621): head h decays by ``1 - 2^(-5-h)`` for each token that its memory sees.

    Queries and keys are rotated by positions that count the tokens of the row, not those of the
    memory: a read knows how long ago something was written, however many tokens the memory has
    seen since.
    """

    paper = Paper("2307.08621", "equations 5-8")
    paces = True
    published = Published(
        "retnet",
        "RetNetForCausalLM",
        Layout(GATED_TENSORS),
        sizes=RATIOS,
        options=("use_output_gate", *CONV),
        defaults={**RATIO_DEFAULTS, "expand_v": 2.0, "num_heads": 8, "hidden_ratio": 2},
        only={"num_kv_heads": None, "feature_map": None, "elementwise_affine": True},
        fixed={"use_short_conv": False},  # its model does not hand it on to its layers
        written={"use_output_gate": True},
    )
    primitive = SCALAR_DECAY

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[ScalarDecayRows, None, MemoryCache | None]:
        """Packed rows of scalar decay, and the cache."""
        q, k, v, _, cache = self.qkv(x, packing, cache, layer)
        position = _positions(packing, cache, layer)
        q, k = (rotary(y[None], position[None], 10000.0)[0] for y in (q, k))
        g = jnp.log1p(-(2.0 ** (-5.0 - self.head_numbers(q.shape[1], q.dtype))))
        return ScalarDecayRows(q, k, v, self.paced(jnp.broadcast_to(g, q.shape[:2]), packing)), None, cache


class Lightning(QueryKeyValueRule):
    """Lightning attention (arXiv 2401.04658): head h of layer l of L decays by ``exp(-8 h / H * (1 - l / L))``."""

    paper = Paper("2401.04658", "equation 2")
    paces = True
    primitive = SCALAR_DECAY
    activate = True

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[ScalarDecayRows, None, MemoryCache | None]:
        """Packed rows of scalar decay, and the cache."""
        q, k, v, _, cache = self.qkv(x, packing, cache, layer)
        share = self.head_numbers(q.shape[1], q.dtype) / self.sizes.num_heads
        g = -8.0 * share * (1.0 - jnp.asarray(layer) / self.sizes.layers)
        return ScalarDecayRows(q, k, v, self.paced(jnp.broadcast_to(g, q.shape[:2]), packing)), None, cache


def _positions(packing: Packing, cache: MemoryCache | None, layer: int | Array) -> Int[Array, " N"]:
    """For each packed row the number of tokens that its batch row has read before; padding does not count."""
    keep = packing.row[..., 0] < packing.assignment.shape[0]
    place = jnp.cumsum(keep, 1, dtype=jnp.int32) - 1
    before = jnp.int32(0) if cache is None else cache.length[layer][:, None]
    if packing.piece is not None:
        before = count_before(place[:, -1:] + 1, packing.piece.axis)
    position = before + place
    return position.reshape(-1).at[packing.token].get(mode="clip")
