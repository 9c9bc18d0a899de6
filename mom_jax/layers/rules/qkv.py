"""The common half of most rules: queries shared by all memories, keys and values of each memory's own."""

import jax
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init
from mom_jax.layers.rules.parts import conv_history, conv_weight, convolve, per_memory, project
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float


class QueryKeyValueRule(MemoryRule):
    """Projections to queries, keys and values, and short convolutions along each memory's sequence.

    Args:
        hidden: D.
        num_heads, key_dim, value_dim: H, and K and V per head.
        memories: G, the shared memory included; 1 with one projection for all memories.
        conv_size: taps W of the short convolutions with SiLU after them; None for none.
        activate: SiLU in the place of the convolutions where there are none.
        leaking_memories: without a cache, convolve the sequences of that many memories end to end
            (`mom_jax.ops.reference_conv_leak`).
    """

    per_memory = ("k_proj", "v_proj")

    def __init__(
        self,
        hidden: int,
        num_heads: int,
        key_dim: int,
        value_dim: int,
        *,
        memories: int,
        conv_size: int | None,
        activate: bool = False,
        leaking_memories: int = 0,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_heads, key_dim, value_dim)
        keys, values = num_heads * key_dim, num_heads * value_dim
        self.q_proj = Linear(hidden, keys, split="column", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, keys)
        self.v_proj = per_memory(rngs, memories, hidden, values)
        self.conv_size, self.activate, self.leaking_memories = conv_size, activate, leaking_memories
        if conv_size is not None:
            self.q_conv1d, self.k_conv1d, self.v_conv1d = (
                conv_weight(rngs, channels, conv_size) for channels in (keys, keys, values)
            )

    def rows(
        self,
        x: Float[Array, "B T D"],
        packing: Packing,
        cache: MemoryCache | None,
        layer: int | Array,
        *gates: Float[Array, "G D F"],
    ) -> tuple[Array, Array, Array, list[Float[Array, "N F"]], MemoryCache | None]:
        """Packed rows: q and k [N, H, K], v [N, H, V], one array for each of the further projections, the cache."""
        q = pack(self.q_proj(x), packing)
        k, v, *rest = project(x, packing, (self.k_proj[...], self.v_proj[...], *gates))
        if self.conv_size is not None:
            weights = {"q": self.q_conv1d[...], "k": self.k_conv1d[...], "v": self.v_conv1d[...]}
            rows = {"q": q, "k": k, "v": v}
            (q, k, v), cache = convolve(rows, weights, packing, cache, layer, self.leaking_memories)
        elif self.activate:
            q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        q, k = (y.reshape(y.shape[0], -1, self.key_dim) for y in (q, k))
        return q, k, v.reshape(v.shape[0], -1, self.value_dim), rest, cache

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that the short convolutions remember: (W-1, channels) by name."""
        keys, values = self.num_heads * self.key_dim, self.num_heads * self.value_dim
        return conv_history(self.conv_size, q=keys, k=keys, v=values)
