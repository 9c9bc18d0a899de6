"""Blocks of a language model: parameters of one kind stacked, all of them scanned in order."""

import collections
import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.cache import Cache
from mom_jax.layers.mlp import SwiGLU
from mom_jax.layers.norm import RMSNorm
from mom_jax.models.config import MoMConfig
from mom_jax.models.mixers import make_mixer
from mom_jax.ops.documents import DocumentRuns
from mom_jax.typing import Array, Float, Int

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


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
        attention_mask: Int[Array, "B T"] | None,
        documents: DocumentRuns | None,
        cache: Cache | None,
        layer: int | Array,
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B T M"] | None, Cache | None]:
        """Returns hidden states, router logits (None from attention) and the new cache.

        ``layer`` counts the layers of this block's kind.
        """
        own = None if cache is None else getattr(cache, self.kind)
        mixed, *router_logits, own = self.attn(self.attn_norm(x), attention_mask, documents, own, layer)
        if cache is not None:
            cache = dataclasses.replace(cache, **{self.kind: own})
        x = x + mixed
        if self.has_mlp:
            x = x + self.mlp(self.mlp_norm(x))
        return x, (router_logits or [None])[0], cache


def stack_blocks(config: MoMConfig, kind: str, rngs: nnx.Rngs) -> Block:
    """All blocks of one kind as one module whose parameters have a leading layer axis."""

    @nnx.split_rngs(splits=config.layer_kinds.count(kind))
    @nnx.vmap(in_axes=0, out_axes=0, transform_metadata={nnx.PARTITION_NAME: None})
    def blocks(rngs):
        return Block(config, kind, rngs=rngs)

    return blocks(rngs)


def run_blocks(
    kinds: tuple[str, ...],
    stacks: dict[str, Block],
    x: Float[Array, "B T D"],
    attention_mask: Int[Array, "B T"] | None,
    documents: DocumentRuns | None,
    cache: Cache | None,
    remat: str,
) -> tuple[Float[Array, "B T D"], Float[Array, "L B T M"] | None, Cache | None]:
    """Runs the blocks in the order of ``kinds``, the kind of each layer.

    A pattern that repeats, such as "five memory layers, then attention", is scanned over its
    repetitions, and each run of one kind inside it over its layers: the program holds one
    block of each run, however deep the model is.

    Returns:
        Hidden states, the router logits of all memory layers (None if there are none), the new cache.
    """
    split = {kind: nnx.split(_coupled(stack)) for kind, stack in stacks.items()}
    pattern = kinds[: _period(kinds)]
    in_pattern, repeats = collections.Counter(pattern), len(kinds) // len(pattern)
    runs = [(kind, len(list(run))) for kind, run in itertools.groupby(pattern)]

    def block(kind, carry, xs):
        params, layer = xs
        if params is None:
            params = jax.tree.map(lambda a: a[layer], split[kind][1])
        x, router_logits, cache = nnx.merge(split[kind][0], params)(
            carry[0], attention_mask, documents, carry[1], layer
        )
        return (x, cache), router_logits

    if remat != "none":
        block = jax.checkpoint(block, policy=REMAT_POLICIES[remat], prevent_cse=False, static_argnums=0)

    def repetition(carry, xs):
        done, logits = collections.Counter(), []
        for kind, count in runs:
            layers = jax.tree.map(lambda a, i=done[kind], n=count: a[i : i + n], xs[kind])
            carry, router_logits = _scan(functools.partial(block, kind), carry, layers, count)
            done[kind] += count
            logits += [] if router_logits is None else [router_logits]
        return carry, jnp.concatenate(logits) if logits else None

    # What a loop runs over it gives gradients for, but XLA copies all of it when it was reshaped. A step of decoding
    # would take most of its time for that, and needs no gradients: there a block looks its parameters up.
    xs = {
        kind: jax.tree.map(
            lambda a, n=in_pattern[kind]: a.reshape(repeats, n, *a.shape[1:]),
            (params if cache is None else None, jnp.arange(kinds.count(kind))),
        )
        for kind, (_, params) in split.items()
    }
    (x, cache), logits = _scan(repetition, (x, cache), xs, repeats)
    return x, None if logits is None else logits.reshape(-1, *logits.shape[2:]), cache


def _coupled(stack: Block) -> Block:
    """The same blocks, with the parameters that depend on other layers computed from all of them."""
    stack = nnx.clone(stack)
    if stack.kind == "memory":
        stack.attn.rule.couple_layers()
    return stack


def _scan(body, carry, xs, length) -> tuple[Any, Any]:
    """`jax.lax.scan`, without a loop where there is one turn."""
    if length > 1:
        return jax.lax.scan(body, carry, xs)
    carry, y = body(carry, jax.tree.map(lambda a: a[0], xs))
    return carry, jax.tree.map(lambda a: a[None], y)


def _period(kinds):
    """Layers of the shortest pattern that the model repeats; all of them where they are of one kind, a single run."""
    if len(set(kinds)) == 1:  # their parameters are scanned as they are, without a reshape
        return len(kinds)
    fits = (n for n in range(1, len(kinds) + 1) if len(kinds) % n == 0 and kinds[:n] * (len(kinds) // n) == kinds)
    return next(fits)
