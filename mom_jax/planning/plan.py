"""What a run needs on devices that are not here: guessed for every mesh, compiled for the best."""

import dataclasses
import typing
from collections.abc import Callable
from typing import Any

from jax.sharding import Mesh

from mom_jax.errors import InputError
from mom_jax.planning import targets
from mom_jax.planning.alone import Died, alone
from mom_jax.planning.chips import Topology
from mom_jax.planning.compiled import Compiled, Failed, TooLarge, axes_between, compile_step
from mom_jax.planning.guess import Guess, Guesser, all_meshes
from mom_jax.planning.roofline import ASSUMPTIONS, Time, time_of
from mom_jax.training.config import MeshConfig, TrainConfig
from mom_jax.training.memory import in_words
from mom_jax.training.program import Program
from mom_jax.training.sharding import AXES, make_mesh, mesh_sizes

Report = Callable[[str], Any]  # takes a line of progress
Exchanged = dict[str, dict[str, dict[str, float]]]
_TRIES = 3  # programs that may prove too large, or too much for the compiler, for one that fits


@dataclasses.dataclass(frozen=True)
class Option:
    """A mesh and rematerialisation: what was guessed of it, and what compiling said.

    Attributes:
        guess: before anything was compiled.
        compiled: what was compiled; None if it was not, or did not fit.
        time: its least time.
        exchanged: its collectives by kind and by the axes between whose devices they run: how often, and bytes sent.
        needed: bytes, where the compiler found it too large.
        failed: how the compiler failed.
    """

    guess: Guess
    compiled: Compiled | None = None
    time: Time | None = None
    exchanged: Exchanged = dataclasses.field(default_factory=dict)
    needed: int | None = None
    failed: str | None = None

    @property
    def memory(self) -> int:
        """Bytes of a device, as well as they are known."""
        return (self.compiled or self.guess).memory if self.needed is None else self.needed

    @property
    def seconds(self) -> float:
        """Of a step."""
        return self.time.step if self.time else self.guess.seconds

    @property
    def tried(self) -> bool:
        """Whether the compiler was given it."""
        return bool(self.compiled or self.needed or self.failed)


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run on a topology.

    Attributes:
        config: of the run, as it is planned: with the mesh and rematerialisation of ``best``.
        topology: that it is planned for.
        best: what is recommended, or was asked for.
        others: the other options in the order of the guess, those that were compiled first.
        model_flops: FLOPs of a step without what is computed twice.
        all_tokens: that the whole run reads.
    """

    config: TrainConfig
    topology: Topology
    best: Option
    others: tuple[Option, ...]
    model_flops: float
    all_tokens: int

    @property
    def fits(self) -> bool:
        """Whether a device has the memory."""
        return self.best.memory <= self.topology.chip.memory

    @property
    def tokens_per_second(self) -> float:
        """Of all devices together."""
        return self.config.data.tokens_per_step / self.best.seconds

    @property
    def mfu(self) -> float:
        """The share of the devices' products that the model's own would be."""
        return self.model_flops / self.best.seconds / self.topology.devices / self.topology.chip.flops

    @property
    def days(self) -> float:
        """Of the whole run."""
        return self.all_tokens / self.tokens_per_second / 86400


def plan_run(
    config: TrainConfig,
    topology: Topology,
    *,
    all_tokens: int,
    search: bool,
    remats: tuple[str, ...],
    compile_most: int,
    report: Report,
) -> Plan:
    """Plans a run.

    Args:
        config: of the run.
        topology: the devices.
        all_tokens: that the whole run reads.
        search: try every mesh; else the run's own.
        remats: which to choose among.
        compile_most: how many programs are compiled that fit; 0 leaves all to the guess.
        report: is told what is done.

    Raises:
        InputError: no mesh divides, or the compiler is missing, or it failed at whatever it was given.
    """
    guesser = Guesser(config, topology.chip)
    given = () if search else (MeshConfig(**mesh_sizes(config.mesh, topology.devices)),)
    meshes = guesser.fitting(given or all_meshes(topology.devices))
    report(f"tracing the model to guess what each of {len(meshes):,} meshes holds")
    guesses = guesser.ranked(meshes, remats)
    options = list(_tried(config, topology, guesser, guesses, compile_most, report))
    _check_compiler(options, topology)
    best = _best(options, topology.chip.memory)
    planned = dataclasses.replace(config, mesh=best.guess.mesh, remat=best.guess.remat)
    others = sorted((x for x in options if x is not best), key=lambda x: not x.tried)
    return Plan(planned, topology, best, tuple(others), guesser.flops(), all_tokens)


def _best(options: list[Option], memory: int) -> Option:
    """The fastest of those that are compiled and fit; else the first by the guess that is not known to be too large."""
    fitting = [x for x in options if x.compiled and x.memory <= memory]
    if fitting:
        return min(fitting, key=lambda x: x.seconds)
    return next((x for x in options if not x.tried), options[0])


def _check_compiler(options: list[Option], topology: Topology) -> None:
    """Raises an InputError if the compiler failed at something and made nothing."""
    reason = next((x.failed for x in options if x.failed), None)
    if reason and not any(x.compiled or x.needed for x in options):
        remedy = f"its compiler failed at this program ({reason}); try another --mesh, --remat or --seq-len"
        raise InputError("topology", topology.name, f"{remedy}, or guess with --compile 0")


def _tried(
    config: TrainConfig, topology: Topology, guesser: Guesser, guesses: list[Guess], most: int, report: Report
) -> typing.Iterator[Option]:
    """The options, the first of them compiled until so many fit."""
    fitted, tries = 0, 0
    for guess in guesses:
        if fitted >= most or tries >= most + _TRIES:
            yield Option(guess)
            continue
        tries += 1
        option = _compiled(config, topology, guesser, guess, report)
        fitted += option.compiled is not None and option.memory <= topology.chip.memory
        yield option


def _compiled(config: TrainConfig, topology: Topology, guesser: Guesser, guess: Guess, report: Report) -> Option:
    shown = ", ".join(f"{axis} {getattr(guess.mesh, axis)}" for axis in AXES)
    report(f"compiling for {topology.name}: {shown}, remat {guess.remat}")
    run = dataclasses.replace(config, mesh=guess.mesh, remat=guess.remat)
    try:
        compiled, time, exchanged = alone(_read, run, topology, guesser.flops(guess.remat) / topology.devices)
    except TooLarge as error:
        needed = max(error.needed, topology.chip.memory + 1)  # where it does not say
        report(f"does not fit: needs {in_words(needed)} of {in_words(topology.chip.memory)}")
        return Option(guess, needed=needed)
    except (Died, Failed) as error:
        report(f"the compiler failed: {error}")
        return Option(guess, failed=str(error))
    report(f"compiled in {compiled.seconds:,.0f} s")
    return Option(guess, compiled, time, exchanged)


def _read(config: TrainConfig, topology: Topology, flops: float) -> tuple[Compiled, Time, Exchanged]:
    """What is compiled, its least time and what it exchanges; ``flops`` are the model's on a device."""
    mesh = make_mesh(config.mesh, targets.devices(topology))
    compiled = compile_step(Program(config, mesh))
    return compiled, time_of(compiled, mesh, topology.chip, flops), _exchanged(compiled, mesh)


