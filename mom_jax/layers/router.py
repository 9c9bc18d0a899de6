"""The router of a memory layer: which memories a token is written to and read from, and with what weight."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from mom_jax.layers.linear import Linear, mixer_init
from mom_jax.layers.router_options import RouterOptions
from mom_jax.ops.assignment import Assignment, assign
from mom_jax.ops.precision import widened
from mom_jax.ops.routing import RouterOutput, chosen_by_memories, expert_capacity, largest, loads, score, weigh
from mom_jax.typing import Array, Float, Int, Mask


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterTraining:
    """What a router does in training alone; a call that is given none of this decides as in decoding."""

    key: Array  # of `jax.random`, the same for all layers of a step
    noise: Float[Array, ""] | None = None  # scale of the Gumbel noise on the logits


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RouterInputs:
    """What a router decides by, besides the tokens."""

    noise: Float[Array, "B T R M"] | None = None  # on the logits
    memory_ids: Int[Array, "B T k"] | None = None  # chosen elsewhere
    trains: bool = dataclasses.field(default=False, metadata={"static": True})


BY_TOKENS_ALONE = RouterInputs()


class Router(Linear):
    """A linear map to logits, then three stages: scores, the choice of memories, and their weights.

    Each stage has its options; whatever chooses, weights are made of the scores of what was chosen. There are several
    routers in one if heads have routers of their own or reads are chosen apart: each has M columns of the map.

    Args:
        hidden_size, num_memories, num_heads: D, M and H.
        options: how it decides.
    """

    def __init__(self, hidden_size: int, num_memories: int, num_heads: int, options: RouterOptions, *, rngs: nnx.Rngs):
        self.options, self.num_memories = options, num_memories
        self.routers = options.kinds * (num_heads if options.router_per_head else 1)
        columns = self.routers * num_memories
        super().__init__(hidden_size, columns, split="replicated", init=mixer_init, rounds=False, rngs=rngs)

    def decide(
        self,
        x: Float[Array, "B T D"],
        bias: Float[Array, " columns"] | None,
        inputs: RouterInputs,
        attention_mask: Mask | None,
    ) -> tuple[RouterOutput, Assignment]:
        """Decisions of all routers, in float32 or wider, and the rows of every token.

        Args:
            x: tokens.
            bias: of each router and memory; counts for the choice alone.
            inputs: noise, choices made elsewhere, and whether this is training.
            attention_mask: 0 for padding.
        """
        shape = (*x.shape[:2], self.routers, self.num_memories)
        logits = jnp.moveaxis(self(widened(x)).reshape(shape), 2, 0)
        seen = logits if inputs.noise is None else logits + jnp.moveaxis(inputs.noise, 2, 0)
        memory_ids = self._choice(seen, bias, inputs, attention_mask)
        scores, renormalise = self.options.router_scores, self.options.router_renormalise
        weights = weigh(seen, memory_ids, scores=scores, renormalise=renormalise)
        decided = RouterOutput(logits, weights, memory_ids, loads(memory_ids, self.num_memories, attention_mask))
        return decided, assign(weights, memory_ids, self.num_memories, self.options.kinds)

    def _choice(
        self,
        logits: Float[Array, "R B T M"],
        bias: Float[Array, " columns"] | None,
        inputs: RouterInputs,
        attention_mask: Mask | None,
    ) -> Int[Array, "R B T _"]:
        if inputs.memory_ids is not None:
            return jnp.broadcast_to(inputs.memory_ids, (self.routers, *inputs.memory_ids.shape))
        values = score(logits, self.options.router_scores)
        if self.looks_ahead(inputs):
            return chosen_by_memories(values, self.options.top_k, attention_mask)
        return largest(values, self.options.top_k, None if bias is None else bias.reshape(self.routers, 1, 1, -1))

    def looks_ahead(self, inputs: RouterInputs) -> bool:
        """Whether memories choose among all tokens of a row."""
        return self.options.router_expert_choice and inputs.trains and inputs.memory_ids is None

    def capacity(self, time: int, inputs: RouterInputs) -> int | None:
        """Tokens of a row that a memory gets at most; None: all."""
        if not self.looks_ahead(inputs):
            return None
        return self.routers * expert_capacity(time, self.options.top_k, self.num_memories)

    def inputs(
        self,
        training: RouterTraining | None,
        memory_ids: Int[Array, "B T k"] | None,
        layer: int | Array,
        shape: tuple[int, int],
    ) -> RouterInputs:
        """What the router of a layer decides by for ``shape`` [B, T] tokens; a layer has noise of its own."""
        if training is None or training.noise is None:
            return RouterInputs(None, memory_ids, training is not None)
        key = jax.random.fold_in(training.key, layer)
        noise = training.noise * jax.random.gumbel(key, (*shape, self.routers, self.num_memories))
        return RouterInputs(noise, memory_ids, True)
