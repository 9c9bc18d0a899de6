"""``mom-jax plan``: what a model costs beside others, and what training it needs on devices that are not here."""

import dataclasses
import json
import os
import re
import typing
from collections.abc import Sequence
from typing import Annotated

import tyro

from mom_jax.cli.parsing import parse, preset_first, values_of
from mom_jax.errors import InputError
from mom_jax.fields import Count, Name, Range, check_fields
from mom_jax.importing import loading
from mom_jax.models.config import MoMConfig
from mom_jax.models.presets import get_preset, preset_names
from mom_jax.planning.chips import Topology, find_topology, known
from mom_jax.planning.compilers import find_compiler
from mom_jax.training.config import MeshConfig, Remat, TrainConfig, get_train_preset
from mom_jax.training.optimizers import AdamW, Optimizer, with_name

DESCRIPTION = """Counts parameters, activated parameters, decoding state and FLOPs of a preset, layer by layer, without
building it; then the totals of baselines beside it. PRESET is one of {presets}; --model options override its values.

With --topology it compiles the preset's training step for devices that are not here, and tells what each of them
holds, computes and sends, and how long a step takes at least. Without --mesh it guesses for every mesh and
rematerialisation, and compiles the best. TPUs need the extra tpu, GPUs the extra gpu.

Topologies: {topologies}.

Example: mom-jax plan mom-340m --seq-len 2048 --beside single expanded transformer

Example: mom-jax plan mom-1.3b --topology v5p:8x8x8 --mesh.data 8 --mesh.fsdp 64

Example: mom-jax plan mom-340m --topology h100:8 --global-batch 256 --json"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Arguments of the verb after the preset."""

    model: MoMConfig = dataclasses.field(default_factory=MoMConfig)
    length: Annotated[int, Range(least=1, most=2**24), tyro.conf.arg(aliases=("--seq-len",))] = 2048
    """Tokens per sequence; attention costs more per token in longer ones."""
    beside: tuple[str, ...] = ("single", "equal-active", "expanded", "transformer")
    """Baselines: single, equal-active, expanded, transformer."""
    topology: Name | None = None
    """Devices to train on, such as v5p:8x8x8 or h100:16."""
    global_batch: Count | None = None
    """Rows of a step over all devices; the preset's unless given."""
    gradient_accumulation: Count = 1
    """Micro-batches that a step splits its batch into."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    optimizer: Optimizer = dataclasses.field(default_factory=AdamW)
    remat: Remat | None = None
    """What is computed again in the backward pass; with --mesh the preset's unless given, else all are tried."""
    compile: Annotated[int, Range(least=0, most=100)] = 2
    """Programs to compile of those that are found by guessing; 0 leaves it at the guess."""
    json: bool = False
    """Print JSON."""

    def __post_init__(self):
        check_fields(self)


# Options that say something about a topology alone, or that say nothing about one.
_OF_TOPOLOGY = ("global-batch", "gradient-accumulation", "mesh", "optimizer", "remat", "compile")
_OF_COSTS = ("beside",)


def main(args: Sequence[str]) -> int:
    """Parses the arguments and prints the tables."""
    preset, rest = preset_first("plan", args)
    about = DESCRIPTION.format(presets=preset_names(), topologies=known())
    planned = _given("topology", rest)
    recipe = get_train_preset(preset)
    model = recipe.model if planned else get_preset(preset)
    optimizer = with_name(recipe.optimizer, values_of(rest).get("--optimizer.name", recipe.optimizer.name))
    default = Plan(model, length=recipe.data.sequence_length if planned else 2048, optimizer=optimizer)
    arguments = parse(Plan, rest, prog="mom-jax plan PRESET", description=about, default=default)
    for option in _OF_COSTS if planned else _OF_TOPOLOGY:
        if _given(option, rest):
            raise InputError("option", f"--{option}", f"goes {'without' if planned else 'with'} --topology")
    name = preset + ", changed" * (arguments.model != model)
    if arguments.topology is None:
        return _costs(name, arguments)
    topology = find_topology(arguments.topology)
    return _plan(name, arguments, topology, recipe, has_mesh=_given("mesh", rest))


def _given(option: str, args: Sequence[str]) -> bool:
    """Whether an option, or one of a section of this name, is among the arguments."""
    return any(re.match(rf"--{option}($|[.=])", argument.replace("_", "-")) for argument in args)


def _costs(name: str, arguments: Plan) -> int:
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.plan_tables import print_costs, print_totals
        from mom_jax.models.accounting import account, total
        from mom_jax.models.baselines import get_baseline
        from mom_jax.terminal import console

    out = console()
    beside = {other: get_baseline(other, arguments.model) for other in arguments.beside}
    costs = account(arguments.model, arguments.length)
    models = {name: costs} | {other: account(model, arguments.length) for other, model in beside.items()}
    if arguments.json:
        totals = {other: dataclasses.asdict(total(parts)) for other, parts in models.items()}
        parts = [dataclasses.asdict(cost) for cost in costs]
        said = {"model": name, "sequence_length": arguments.length, "parts": parts, "totals": totals}
        print(json.dumps(said, indent=2))
        return 0
    print_costs(f"{name}, {arguments.length:,} tokens", costs, out)
    if beside:
        print_totals(models, out)
    return 0


def run_of(arguments: Plan, recipe: TrainConfig) -> TrainConfig:
    """The run that is planned."""
    batch = arguments.global_batch or recipe.data.batch_size
    data = dataclasses.replace(recipe.data, batch_size=batch, sequence_length=arguments.length)
    return dataclasses.replace(
        recipe,
        model=arguments.model,
        data=data,
        mesh=arguments.mesh,
        optimizer=arguments.optimizer,
        remat=arguments.remat or recipe.remat,
        gradient_accumulation=arguments.gradient_accumulation,
    )


def _plan(name: str, arguments: Plan, topology: Topology, recipe: TrainConfig, *, has_mesh: bool) -> int:
    config = run_of(arguments, recipe)
    os.environ["JAX_PLATFORMS"] = "cpu"  # nothing runs on what may be in this machine
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # of compilers that miss their hardware
    compile_most, note = arguments.compile, None
    if compile_most:
        try:
            find_compiler(topology.chip.platform)
        except InputError as error:
            if topology.chip.platform == "tpu":
                raise InputError("topology", topology.name, error.remedy) from error
            compile_most, note = 0, f"guessed, not compiled: {topology.name} {error.remedy}"
    from mom_jax.cli.plan_tables import print_plan
    from mom_jax.planning.plan import plan_run, summary
    from mom_jax.terminal import console, working

    remats = typing.get_args(Remat) if arguments.remat is None and not has_mesh else (config.remat,)
    all_tokens = recipe.steps * recipe.data.tokens_per_step
    with working() as report:
        if note:
            report(note)
        plan = plan_run(
            config,
            topology,
            all_tokens=all_tokens,
            search=not has_mesh,
            remats=remats,
            compile_most=compile_most,
            report=report,
        )
    if arguments.json:
        print(json.dumps({"preset": name, **summary(plan)}, indent=2))
    else:
        print_plan(name, plan, console())
    return 0
