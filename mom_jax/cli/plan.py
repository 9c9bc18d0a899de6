"""``mom-jax plan``: what a model costs, beside what it is compared with."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro

from mom_jax.cli.parsing import parse
from mom_jax.fields import Name, Range, check_fields
from mom_jax.models.presets import get_preset

DESCRIPTION = """Counts parameters, activated parameters, decoding state and FLOPs of a preset, layer by layer, without
building it; then the totals of baselines beside it.

Example: mom-jax plan mom-340m --length 2048 --beside single expanded transformer"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Arguments of the verb."""

    preset: tyro.conf.Positional[Name]
    """Name of a preset, such as mom-340m or mom-340m-gla."""
    length: Annotated[int, Range(least=1, most=2**24)] = 2048
    """Tokens of a sequence; attention costs more per token in longer ones."""
    beside: tuple[str, ...] = ("single", "equal-active", "expanded", "transformer")
    """Baselines: single, equal-active, expanded, transformer."""

    def __post_init__(self):
        check_fields(self)


def main(args: Sequence[str]) -> int:
    """Parses the arguments and prints the tables."""
    plan = parse(Plan, args, prog="mom-jax plan", description=DESCRIPTION)
    config = get_preset(plan.preset)
    # JAX loads only now, after the arguments have proved sound.
    from mom_jax.cli.tables import print_costs, print_totals
    from mom_jax.models.accounting import account
    from mom_jax.models.baselines import get_baseline

    beside = {name: get_baseline(name, config) for name in plan.beside}
    costs = account(config, plan.length)
    print_costs(f"{plan.preset}, {plan.length:,} tokens", costs)
    if beside:
        models = {plan.preset: costs} | {name: account(other, plan.length) for name, other in beside.items()}
        print_totals(models)
    return 0
