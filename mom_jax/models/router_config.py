"""The router's part of a model's configuration. Importing this module does not import JAX."""

import dataclasses
from typing import Annotated, Literal

from mom_jax.errors import InputError
from mom_jax.fields import Range
from mom_jax.layers.router_options import Reads, RouterOptions, Scores

RouterBalance = Literal["auxiliary", "loss_free", "expert_choice", "none"]
RouterChoice = Literal["scores", "position", "round_robin", "hash", "one"]


@dataclasses.dataclass(frozen=True)
class RouterConfig:
    """How routers decide and what keeps their loads even: docs/routers.md."""

    aux_loss_scale: Annotated[float, Range(least=0, most=1e4)] = 0.01
    """Weight of the auxiliary loss that balances the routers."""
    router_balance: RouterBalance = "auxiliary"
    """What keeps loads even: the auxiliary loss; loss_free, a bias in the router's choice that each step moves against
    the load (arXiv 2408.15664); expert_choice, in training memories choose tokens (arXiv 2202.09368); or none."""
    router_bias_rate: Annotated[float, Range(above=0, below=1)] = 0.001
    """How far a step of loss_free moves the bias."""
    router_scores: Scores = "softmax"
    """The router's scores: softmax over the memories, or the sigmoid of each."""
    router_renormalise: bool = True
    """Weights of a token's memories sum to 1; if not, they are the scores. With topk 1 only the latter teach the router
    what is read."""
    router_z_loss_scale: Annotated[float, Range(least=0, most=1e4)] = 0.0
    """Weight of the loss on the size of the router's logits (arXiv 2202.08906)."""
    router_noise: Annotated[float, Range(least=0, most=1e4)] = 0.0
    """Gumbel noise on the router's logits in training, times this."""
    router_noise_steps: Annotated[int, Range(least=1, below=2**31)] | None = None
    """Steps in which the noise falls to 0, along a line; None: it stays."""
    router_choice: RouterChoice = "scores"
    """What chooses a token's memories: the scores, or, for comparison, its position (router_block tokens to the same
    memories), round_robin, a hash of the token, or one: always the first. Weights are the router's all the same."""
    router_block: Annotated[int, Range(least=1, below=2**31)] = 64
    """Tokens of a document that router_choice=position sends to the same memories."""
    router_per_head: bool = False
    """Each head has a router of its own."""
    router_reads: Reads = "as_written"
    """Which memories a token reads: those that it is written to, or, apart, those that a second router chooses."""

    def _check_router(self) -> None:
        if self.router_choice == "scores":
            return
        fixed = f"router_choice={self.router_choice}"
        if self.router_balance != "none":
            remedy = f"has nothing to balance beside {fixed}, which no router decides; set router_balance none"
            raise InputError("router_balance", self.router_balance, remedy)
        if self.router_noise:
            remedy = f"has no choice to vary beside {fixed}, which no router decides; leave one of the two out"
            raise InputError("router_noise", self.router_noise, remedy)
        if self.router_reads == "apart":
            remedy = f"would be the same memories as those written beside {fixed}; leave one of the two out"
            raise InputError("router_reads", self.router_reads, remedy)

    @property
    def router_expert_choice(self) -> bool:
        """Whether memories choose tokens in training."""
        return self.router_balance == "expert_choice"

    @property
    def auxiliary_weight(self) -> float:
        """What the auxiliary loss counts in training."""
        return self.aux_loss_scale if self.router_balance == "auxiliary" else 0.0


# What a router of the PyTorch library does, by the names of options that say something else.
OF_THE_REFERENCE = {
    field.name: field.default
    for field in dataclasses.fields(RouterConfig)
    if field.name in {"router_choice", *(option.name for option in dataclasses.fields(RouterOptions))}
}
