"""The common half of most rules: queries shared by all memories, keys and values of each memory's own."""

import dataclasses
from typing import ClassVar

import jax
from flax import nnx

from mom_jax.fields import Taps
from mom_jax.layers.cache import MemoryCache
from mom_jax.layers.convolution import conv_weight, convolve
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
    conv_size: Taps = 4  # taps W

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
        convolved: which of q, k and v.
        shared_keys: all heads share queries and keys.
        conv_bias: add a bias to each convolution.
    """

    Options = ConvOptions
    per_memory = ("k_proj", "v_proj")
    per_row = ("q_conv1d", "k_conv1d", "v_conv1d")
    activate_conv: ClassVar[bool] = True
    activate: ClassVar[bool] = False
    normalise: ClassVar[bool] = False
    convolved: ClassVar[tuple[str, ...]] = ("q", "k", "v")
    shared_keys: ClassVar[bool] = False
    conv_bias: ClassVar[bool] = False

    def __init__(self, sizes: RuleSizes, options: RuleOptions, *, rngs: nnx.Rngs):
        super().__init__(sizes, options, rngs=rngs)
        self.taps, per_head, total = options.taps, not self.shared_keys, self._channels()
        split = "column" if per_head else "whole"
        self.q_proj = Linear(sizes.hidden_size, total["q"], split=split, init=mixer_init, rngs=rngs)
        self.k_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, total["k"], split=per_head)
        self.v_proj = per_memory(rngs, sizes.projections, sizes.hidden_size, total["v"])
        if options.taps is None:
            return
        for name in self.convolved:
            channels, split_heads = total[name], per_head or name == "v"
            setattr(self, f"{name}_conv1d", conv_weight(rngs, channels, options.taps, split_heads))
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
        Float[Array, "N #H keys"],
        Float[Array, "N H values"],
        list[Float[Array, "N _"]],
        MemoryCache | None,
    ]:
        """Packed rows of q, k and v (`head_channels` in each head), one array for each further gate, and the cache."""
        k, v, *rest = project(x, packing, (self.k_proj[...], self.v_proj[...], *gates), self.options.impl)
        q = keep(self.q_proj(x), PROJECTION)  # tokens, which a convolution gathers itself
        rows = {"q": q, "k": k, "v": v}
        if self.taps is None:
            rows = self._activated(rows, packing)
        else:
            rows, cache = self._convolved(rows, packing, cache, layer)
        q, k, v = (heads(rows[name], size) for name, size in self.head_channels.items())
        return q, k, v, rest, cache

    def _activated(self, rows: dict[str, Float[Array, "..."]], packing: Packing) -> dict[str, Float[Array, "N _"]]:
        rows = rows | {"q": pack(rows["q"], packing)}
        if self.activate:
            rows |= {name: jax.nn.silu(rows[name]) for name in self.convolved}
        if self.normalise:
            rows |= {name: l2_norm_of_heads(rows[name], self.sizes.head_k_dim) for name in ("q", "k")}
        return rows

    def _convolved(
        self, rows: dict[str, Float[Array, "..."]], packing: Packing, cache: MemoryCache | None, layer: int | Array
    ) -> tuple[dict[str, Float[Array, "N _"]], MemoryCache | None]:
        keys, values, names = self.sizes.head_k_dim, self.sizes.head_v_dim, self.convolved
        filtered, cache = convolve(
            {name: rows[name] for name in names},
            {name: getattr(self, f"{name}_conv1d")[...] for name in names},
            packing,
            cache,
            layer,
            biases={name: getattr(self, f"{name}_conv1d_bias")[...] for name in names if self.conv_bias},
            activate=self.activate_conv,
            heads={"q": keys, "k": keys, "v": values},
            normalise=("q", "k") if self.normalise else (),
            impl=self.options.impl,
            leaking_memories=self.leaking_memories,
        )
        return rows | dict(zip(names, filtered, strict=True)), cache

    @property
    def leaking_memories(self) -> int:
        """Memories whose sequences are convolved end to end without a cache (`mom_jax.ops.reference_conv_leak`)."""
        return 0

    def conv_history(self) -> dict[str, tuple[int, int]]:
        """Inputs that the short convolutions remember: (W-1, channels) by name."""
        channels = self._channels()
        return {} if self.taps is None else {name: (self.taps - 1, channels[name]) for name in self.convolved}

    @property
    def head_channels(self) -> dict[str, int]:
        """Channels of one head of queries, keys and values."""
        return {"q": self.sizes.head_k_dim, "k": self.sizes.head_k_dim, "v": self.sizes.head_v_dim}

    def _channels(self) -> dict[str, int]:
        shared = ("q", "k") if self.shared_keys else ()
        return {n: size * (1 if n in shared else self.sizes.num_heads) for n, size in self.head_channels.items()}
