"""What every layer that mixes along time returns."""

from typing import NamedTuple

from mom_jax.layers.cache import AttentionCache, MemoryCache
from mom_jax.ops.routing import RouterOutput
from mom_jax.typing import Array, Float


class MixerOutput(NamedTuple):
    """The output, what the router decided, and the new cache."""

    y: Float[Array, "B T D"]  # in the dtype of the input
    router: RouterOutput | None  # None without a router
    cache: MemoryCache | AttentionCache | None
