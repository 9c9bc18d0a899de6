"""The router's part of a model's configuration. Importing this module does not import JAX."""

import dataclasses
from typing import Annotated, Any, Literal, NamedTuple

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
        """Refuses options that would have no effect beside others."""
        for pair in _PAIRS:
            value, other = getattr(self, pair.option), getattr(self, pair.other)
            works = other != _default(self, pair.other) if pair.works is None else other in pair.works
            if not works and value not in (pair.idle or (_default(self, pair.option),)):
                remedy = f"set {pair.option} {pair.idle[0]}" if pair.idle else "leave one of the two out"
                raise InputError(pair.option, value, f"{pair.problem} beside {pair.other}={other}; {remedy}")

    @property
    def router_expert_choice(self) -> bool:
        """Whether memories choose tokens in training."""
        return self.router_balance == "expert_choice"

    @property
    def auxiliary_weight(self) -> float:
        """What the auxiliary loss counts in training."""
        return self.aux_loss_scale if self.router_balance == "auxiliary" else 0.0


class _Pair(NamedTuple):
    """An option that works with some values of another one alone, and else has to ask for nothing."""

    option: str
    other: str
    works: tuple[Any, ...] | None  # with these values of the other; None: with all but its default
    problem: str
    idle: tuple[Any, ...] = ()  # values that ask nothing; the default if there are none


OF_MIXTURES = (
    *(field.name for field in dataclasses.fields(RouterConfig)),
    *("single_kv_proj", "decay_spread"),
)
"""Options that a single memory has no use for."""
_BY_SCORES = ("router_choice", ("scores",))
_PAIRS = (
    _Pair("router_balance", *_BY_SCORES, "has nothing to balance", idle=("none",)),
    _Pair("router_noise", *_BY_SCORES, "has no choice to vary"),
    _Pair("router_reads", *_BY_SCORES, "would be the same memories as those written"),
    _Pair("router_noise_steps", "router_noise", None, "has no noise to lower"),
    _Pair("router_bias_rate", "router_balance", ("loss_free",), "has no bias to move"),
    _Pair("router_block", "router_choice", ("position",), "has no blocks to measure"),
    _Pair("aux_loss_scale", "router_balance", ("auxiliary",), "has no loss to weigh", idle=(0.0, 0.01)),
    *(_Pair(option, "mixture", (True,), "has nothing to do with one memory") for option in OF_MIXTURES),
)


def _default(config: Any, option: str) -> Any:
    return type(config).__dataclass_fields__[option].default


# What a router of the PyTorch library does, by the names of options that say something else.
OF_THE_REFERENCE = {
    field.name: field.default
    for field in dataclasses.fields(RouterConfig)
    if field.name in {"router_choice", *(option.name for option in dataclasses.fields(RouterOptions))}
}
