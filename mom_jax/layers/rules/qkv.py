"""The common half of most rules: queries shared by all memories, keys and values of each memory's own."""

from typing import ClassVar

import jax
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.linear import Linear, mixer_init, param
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
        key_heads: heads of queries and keys, 1 where all heads share them; H if None.
        conv_bias: add a bias to each convolution.
        leaking_memories: without a cache, convolve the sequences of that many memories end to end
            (`mom_jax.ops.reference_conv_leak`).
    """

    per_memory = ("k_proj", "v_proj")
    per_row = ("q_conv1d", "k_conv1d", "v_conv1d")
    activate_conv: ClassVar[bool] = True

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
        key_heads: int | None = None,
        conv_bias: bool = False,
        leaking_memories: int = 0,
        rngs: nnx.Rngs,
    ):
        super().__init__(num_heads, key_dim, value_dim)
        self.keys, self.values = (key_heads or num_heads) * key_dim, num_heads * value_dim
        own = key_heads is None
        self.q_proj = Linear(hidden, self.keys, split="column" if own else "whole", init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, memories, hidden, self.keys, split=own)
        self.v_proj = per_memory(rngs, memories, hidden, self.values)
        self.conv_size, self.activate, self.leaking_memories = conv_size, activate, leaking_memories
        self.conv_bias = conv_bias
        if conv_size is not None:
            for name, channels, split in (("q", self.keys, own), ("k", self.keys, own), ("v", self.values, True)):
                setattr(self, f"{name}_conv1d", conv_weight(rngs, channels, conv_size, split))
                if conv_bias:
                    bias = param(rngs, jax.nn.initializers.zeros, (channels,), ("tensor" if split else None,))
                    setattr(self, f"{name}_conv1d_bias", bias)

    def rows(
        self,
        x: Float[Array, "B T D"],
        packing: Packing,
        cache: MemoryCache | None,
        layer: int | Array,
        *gates: Float[Array, "G D F"],
    ) -> tuple[Array, Array, Array, list[Float[Array, "N F"]], MemoryCache | None]:
        """Packed rows: q and k [N, key heads, K], v [N, H, V], one array for each further projection, the cache."""
        q = pack(self.q_proj(x), packing)
        k, v, *rest = project(x, packing, (self.k_proj[...], self.v_proj[...], *gates), self.impl)
        if self.conv_size is not None:
            rows = {"q": q, "k": k, "v": v}
            weights = {name: getattr(self, f"{name}_conv1d")[...] for name in rows}
            biases = {name: getattr(self, f"{name}_conv1d_bias")[...] for name in rows if self.conv_bias}
            options = {"activate": self.activate_conv, "leaking_memories": self.leaking_memories}
            (q, k, v), cache = convolve(rows, weights, packing, cache, layer, biases=biases, **options)
        elif self.activate:
            q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        q, k = (y.reshape(y.shape[0], -1, self.key_dim) for y in (q, k))
        return q, k, v.reshape(v.shape[0], -1, self.value_dim), rest, cache

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that the short convolutions remember: (W-1, channels) by name."""
        return conv_history(self.conv_size, q=self.keys, k=self.keys, v=self.values)
