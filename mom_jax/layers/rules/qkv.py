"""The common half of most rules: queries shared by all memories, keys and values of each memory's own."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.convolution import conv_history, conv_weight, convolve
from mom_jax.layers.linear import Linear, mixer_init, param
from mom_jax.layers.projections import per_memory, project
from mom_jax.layers.rules.rule import MemoryRule, RuleOptions, RuleSizes, heads
from mom_jax.ops.norm import l2_norm_of_heads
from mom_jax.ops.segments import Packing, pack
from mom_jax.typing import Array, Float
from pallas_kernels.remat import PROJECTION, keep


@dataclasses.dataclass(frozen=True)
class ConvOptions(RuleOptions):
    """Options of rules with short convolutions."""

    use_short_conv: bool = True
    conv_size: int = 4  # taps W

    @property
    def taps(self) -> int | None:
        """W, None without convolutions."""
        return self.conv_size if self.use_short_conv else None


class QueryKeyValueRule(MemoryRule):
    """Projections to queries, keys and values, and short convolutions along each memory's sequence.

    Attributes:
        activate_conv: SiLU after the convolutions.
        activate: SiLU in the place of convolutions where there are none.
        normalise: queries and keys of each head by their L2 norms at last.
        shared_keys: all heads share queries and keys.
        conv_bias: add a bias to each convolution.
    """

    Options = ConvOptions
    per_memory = ("k_proj", "v_proj")
    per_row = ("q_conv1d", "k_conv1d", "v_conv1d")
    activate_conv: ClassVar[bool] = True
    activate: ClassVar[bool] = False
    normalise: ClassVar[bool] = False
    shared_keys: ClassVar[bool] = False
    conv_bias: ClassVar[bool] = False

    def __init__(self, sizes: RuleSizes, options: ConvOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.taps, per_head = options.taps, not self.shared_keys
        keys = sizes.key_dim if per_head else sizes.head_k_dim
        split = "column" if per_head else "whole"
        self.q_proj = Linear(sizes.hidden_size, keys, split=split, init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, keys, split=per_head)
        self.v_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, sizes.value_dim)
        for name, channels in self._channels().items() if self.taps is not None else ():
            split_heads = per_head or name == "v"
            setattr(self, f"{name}_conv1d", conv_weight(rngs, channels, self.taps, split_heads))
            if self.conv_bias:
                axes = ("tensor" if split_heads else None,)
                setattr(self, f"{name}_conv1d_bias", param(rngs, jax.nn.initializers.zeros, (channels,), axes))

    def qkv(
        self,
        x: Float[Array, "B T D"],
        packing: Packing,
        cache: MemoryCache | None,
        layer: int | Array,
        *gates: Float[Array, "#G D _"],
    ) -> tuple[
        Float[Array, "N #H K"],
        Float[Array, "N #H K"],
        Float[Array, "N H V"],
        list[Float[Array, "N _"]],
        MemoryCache | None,
    ]:
        """Packed rows of q, k and v, an array for each further projection, and the cache."""
        k, v, *rest = project(x, packing, (self.k_proj[...], self.v_proj[...], *gates), self.options.impl)
        q = keep(self.q_proj(x), PROJECTION)  # tokens, which a convolution gathers itself
        rows = {"q": q, "k": k, "v": v}
        if self.taps is None:
            q, k, v = self._activated(rows, packing)
        else:
            q, k, v, cache = self._convolved(rows, packing, cache, layer)
        keys, values = self.sizes.head_k_dim, self.sizes.head_v_dim
        return heads(q, keys), heads(k, keys), heads(v, values), rest, cache

    def _activated(
        self, rows: dict[str, Float[Array, "..."]], packing: Packing
    ) -> tuple[Float[Array, "N keys"], Float[Array, "N keys"], Float[Array, "N values"]]:
        q, k, v = pack(rows["q"], packing), rows["k"], rows["v"]
        if self.activate:
            q, k, v = (jax.nn.silu(y) for y in (q, k, v))
        if self.normalise:
            q, k = (l2_norm_of_heads(y, self.sizes.head_k_dim) for y in (q, k))
        return q, k, v

    def _convolved(
        self, rows: dict[str, Float[Array, "..."]], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[Float[Array, "N keys"], Float[Array, "N keys"], Float[Array, "N values"], MemoryCache | None]:
        keys, values = self.sizes.head_k_dim, self.sizes.head_v_dim
        (q, k, v), cache = convolve(
            rows,
            {name: getattr(self, f"{name}_conv1d")[...] for name in rows},
            packing,
            cache,
            layer,
            biases={name: getattr(self, f"{name}_conv1d_bias")[...] for name in rows if self.conv_bias},
            activate=self.activate_conv,
            heads={"q": keys, "k": keys, "v": values},
            normalise=("q", "k") if self.normalise else (),
            impl=self.options.impl,
            leaking_memories=self.leaking_memories,
        )
        return q, k, v, cache

    @property
    def leaking_memories(self) -> int:
        """Memories whose sequences are convolved end to end without a cache (`mom_jax.ops.reference_conv_leak`)."""
        return 0

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that the short convolutions remember: (W-1, channels) by name."""
        return conv_history(self.taps, **self._channels())

    def _channels(self) -> dict[str, int]:
        keys = self.sizes.head_k_dim if self.shared_keys else self.sizes.key_dim
        return {"q": keys, "k": keys, "v": self.sizes.value_dim}
