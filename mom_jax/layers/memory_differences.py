"""What memories may differ in, and what a rule has to be for it: projections, paces, states to begin with, rows."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.layers.linear import mixer_init, param
from mom_jax.layers.router_options import RouterOptions
from mom_jax.layers.rules.rule import MemoryRule
from mom_jax.ops.documents import DocumentRuns
from mom_jax.ops.primitive import Primitive
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


def check_split(options: RouterOptions, rule: MemoryRule) -> None:
    """Raises `InputError` where a row that does not write would change memories of the rule."""
    if options.is_split and not rule.primitive.skips:
        option = "router_per_head" if options.router_per_head else "router_reads"
        remedy = f"cannot be used with {type(rule).__name__}, whose memories take every token that they see in"
        raise InputError(option, getattr(options, option), f"{remedy}; use another memory_rule, or leave it out")


def check_whole_rows(primitive: Primitive, documents: DocumentRuns | None, sequence_axis: str | None) -> None:
    """Raises `InputError` where `initial_states` would be needed where they cannot be put."""
    if sequence_axis is not None:
        remedy = "cannot be used with mesh.sequence: states are put where rows begin; leave one of the two out"
        raise InputError("learned_initial_state", True, remedy)
    if documents is not None and primitive.beside is None:
        remedy = f"cannot be used with segment_ids: documents of the recurrence {primitive.name} begin with nothing"
        raise InputError("learned_initial_state", True, f"{remedy}; leave one out, or use another memory_rule")


def initial_states(rule: MemoryRule, memories: int) -> nnx.Param:
    """What memories begin with, [G, H, ...]: 0 at first.

    Raises:
        InputError: the rule's state is not one array for each head.
    """
    shapes = rule.state_shapes()
    if not isinstance(shapes, jax.ShapeDtypeStruct):
        remedy = f"needs memories of one array, which those of {type(rule).__name__} are not; use another memory_rule"
        raise InputError("learned_initial_state", True, remedy)
    axes = (None, "tensor", *[None] * (len(shapes.shape) - 1))
    states = jnp.zeros((memories, *shapes.shape))
    return nnx.Param(states, out_sharding=axes, eager_sharding=False, decays=False)
