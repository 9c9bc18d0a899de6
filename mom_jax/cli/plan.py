"""``mom-jax plan``: what a model costs, beside what it is compared with."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated

from mom_jax.cli.parsing import parse, preset_first
from mom_jax.fields import Range, check_fields
from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import get_preset, preset_names

DESCRIPTION = """Counts parameters, activated parameters, decoding state and FLOPs of a preset, layer by layer, without
building it; then the totals of baselines beside it. PRESET is one of {presets}; --model options override its values.

Example: mom-jax plan mom-340m --length 2048 --beside single expanded transformer

Example: mom-jax plan mom-tiny --model.num-memories 8 --model.topk 3"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Arguments of the verb after the preset."""

    model: MoMConfig = dataclasses.field(default_factory=MoMConfig)
    length: Annotated[int, Range(least=1, most=2**24)] = 2048
    """Tokens per sequence; attention costs more per token in longer ones."""
    beside: tuple[str, ...] = ("single", "equal-active", "expanded", "transformer")
    """Baselines: single, equal-active, expanded, transformer."""

    def __post_init__(self):
        check_fields(self)


def main(args: Sequence[str]) -> int:
    """Parses the arguments and prints the tables."""
    preset, rest = preset_first("plan", args)
    about = DESCRIPTION.format(presets=preset_names())
    default = Plan(model=get_preset(preset))
    plan = parse(Plan, rest, prog="mom-jax plan PRESET", description=about, default=default)
    # JAX loads only now, after the arguments have proved sound.
    from mom_jax.cli.tables import print_costs, print_totals
    from mom_jax.models.accounting import account
    from mom_jax.models.baselines import get_baseline
    from mom_jax.terminal import console

    out = console()
    beside = {name: get_baseline(name, plan.model) for name in plan.beside}
    costs = account(plan.model, plan.length)
    name = preset + ", changed" * (plan.model != default.model)
    print_costs(f"{name}, {plan.length:,} tokens", costs, out)
    if beside:
        models = {name: costs} | {name: account(other, plan.length) for name, other in beside.items()}
        print_totals(models, out)
    return 0
