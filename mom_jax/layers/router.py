"""The router of a memory layer: which memories a token is written to and read from, and with what weight."""

import dataclasses

from flax import nnx

from mom_jax.fields import Count, check_fields
from mom_jax.layers.linear import Linear, mixer_init
from mom_jax.ops.precision import widened
from mom_jax.ops.routing import Scores, route
from mom_jax.typing import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class RouterOptions:
    """How a router decides; options with the name of a `MoMConfig` field take their value from it."""

    top_k: Count = 2  # memories per token, k
    router_scores: Scores = "softmax"  # over the memories, or a sigmoid for each
    router_renormalise: bool = True  # weights of the chosen memories sum to 1

    def __post_init__(self):
        check_fields(self)


class Router(Linear):
    """A linear map to one logit per memory; `mom_jax.ops.routing.route` decides by these logits.

    Args:
        hidden_size, num_memories: D and M.
        options: how it decides.
    """

    def __init__(self, hidden_size: int, num_memories: int, options: RouterOptions, *, rngs: nnx.Rngs):
        super().__init__(hidden_size, num_memories, split="replicated", init=mixer_init, rounds=False, rngs=rngs)
        self.options = options

    def decide(
        self, x: Float[Array, "B T D"], bias: Float[Array, "M"] | None
    ) -> tuple[Float[Array, "B T M"], Float[Array, "B T k"], Int[Array, "B T k"]]:
        """Logits, weights and memories of every token, in float32 or wider; ``bias`` counts for the choice alone."""
        logits = self(widened(x))
        scores, renormalise = self.options.router_scores, self.options.router_renormalise
        return logits, *route(logits, self.options.top_k, bias, scores=scores, renormalise=renormalise)
