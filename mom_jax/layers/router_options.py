"""How a router decides, as the arguments of a layer. Importing this module does not import JAX."""

import dataclasses
from typing import Literal

from mom_jax.fields import Count, check_fields

Scores = Literal["softmax", "sigmoid"]
Reads = Literal["as_written", "apart"]


@dataclasses.dataclass(frozen=True)
class RouterOptions:
    """How a router decides; options with the name of a `MoMConfig` field take their value from it."""

    top_k: Count = 2  # memories per token, k
    router_scores: Scores = "softmax"  # over the memories, or a sigmoid for each
    router_renormalise: bool = True  # weights of the chosen memories sum to 1
    router_expert_choice: bool = False  # in training memories choose tokens
    router_per_head: bool = False  # each head has a router of its own
    router_reads: Reads = "as_written"  # the memories that are written, or those that a second router chooses

    def __post_init__(self):
        check_fields(self)

    @property
    def kinds(self) -> int:
        """Routers of a head: of what is written, and of what is read if that is chosen apart."""
        return 2 if self.router_reads == "apart" else 1

    @property
    def is_split(self) -> bool:
        """Whether a memory may be written by a token and not read, or by some heads alone."""
        return self.kinds == 2 or self.router_per_head