def _exchanged(compiled: Compiled, mesh: Mesh) -> Exchanged:
    found: Exchanged = {}
    for collective in compiled.sent:
        axes = "+".join(axes_between(collective, mesh)) or "none"
        entry = found.setdefault(collective.kind, {}).setdefault(axes, {"count": 0, "bytes": 0.0})
        entry["count"] += collective.times
        entry["bytes"] += collective.times * collective.sent
    return found


def summary(plan: Plan) -> dict[str, Any]:
    """Everything that a plan says, ready for JSON."""
    best, chip, config = plan.best, plan.topology.chip, plan.config
    guess, compiled = best.guess, best.compiled
    activations = guess.activations if compiled is None else min(guess.activations, compiled.temporaries)
    kinds = {
        "parameters": (compiled or guess).parameters,
        "optimizer": (compiled or guess).optimizer,
        "activations": activations,
        "temporaries": guess.temporaries if compiled is None else compiled.temporaries - activations,
        "other": 0 if compiled is None else compiled.other,
    }
    return {
        "compiled": compiled is not None,
        "compile_seconds": compiled and round(compiled.seconds, 1),
        "topology": plan.topology.name,
        "devices": plan.topology.devices,
        "mesh": dataclasses.asdict(config.mesh),
        "remat": config.remat,
        "global_batch": config.data.batch_size,
        "sequence_length": config.data.sequence_length,
        "gradient_accumulation": config.gradient_accumulation,
        "fits": plan.fits,
        "hbm_bytes_per_device": best.memory,
        "hbm_bytes_by_kind": kinds,
        "hbm_bytes_available": chip.memory,
        "flops_per_step": plan.model_flops,
        "flops_per_step_per_device_counted": compiled and compiled.flops,
        "hbm_bytes_moved_per_step": compiled and compiled.moved,
        "custom_kernels": sum(compiled.kernels.values()) if compiled else None,
        "kernels": compiled and compiled.kernels,
        "collectives": best.exchanged,
        "seconds_per_step_estimate": best.seconds,
        "seconds_by_resource": best.time and {**dataclasses.asdict(best.time), "all_hidden": best.time.hidden},
        "tokens_per_second_estimate": plan.tokens_per_second,
        "tokens_per_day_estimate": plan.tokens_per_second * 86400,
        "mfu_estimate": plan.mfu,
        "tokens": plan.all_tokens,
        "days_estimate": plan.days,
        "device_hours_estimate": plan.days * 24 * plan.topology.devices,
        "assumptions": ASSUMPTIONS,
    }
