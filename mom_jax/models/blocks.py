"""Blocks of a language model: parameters of one kind stacked, all of them scanned in order."""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import AttentionCache, Cache, MemoryCache
from mom_jax.layers.mixer_output import MixerOutput
from mom_jax.layers.mlp import SwiGLU
from mom_jax.layers.norm import RMSNorm
from mom_jax.models.config import MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.documents import DocumentRuns
from mom_jax.ops.routing import RouterOutput
from mom_jax.typing import Array, Float, Mask
from pallas_kernels.remat import PROJECTION, RECURRENCE

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "recurrence": jax.checkpoint_policies.save_only_these_names(RECURRENCE),
    "mixer": jax.checkpoint_policies.save_only_these_names(RECURRENCE, PROJECTION),
}


NO_ROUTING: Mapping[str, Any] = MappingProxyType({})


class Block(nnx.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``; the mixer is a memory or an attention layer.

    An MLP of width 0 is none: the block ends with its mixer, as in Mamba2.
    """

    def __init__(self, config: MoMConfig, kind: str, *, rngs: nnx.Rngs):
        self.kind = kind
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs)
        self.attn: Any = make_mixer(config, kind, rngs)
        self.has_mlp = config.mlp_dim > 0
        if self.has_mlp:
            self.mlp_norm = RMSNorm(config.hidden_size, config.norm_eps, rngs=rngs)
            self.mlp = SwiGLU(config.hidden_size, config.mlp_dim, config.initializer_range, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        attention_mask: Mask | None,
        documents: DocumentRuns | None,
        cache: MemoryCache | AttentionCache | None,
        layer: int | Array,
        routing: Mapping[str, Any] = NO_ROUTING,
    ) -> MixerOutput:
        """Hidden states, with the routers' decisions and the new cache of the mixer.

        ``layer`` counts this kind's; ``routing`` is what routers decide by besides tokens, by the names of arguments of
        `MemoryMixer.__call__`.
        """
        of_kind = routing if self.kind == "memory" else NO_ROUTING
        out = self.attn(self.attn_norm(x), attention_mask, documents, cache, layer, **of_kind)
        x = x + out.y
        return out._replace(y=x + self.mlp(self.mlp_norm(x)) if self.has_mlp else x)


def stack_blocks(config: MoMConfig, kind: str, rngs: nnx.Rngs) -> Block:
    """All blocks of one kind as one module whose parameters have a leading layer axis."""

    @nnx.split_rngs(splits=config.layer_kinds.count(kind))
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def blocks(rngs):
        return Block(config, kind, rngs=rngs)

    return blocks(rngs)


@dataclasses.dataclass(frozen=True)
class LayerPlan:
    """The layers of a model: runs of one kind, in a pattern that repeats.

    A pattern such as "five memory layers, then attention" is scanned over its repetitions, and each run
    inside it over its layers: the program holds one block of each run, however deep the model is.
    """

    runs: tuple[tuple[str, int], ...]  # kind and number of layers, of one repetition
    repeats: int

    @classmethod
    def of(cls, kinds: tuple[str, ...]) -> Self:
        """The plan of layers of these kinds; layers of one kind are a single run."""
        fits = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds[:n] * (len(kinds) // n) == kinds)
        period = len(kinds) if len(set(kinds)) == 1 else next(fits)
        runs = tuple((kind, len(list(run))) for kind, run in itertools.groupby(kinds[:period]))
        return cls(runs, len(kinds) // period)

    def scan(
        self, block: Callable[[str, Any, Any], tuple[Any, RouterOutput | None]], carry: Any, layers: dict[str, Any]
    ) -> tuple[Any, RouterOutput | None]:
        """Runs ``block(kind, carry, layer) -> (carry, router)`` over all layers in order.

        Args:
            block: of one layer.
            carry: what goes from layer to layer.
            layers: of each kind, arrays with a leading axis of its layers.

        Returns:
            The last carry, and the decisions of all routers, stacked; None if there are none.
        """

        if len(self.runs) == 1:
            ((kind, count),) = self.runs
            carry, routers = _outer_loop(functools.partial(block, kind), carry, layers[kind], count)
            return carry, jax.tree.map(_flat, routers)

        def repetition(carry, xs):
            done, routers = collections.Counter(), []
            for kind, count in self.runs:
                stack = jax.tree.map(lambda a, i=done[kind], n=count: a[i : i + n], xs[kind])
                # a single turn is no loop: XLA would copy all parameters into it
                carry, router = jax.lax.scan(functools.partial(block, kind), carry, stack, unroll=count == 1)
                done[kind] += count
                routers += [] if router is None else [jax.tree.map(_flat, router)]
            return carry, jax.tree.map(lambda *parts: jnp.concatenate(parts), *routers) if routers else None

        xs = jax.tree.map(lambda a: a.reshape(self.repeats, a.shape[0] // self.repeats, *a.shape[1:]), layers)
        carry, routers = _outer_loop(repetition, carry, xs, self.repeats)
        return carry, jax.tree.map(_flat, routers)


def run_layers(
    plan: LayerPlan,
    stacks: dict[str, Block],
    x: Float[Array, "B T D"],
    attention_mask: Mask | None,
    documents: DocumentRuns | None,
    remat: str,
    routing: Mapping[str, Any] = NO_ROUTING,
) -> tuple[Float[Array, "B T D"], RouterOutput | None]:
    """Runs all layers without a cache; gradients flow to the parameters, over which the loops run."""
    split = {kind: nnx.split(coupled(stack)) for kind, stack in stacks.items()}

    def block(kind, x, params_and_number):
        params, layer = params_and_number
        out = nnx.merge(split[kind][0], params)(x, attention_mask, documents, None, layer, routing)
        return out.y, out.router

    if remat != "none":
        block = jax.checkpoint(block, policy=REMAT_POLICIES[remat], prevent_cse=False, static_argnums=0)
    layers = {kind: (params, jnp.arange(_layers(params))) for kind, (_, params) in split.items()}
    return plan.scan(block, x, layers)


def decode_layers(
    plan: LayerPlan,
    stacks: dict[str, Block],
    x: Float[Array, "B T D"],
    attention_mask: Mask | None,
    documents: DocumentRuns | None,
    cache: Cache,
    routing: Mapping[str, Any] = NO_ROUTING,
) -> tuple[Float[Array, "B T D"], RouterOutput | None, Cache]:
    """Runs all layers from a cache; a block looks its parameters up.

    A loop that runs over parameters copies all of them where they had to be reshaped for it, which would be most of
    a decoding step.
    """
    split = {kind: nnx.split(coupled(stack)) for kind, stack in stacks.items()}

    def block(kind, carry, layer):
        (x, cache), (graph, params) = carry, split[kind]
        block_params = jax.tree.map(lambda a: a[layer], params)
        out = nnx.merge(graph, block_params)(x, attention_mask, documents, cache.kinds[kind], layer, routing)
        return (out.y, cache.with_kind(kind, out.cache)), out.router

    layers = {kind: jnp.arange(_layers(params)) for kind, (_, params) in split.items()}
    (x, cache), routers = plan.scan(block, (x, cache), layers)
    return x, routers, cache


def _outer_loop(body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, turns: int) -> tuple[Any, Any]:
    """`jax.lax.scan`; a single turn is no loop, and is traced in two thirds of the time."""
    if turns > 1:
        return jax.lax.scan(body, carry, xs)
    carry, outputs = jax.jit(body)(carry, jax.tree.map(lambda a: a[0], xs))
    return carry, jax.tree.map(lambda a: a[None], outputs)


def _flat(a: Array) -> Array:
    """The first two axes as one: layers and the routers of each, or repetitions and the layers of each."""
    return a.reshape(-1, *a.shape[2:])


def _layers(params: nnx.State) -> int:
    return jax.tree.leaves(params)[0].shape[0]


def coupled(stack: Block) -> Block:
    """The same blocks, with the parameters that depend on other layers computed from all of them."""
    stack = nnx.clone(stack)
    if stack.kind == "memory":
        stack.attn.rule.couple_layers()
    return stack
