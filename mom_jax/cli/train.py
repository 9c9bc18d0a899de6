"""``mom-jax train PRESET``."""

import dataclasses
import itertools
import re
import shlex
import typing
from collections.abc import Sequence
from contextlib import suppress

from mom_jax.cli.config_file import as_yaml, read_config
from mom_jax.cli.failures import complain
from mom_jax.cli.parsing import Place, parse, preset_first, values_of
from mom_jax.errors import InputError
from mom_jax.importing import loading
from mom_jax.models.presets import preset_names
from mom_jax.training.config import TRAIN_PRESETS, ProcessesConfig, TrainConfig, flat, get_train_preset
from mom_jax.training.optimizers import with_name

if typing.TYPE_CHECKING:
    from rich.console import Console

DESCRIPTION = """Trains a model. PRESET is one of {presets}; every option overrides one of its values.
When the run folder holds a checkpoint of the same config, the run resumes there. Ctrl-C or SIGTERM saves and
stops; a second one stops at once. On several machines run the same line on each, with a run folder that all share.
A file of values (--config) takes the place of PRESET, or stands between it and the options; a run's config.json is one.

Example: mom-jax train mom-tiny --data.path 'texts/*.txt' --steps 500 --run-dir runs/texts

Example: mom-jax train --config run.yaml --optimizer.learning-rate 1e-3 --dry-run

Example: mom-jax train mom-tiny --init-from runs/texts --data.path 'other/*.txt' --run-dir runs/tuned

Example: srun mom-jax train mom-1.3b --processes.coordinator auto --mesh.fsdp 8 --run-dir /shared/runs/large"""


@dataclasses.dataclass(frozen=True)
class TrainArguments(TrainConfig):
    """A run, where some of it is written down, and how this process takes part in it."""

    config: Place | None = None
    """YAML or JSON file of values; options on the command line count more."""
    processes: ProcessesConfig = dataclasses.field(default_factory=ProcessesConfig)
    dry_run: bool = False
    """Print all values as a file for --config, with sizes, tokens and what would be written; write nothing."""

    @property
    def run(self) -> TrainConfig:
        """The run alone, which is the same in all processes."""
        return TrainConfig(**{field.name: getattr(self, field.name) for field in dataclasses.fields(TrainConfig)})


def main(args: Sequence[str]) -> int:
    """Parses the arguments, trains, writes the report."""
    try:
        arguments = parse_train(args)
        named = any(re.match("--data.tokenizer(=|$)", word) for word in args)
        run = arguments.run if named else with_tokenizer_of_shards(arguments.run)
    except InputError as error:
        return _give_up(error, args)
    # JAX loads only now, after the arguments have proved sound.
    with loading():
        from mom_jax.cli.runs import console
        from mom_jax.training.processes import joined

    with joined(arguments.processes):
        _train(arguments, run, console())
    return 0


def _train(arguments: TrainArguments, run: TrainConfig, out: "Console") -> None:
    with loading():
        from mom_jax.runs import train_and_report

    if run != arguments.run:
        tokenizer, run_tokenizer = arguments.data.tokenizer, run.data.tokenizer
        which = f"the tokenizer {run_tokenizer}, which is used in place of {tokenizer}"
        out.print(f"{'# ' * arguments.dry_run}{run.data.path} was prepared with {which}")
    if arguments.dry_run:
        _preview(run, out)
    else:
        train_and_report(run, out)


def _preview(run: TrainConfig, out: "Console") -> None:
    """Prints a file for ``--config``, whose last lines, as comments, tell what training would do."""
    from mom_jax.training.preview import preview

    lines = preview(run)  # first, so that a mistake is a line alone
    out.print(as_yaml(run) + "".join(f"# {line}\n" for line in lines), end="", soft_wrap=True)


def with_tokenizer_of_shards(run: TrainConfig) -> TrainConfig:
    """``run`` with the tokenizer of its data where that is prepared already: a preset's is only a proposal."""
    from mom_jax.data.prepare import tokenizer_of_shards

    return dataclasses.replace(run, data=dataclasses.replace(run.data, tokenizer=tokenizer_of_shards(run.data)))


@dataclasses.dataclass(frozen=True)
class _Place:
    processes: ProcessesConfig


def _give_up(error: InputError, args: Sequence[str]) -> int:
    """Raises ``error``; where there are other processes, says it and tells them, or they would wait for this one."""
    options = [
        word
        for before, word in itertools.pairwise(["", *args])
        if word.startswith("--processes.") or (before.startswith("--processes.") and "=" not in before)
    ]
    try:
        place = parse(_Place, options, prog="", description="").processes
    except InputError:  # perhaps the very error
        place = ProcessesConfig()
    if place.coordinator is None:
        raise error
    from mom_jax.training.processes import join

    status = complain(error)
    with suppress(InputError):  # nobody to tell it to
        join(place, sound=False)
    return status


def parse_train(args: Sequence[str]) -> TrainArguments:
    """The run that ``PRESET [overrides]`` describes, or ``[PRESET] --config FILE [overrides]``.

    Raises:
        InputError: no or an unknown preset, a bad file, or a bad override.
    """
    given = values_of(args)
    file, optimizer = given.get("--config"), given.get("--optimizer.name")
    if file is not None and args[0].startswith("-"):
        default, rest = read_config(file, TrainConfig()), args
    else:
        preset, rest = preset_first("train", args)
        default = get_train_preset(preset)
        default = default if file is None else read_config(file, default)
    if given.get("--init-from"):
        default = _with_model_of(given["--init-from"], default)
    if optimizer is not None:  # what other options there are depends on it
        default = dataclasses.replace(default, optimizer=with_name(default.optimizer, optimizer))
    return parse(
        TrainArguments,
        rest,
        prog="mom-jax train PRESET",
        description=DESCRIPTION.format(presets=preset_names()),
        default=TrainArguments(**{field.name: getattr(default, field.name) for field in dataclasses.fields(default)}),
    )


def _with_model_of(place: str, run: TrainConfig) -> TrainConfig:
    """``run`` with the model and the tokenizer of the weights that it shall start with."""
    from mom_jax.training.origin import find_weights  # imports JAX

    source = find_weights(place).config
    keep = {field: getattr(run.model, field) for field in ("compute_dtype", "impl")}
    data = dataclasses.replace(run.data, tokenizer=source.data.tokenizer)
    return dataclasses.replace(run, model=dataclasses.replace(source.model, **keep), data=data)


def command_of(config: TrainConfig) -> tuple[str, str]:
    """The preset that a run is nearest to, and the command line that gives exactly this run."""
    fields = flat(config.to_dict())
    changes = {}
    for name in TRAIN_PRESETS:
        preset = flat(get_train_preset(name).to_dict())
        missing = object()  # options of another optimizer
        changes[name] = {field: value for field, value in fields.items() if value != preset.get(field, missing)}
    preset = min(changes, key=lambda name: len(changes[name]))
    options = [word for field, value in changes[preset].items() for word in _option(field, value)]
    return preset, shlex.join(["mom-jax", "train", preset, *options])


def _option(field: str, value: object) -> list[str]:
    prefix, dot, name = field.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return [f"--{prefix}{dot}{'' if value else 'no-'}{name}"]
    return [f"--{prefix}{dot}{name}", *map(str, value if isinstance(value, list | tuple) else [value])]
