"""Arguments into frozen dataclasses by tyro; every mistake becomes one line.

Nothing here imports JAX: arguments are checked, and help is printed, before it loads.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import typing
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn, TypeVar

import tyro

from mom_jax.cli import habits
from mom_jax.errors import InputError
from mom_jax.fields import Check, Name, Range, alternatives, described, field_types
from mom_jax.models.presets import preset_names
from mom_jax.paths import check_kept
from mom_jax.training.run_places import check_run

Config = TypeVar("Config")
Place = Annotated[Name, Check(check_kept)]  # a local file or folder, which need not exist
Run = Annotated[Name, Check(check_run)]  # a run's folder, or its address
Step = Annotated[int, Range(least=0, below=2**31)]  # of a checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfCheckpoint:
    """Which checkpoint of a run."""

    step: Step | None = None
    """Step of the checkpoint; default: the newest that is whole."""
    ema: bool = False
    """Take the moving average of the parameters, which a run with --optimizer.ema-decay keeps."""


@dataclasses.dataclass(frozen=True)
class OfRun(OfCheckpoint):
    """Which run, and which checkpoint of it."""

    run: Annotated[Run, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run, or of a published model, or its address."""


def preset_first(verb: str, args: Sequence[str]) -> tuple[str, list[str]]:
    """The preset that the arguments of ``verb`` begin with, and the rest; mom-tiny where help alone is asked for.

    Raises:
        InputError: no preset is named first.
    """
    if args and not args[0].startswith("-"):
        return args[0], list(args[1:])
    if any(argument in ("-h", "--help") for argument in args):
        return "mom-tiny", list(args)
    remedy = f"name one first: mom-jax {verb} PRESET, with PRESET one of {preset_names()}"
    raise InputError("preset", "''", remedy)


def values_of(args: Sequence[str]) -> dict[str, str]:
    """The word behind each option, as in ``--option value`` or ``--option=value``, before anything is checked."""
    words = [part for word in args for part in (word.split("=", 1) if word.startswith("--") else [word])]
    return {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}


def parse(
    cls: type[Config], args: Sequence[str], *, prog: str, description: str, default: Config | None = None
) -> Config:
    """Fills the dataclass ``cls`` from command-line arguments.

    Args:
        cls: a frozen dataclass, possibly of dataclasses; its field docstrings are the help texts.
        args: the arguments after the verb.
        prog: how the command begins, for the help text.
        description: paragraphs of the help text; those that begin with ``Example:`` come first.
        default: values of the fields that are not given.

    Raises:
        InputError: an unknown option, or a value that does not fit its field.
        SystemExit: help was asked for and printed.
    """
    types_by_option = _options(cls, default)
    args = _joined(args, types_by_option)
    _check_names(args, types_by_option)
    about = "\n\n".join(sorted(description.split("\n\n"), key=lambda part: not part.startswith("Example:")))
    kwargs: dict[str, Any] = {} if default is None else {"default": default}
    boxes = io.StringIO()
    try:
        with contextlib.redirect_stderr(boxes):
            return tyro.cli(cls, args=args, prog=prog, description=about, **kwargs)
    except SystemExit as error:
        if error.code in (0, None):
            raise
        _explain(error, cls, args, types_by_option, boxes.getvalue())


def _options(cls: Any, default: Any, prefix: str = "") -> dict[str, Any]:
    """The type of every option that is offered, by its dotted field name; a section is of its default's class."""
    hints: dict[str, Any] = {}
    for name, hint in field_types(cls).items():
        if dataclasses.is_dataclass(hint):
            section = getattr(default, name, None)
            hints.update(_options(hint if section is None else type(section), section, f"{prefix}{name}."))
        elif tyro.conf.Suppress not in typing.get_args(hint):
            hints[prefix + name.rstrip("_")] = hint
            hints.update((prefix + _field(other), hint) for other in _aliases(hint))
    return hints


def _aliases(hint: Any) -> list[str]:
    """Other names of an option, as tyro knows them."""
    rules = typing.get_args(hint)[1:] if typing.get_origin(hint) is Annotated else ()
    return [name for rule in rules for name in getattr(rule, "aliases", None) or ()]


def _field(option: str) -> str:
    return option.lstrip("-").partition("=")[0].replace("-", "_")


def _joined(args: Sequence[str], types_by_option: dict[str, Any]) -> list[str]:
    """``--prompt -x`` as ``--prompt=-x``: what follows an option of text is its value, though it begins with a dash.

    So is ``-inf``, which is the value of a number and no option.
    """
    joined: list[str] = []
    for argument in args:
        before = joined[-1] if joined and "=" not in joined[-1] else ""
        kinds = (kind for kind, _ in alternatives(types_by_option.get(_field(before))))
        is_text = any(kind is str or _is_texts(kind) for kind in kinds)
        is_value = is_text and re.match(r"-[^-]|-$", argument) and argument != "-h"
        if before.startswith("--") and (is_value or re.fullmatch(r"-(inf|infinity|nan)", argument, re.IGNORECASE)):
            joined[-1] = f"{before}={argument}"
        else:
            joined.append(argument)
    return joined


