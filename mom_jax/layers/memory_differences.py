"""What memories differ in when a model begins: projections of low rank over a common one, and paces of forgetting."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.layers.linear import mixer_init, param
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.typing import Array, Float


class LowRankProjections(nnx.Module):
    """``W_g = W + A_g B_g`` in the place of a matrix of each memory's own; indexed as one, [G, inputs, outputs].

    Args:
        own: the parameter that it takes the place of.
        rank: columns of A.
        rngs: for initial values.
    """

    def __init__(self, own: nnx.Param, rank: int, *, rngs: nnx.Rngs):
        memories, inputs, outputs = own[...].shape
        _, of_inputs, of_outputs = own.get_metadata("out_sharding")
        self.common = param(rngs, mixer_init, (inputs, outputs), (of_inputs, of_outputs))
        self.down = param(rngs, mixer_init, (memories, inputs, rank), (None, of_inputs, None))
        self.up = param(rngs, mixer_init, (memories, rank, outputs), (None, None, of_outputs))

    def __getitem__(self, index: object) -> Float[Array, "..."]:
        return (self.common[...] + jnp.einsum("gdr,grf->gdf", self.down[...], self.up[...]))[index]


def share_projections(rule: MemoryRule, rank: int, rngs: nnx.Rngs) -> None:
    """Takes `LowRankProjections` for the rule's matrices of each memory, where those are of a larger rank."""
    for name in rule.per_memory:
        own = getattr(rule, name, None)
        if own is not None and own[...].ndim == 3 and rank < min(own[...].shape[1:]):
            setattr(rule, name, LowRankProjections(own, rank, rngs=rngs))


def spread_paces(rule: MemoryRule, routed: int | None, memories: int, spread: float) -> nnx.Param:
    """``pace`` of a rule: the routed memories' from slow to fast, ``spread`` times as fast; a shared one's is the mean.

    Raises:
        InputError: nothing in the rule decays.
    """
    if not rule.paces:
        remedy = f"needs memories that decay, which those of {type(rule).__name__} do not; use another memory_rule"
        raise InputError("decay_spread", spread, remedy)
    paces = np.zeros(memories, np.float32)
    if routed is not None and routed > 1:
        paces[:routed] = np.log(spread) * (np.arange(routed) / (routed - 1) - 0.5)
    return nnx.Param(jnp.asarray(paces), out_sharding=(None,), eager_sharding=False, decays=False)
