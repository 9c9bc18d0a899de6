"""Sparse state expansion (arXiv 2507.16577): a token writes a few rows of a few partitions of a large state.

A memory is one partition that sees every token and P that share their projections. Per head, with the shares
``e = softmax(W_e x)`` of the partitions, of which a token takes the largest few, T, and lets the others be:

    S^i_t = diag(exp(g_t)) S^i_{t-1} + e_i k_t v_t^T  for i in T
    o_t = K^-0.5 (S^0_t^T q_t + sum over T of e_i S^i_t^T q'_t)

Keys are a softmax over their largest few logits, the rows that are written; rows that are not chosen neither change nor
decay. Gates are ``log sigmoid(W_2 W_1 x + b) / normaliser`` as in gated linear attention; the partition for all, S^0,
has queries, keys and gates of its own, of which those of the others differ by low-rank projections. As in the authors'
code shares are not renormalised, count in writing and in reading, and there is an always-on partition. Theirs has no
choice of rows: with ``row_top_k`` None all are written.

All partitions lie in one state of (P + 1) K rows, with 0 for the keys, queries and gates of what is not chosen, so a
token costs as much as in a memory of that many rows; sparse is what it changes. The authors' auxiliary loss on the
choice of partitions is not available. Each memory has its own key, value, gate and share projections; the query
projections are shared by all memories.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Channels, Divisor, Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.projections import add_bias, per_memory, through
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleOptions, RuleSizes, heads
from mom_jax.ops.precision import widened
from mom_jax.ops.segments import Packing, pack
from mom_jax.ops.sparse_choice import among_largest
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows
from mom_jax.typing import Array, Float


@dataclasses.dataclass(frozen=True)
class SSEOptions(RuleOptions):
    """Options of sparse state expansion."""

    partitions: Annotated[int, Range(least=1, most=2**10)] = 4  # besides the one for all, P
    partition_top_k: Annotated[int, Range(least=1, most=2**10)] = 1  # that a token is written to and read from
    row_top_k: Annotated[int, Range(least=1, most=2**20)] | None = None  # rows of a partition that are written; all
    gate_low_rank_dim: Channels = 16  # rank of the gates' projections
    gate_logit_normalizer: Divisor = 16  # the larger, the slower memories forget

    def __post_init__(self):
        super().__post_init__()
        if self.partition_top_k > self.partitions:
            remedy = f"must be at most partitions ({self.partitions})"
            raise InputError("partition_top_k", self.partition_top_k, remedy)


class SSE(QueryKeyValueRule):
    """Queries and values pass a SiLU, keys a softmax."""

    Options = SSEOptions
    options: SSEOptions
    paper = Paper("2507.16577", "section 3")
    paces = True
    primitive = VECTOR_DECAY
    per_memory = (*QueryKeyValueRule.per_memory, "k_down", "k_up", "e_proj", "gk_down", "gk_up", "gk_bias")

    def __init__(self, sizes: RuleSizes, options: SSEOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        if options.row_top_k is not None and options.row_top_k > sizes.head_k_dim:
            remedy = f"must be at most the rows of a partition, head_dim ({sizes.head_k_dim})"
            raise InputError("row_top_k", options.row_top_k, remedy)
        memories, hidden, rank, keys = sizes.projections, sizes.hidden_size, options.gate_low_rank_dim, sizes.key_dim
        self.q_down = Linear(hidden, sizes.head_v_dim, split="whole", init=mixer_init, rngs=rngs)
        self.q_up = Linear(sizes.head_v_dim, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_down = per_memory(rngs, memories, hidden, sizes.head_v_dim, split=False)
        self.k_up = per_memory(rngs, memories, sizes.head_v_dim, keys)
        self.e_proj = per_memory(rngs, memories, hidden, options.partitions, split=False)
        self.gk_down = per_memory(rngs, memories, hidden, rank, split=False)
        self.gk_up = per_memory(rngs, memories, rank, 2 * keys)
        self.gk_bias = param(rngs, jax.nn.initializers.zeros, (memories, 2 * keys), (None, "tensor"))

    @property
    def scale(self) -> float:
        """Of one partition's keys."""
        return self.sizes.head_k_dim**-0.5

    @property
    def state_rows(self) -> int:
        """Rows of the state of a head, (P + 1) K."""
        return (self.options.partitions + 1) * self.sizes.head_k_dim

    def state_shapes(self) -> Any:
        """[H, (P + 1) K, V], the partition for all tokens first."""
        return self.primitive.state(self.sizes.num_heads, self.state_rows, self.sizes.head_v_dim)

    def flops(self, chunk: int) -> tuple[float, float]:
        """Of all partitions."""
        return self.primitive.flops(chunk, self.state_rows, self.sizes.head_v_dim)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[VectorDecayRows, None, MemoryCache | None]:
        """Packed rows of vector decay over the rows of all partitions, and the cache."""
        weights = self.k_down[...], self.e_proj[...], self.gk_down[...]
        q, k, v, (k_low, e, gk_low), cache = self.qkv(x, packing, cache, layer, *weights)
        impl, size = self.options.impl, self.sizes.head_k_dim
        more_q = heads(pack(self.q_up(self.q_down(x)), packing), size)
        more_k = heads(through(k_low, packing, self.k_up[...], impl), size)
        gates = add_bias(widened(through(gk_low, packing, self.gk_up[...], impl)), packing, self.gk_bias[...])
        g = jax.nn.log_sigmoid(heads(gates, 2 * size)) / self.options.gate_logit_normalizer
        g, of_partitions = jnp.split(self.paced(g, packing), 2, axis=-1)
        q, k, more_q, more_k = map(widened, (q, k, more_q, more_k))
        share, chosen = self._shares(e)
        (k, written), (more_k, more_written) = self._keys(k), self._keys(k + more_k)
        parts = {
            "q": (jax.nn.silu(q), share * jax.nn.silu(q + more_q)[..., None, :]),
            "k": (k, share * more_k[..., None, :]),
            "g": (
                jnp.where(written, g, 0),
                jnp.where(chosen & more_written[..., None, :], of_partitions[..., None, :], 0),
            ),
        }
        rows = {name: jnp.concatenate([one, _flat(rest)], -1) for name, (one, rest) in parts.items()}
        return VectorDecayRows(v=jax.nn.silu(v), **rows), None, cache

    def _shares(self, logits: Float[Array, "N P"]) -> tuple[Float[Array, "N 1 P 1"], Array]:
        """Shares of the partitions, 0 where they are not chosen, and which are."""
        shares = jax.nn.softmax(widened(logits), -1)
        chosen = among_largest(shares, self.options.partition_top_k)
        return jnp.where(chosen, shares, 0)[:, None, :, None], chosen[:, None, :, None]

    def _keys(self, logits: Float[Array, "N H K"]) -> tuple[Float[Array, "N H K"], Array]:
        """A softmax over the rows that are written, and which are."""
        written = among_largest(logits, self.options.row_top_k or self.sizes.head_k_dim)
        return jax.nn.softmax(jnp.where(written, logits, -jnp.inf), -1), written


def _flat(x: Float[Array, "N H P K"]) -> Float[Array, "N H rows"]:
    return x.reshape(*x.shape[:2], -1)
