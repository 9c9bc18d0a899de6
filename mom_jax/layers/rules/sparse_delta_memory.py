"""Sparse delta memories (arXiv 2607.07386): a token reads and writes few of many slots, which product keys address.

Per head, with ``n^2`` slots S[i] of V channels, and logits of n rows and n columns for reading and for writing, of
which the largest sums give the slots and, by a softmax over these, the weights q and k:

    S_t[i] = alpha_t S_{t-1}[i];   S_t[i] += beta_t k_t^i (v_t - sum over j of k_t^j S_t[j])   for slots i to write
    o_t = sum over the slots to read of q_t^i S_t[i]

with ``alpha = exp(-exp(A_log) softplus(W_a x + dt_bias))`` and ``beta = sigmoid(W_b x)``. This is written from notes
on the paper, which disagree about the residual. The one above makes the memory the gated delta rule where all slots
are written, which the paper says it is; ``residual="local"`` takes ``v_t - S_t[i]``. The paper's learnt initial table
is not available, and what the notes do not tell is chosen here: projections without biases, no convolutions, norm and
gate of Gated DeltaNet. Each memory has its own writing, value, strength and decay projections; the projection to the
slots that are read, ``A_log`` and ``dt_bias`` are shared by all memories.
"""

import dataclasses
import math
from typing import Annotated, Any

import jax
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.fields import Range
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.projections import head_log_decay, log_rates, per_memory, project, time_step_bias
from mom_jax.layers.rules.qkv import QueryKeyValueRule
from mom_jax.layers.rules.rule import Paper, RuleOptions, RuleSizes, heads
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing, pack
from mom_jax.ops.sparse_choice import product_keys
from mom_jax.ops.sparse_delta import Residual, SparseDeltaRows, sparse_delta
from mom_jax.typing import Array, Float, Int
from pallas_kernels.remat import PROJECTION, keep

_CHUNK = 16  # rows of a chunk at most: with each, a chunk touches more slots


@dataclasses.dataclass(frozen=True)
class SparseDeltaMemoryOptions(RuleOptions):
    """Options of sparse delta memories."""

    table_slots: Annotated[int, Range(least=1, most=2**24)] = 1024  # of each head, the square of a whole number
    slot_writes: Annotated[int, Range(least=1, most=2**12)] = 16  # slots that a token writes
    slot_reads: Annotated[int, Range(least=1, most=2**12)] = 16  # slots that it reads
    residual: Residual = "aggregate"  # what a write corrects: the read of all its slots, or local: each slot

    def __post_init__(self):
        super().__post_init__()
        if math.isqrt(self.table_slots) ** 2 != self.table_slots:
            near = math.isqrt(self.table_slots) ** 2
            raise InputError("table_slots", self.table_slots, f"must be the square of a whole number, such as {near}")
        for field in ("slot_writes", "slot_reads"):
            if getattr(self, field) > self.table_slots:
                raise InputError(field, getattr(self, field), f"must be at most table_slots ({self.table_slots})")


class SparseDeltaMemory(QueryKeyValueRule):
    """K of a head plays no part: a table has slots instead of key channels."""

    Options = SparseDeltaMemoryOptions
    options: SparseDeltaMemoryOptions
    paper = Paper("2607.07386", "equations 3 to 5")
    paces = True
    scale = 1.0
    per_memory = (*QueryKeyValueRule.per_memory, "b_proj", "a_proj")

    def __init__(self, sizes: RuleSizes, options: SparseDeltaMemoryOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.b_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.a_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.num_heads)
        self.A_log = log_rates(rngs, sizes.num_heads, least=1e-4)
        self.dt_bias = time_step_bias(rngs, sizes.num_heads)

    @property
    def primitive(self) -> Primitive:
        """A delta rule over few of many slots."""
        return sparse_delta(self.options.table_slots, self.options.residual)

    @property
    def head_channels(self) -> dict[str, int]:
        """Logits of rows and of columns, and values."""
        logits = 2 * math.isqrt(self.options.table_slots)
        return {"q": logits, "k": logits, "v": self.sizes.head_v_dim}

    def chunk_rows(self, time: int) -> int:
        """Shorter than those of others."""
        return min(_CHUNK, super().chunk_rows(time))

    def flops(self, chunk: int) -> tuple[float, float]:
        """Of the slots that a chunk touches."""
        touched = (self.options.slot_writes + self.options.slot_reads) / 2
        return self.primitive.flops(chunk, int(touched), self.sizes.head_v_dim)

    def rows(
        self, x: Float[Array, "B T D"], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[SparseDeltaRows, Any, MemoryCache | None]:
        """Packed rows of the sparse delta rule, and the cache."""
        weights = (self.k_proj[...], self.v_proj[...], self.b_proj[...], self.a_proj[...])

        def then(k, v, b, a):
            return self._slots("k", k), v, b, a

        (writes, k), v, b, a = project(x, packing, weights, self.options.impl, then)
        reads, q = (pack(y, packing) for y in self._slots("q", keep(self.q_proj(x), PROJECTION)))
        g = self.paced(head_log_decay(a, self.A_log[...], self.dt_bias[...]), packing)
        v = heads(v, self.sizes.head_v_dim)
        return SparseDeltaRows(q, k, v, g, jax.nn.sigmoid(widened(b)), reads, writes), None, cache

    def _slots(
        self, name: str, logits: Float[Array, "*tokens _"]
    ) -> tuple[Int[Array, "*tokens H few"], Float[Array, "*tokens H few"]]:
        """Slots of each head to read (q) or to write (k), and their weights."""
        count = self.options.slot_reads if name == "q" else self.options.slot_writes
        return product_keys(widened(heads(logits, self.head_channels[name])), count)