def _is_texts(kind: Any) -> bool:
    return typing.get_origin(kind) is tuple and str in (item for item, _ in alternatives(typing.get_args(kind)[0]))


def _check_names(args: Sequence[str], types_by_option: dict[str, Any]) -> None:
    known = types_by_option.keys() | {"help", "tyro_print_completion", "tyro_write_completion"}
    for option in args:
        field = _field(option)
        if not re.match(r"--?[A-Za-z]", option) or option == "-h":
            continue
        switch = re.sub(r"(^|\.)no_", r"\1", field)
        is_off = switch != field and bool in [kind for kind, _ in alternatives(types_by_option.get(switch))]
        section, _, name = switch.rpartition(".")
        off = f"{section}.no_{name}" if section else f"no_{name}"  # where tyro has it
        if option.startswith("--") and (field in known or (is_off and field == off)):
            continue
        meant = (
            f"did you mean --{off.replace('_', '-')}?" if is_off else habits.hint(switch.lower(), list(types_by_option))
        )
        remedy = f"unknown; {meant}"
        raise InputError("option", option.partition("=")[0], remedy)


def _explain(
    error: BaseException, cls: type, args: Sequence[str], types_by_option: dict[str, Any], boxes: str
) -> NoReturn:
    # tyro prints a box and exits; the dataclass's own complaint is in the chain of what it was handling.
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, InputError):
            raise InputError(cause.field, cause.value, cause.args[0].split(": ", 1)[1]) from None
        cause = cause.__context__
    for field, values in _parsed(args):
        hint = types_by_option.get(field)
        if hint is not None and not _fits(hint, values):
            raise InputError(field, " ".join(values) or "''", f"expected {_expected(hint, values)}") from None
    _check_presence(cls, args)
    raise InputError("arguments", " ".join(args), _plain(boxes)) from None


def _check_presence(cls: Any, args: Sequence[str]) -> None:
    hints = field_types(cls)
    positional = [name for name, hint in hints.items() if tyro.conf.Positional in typing.get_args(hint)]
    leading, options = _leading(args), {field for field, _ in _parsed(args)} | set(positional)
    if len(leading) > len(positional):
        raise InputError(
            "argument", leading[len(positional)], "unexpected; an option's name begins with --, see --help"
        )
    required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
    missing = [name for name in hints if name in required and name not in options]
    for name in positional[len(leading) :] + missing:
        option = name if name in positional else "--" + name.replace("_", "-")
        raise InputError(option, "''", "is missing; see --help for an example")


def _leading(args: Sequence[str]) -> list[str]:
    return list(itertools.takewhile(lambda argument: not argument.startswith("--"), args))


def _parsed(args: Sequence[str]) -> list[tuple[str, list[str]]]:
    options: list[tuple[str, list[str]]] = []
    for argument in args:
        if re.match(r"--[A-Za-z]", argument):
            _, equals, value = argument.partition("=")
            options.append((_field(argument), [value] if equals else []))
        elif options:
            options[-1][1].append(argument)
    return options


def _fits(hint: Any, values: list[str]) -> bool:
    if tyro.conf.UseAppendAction in typing.get_args(hint):  # a value each time that it is given
        return len(values) == 1
    return any(_fits_kind(kind, values) for kind, _ in alternatives(hint))


def _fits_kind(kind: Any, values: list[str]) -> bool:
    if kind is bool:
        return not values
    if typing.get_origin(kind) is tuple:
        return all(_fits(typing.get_args(kind)[0], [value]) for value in values)
    return len(values) == 1 and _parses(kind, values[0])


def _parses(kind: Any, value: str) -> bool:
    if kind is type(None):
        return value == "None"
    if typing.get_origin(kind) is typing.Literal:
        return value in map(str, typing.get_args(kind))
    try:
        kind(value)
    except (TypeError, ValueError):
        return False
    return True


def _expected(hint: Any, values: list[str]) -> str:
    kinds = [kind for kind, _ in alternatives(hint)]
    if kinds == [bool]:
        return "no value: write --option or --no-option"
    if tyro.conf.UseAppendAction in typing.get_args(hint):
        return f"{described(typing.get_args(kinds[0])[0])}, a single value each time"
    if kinds and typing.get_origin(kinds[0]) is tuple:
        each = typing.get_args(kinds[0])[0]
        wrong = [value for value in values if not _fits(each, [value])]
        return " or ".join(_choices(kind, wrong) for kind, _ in alternatives(each)) + ", or several separated by spaces"
    expected = " or ".join(_choices(kind, values) for kind in kinds)
    single = len(values) > 1 and not any(typing.get_origin(kind) is tuple for kind in kinds)
    return expected + (", a single value" if single else "")


def _choices(kind: Any, values: list[str]) -> str:
    if typing.get_origin(kind) is not typing.Literal:
        return described(kind)
    known = list(map(str, typing.get_args(kind)))
    close = difflib.get_close_matches(values[0], known) if values else []
    return f"one of {', '.join(known)}" + (f"; did you mean {close[0]}?" if close else "")


def _plain(boxes: str) -> str:
    words = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]", " ", boxes).split()
    return " ".join(words) or "cannot be understood; see --help"
