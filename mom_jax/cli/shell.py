"""``mom-jax completion SHELL``: a script that completes verbs, presets and options, made of what the help says."""

import contextlib
import dataclasses
import io
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import tyro

from mom_jax.cli.parsing import parse
from mom_jax.models.presets import PRESETS

DESCRIPTION = """Prints a script that teaches the shell to complete verbs, presets and options. It is made from the help
texts of this version: make it again after an update.

Example: mom-jax completion bash > ~/.local/share/bash-completion/completions/mom-jax

Example: mom-jax completion zsh > ~/.zfunc/_mom-jax

Example: mom-jax completion fish > ~/.config/fish/completions/mom-jax.fish"""

_OPTION = re.compile(r"(?<![\w.-])--[a-z][a-z0-9.-]*[a-z0-9]")
_NEXT = {"train": tuple(PRESETS), "plan": tuple(PRESETS), "data": ("prepare",)}  # the words after a verb

_BASH = """\
_mom_jax() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb=${{COMP_WORDS[1]}} options=
    if [ "$COMP_CWORD" = 1 ]; then
        COMPREPLY=($(compgen -W "{verbs}" -- "$word"))
        return
    fi
    case $verb in
{cases}
    esac
    COMPREPLY=($(compgen -W "$options" -- "$word"))
}}
complete -o default -F _mom_jax mom-jax
"""
_ZSH = """\
#compdef mom-jax
_mom_jax() {{
    if (( CURRENT == 2 )); then
        compadd -- {verbs}
        return
    fi
    local options
    case $words[2] in
{cases}
    esac
    compadd -- ${{=options}}
    _files
}}
compdef _mom_jax mom-jax
"""


@dataclasses.dataclass(frozen=True)
class CompletionConfig:
    """For which shell."""

    shell: Annotated[Literal["bash", "zsh", "fish"], tyro.conf.Positional, tyro.conf.arg(metavar="SHELL")]
    """bash, zsh or fish."""


def main(args: Sequence[str]) -> int:
    """Parses the arguments and prints the script."""
    arguments = parse(CompletionConfig, args, prog="mom-jax completion", description=DESCRIPTION)
    print(script(arguments.shell, words_by_verb()), end="")
    return 0


def words_by_verb() -> dict[str, list[str]]:
    """What may follow each verb, as its help says."""
    from mom_jax.cli.main import VERBS, dispatch  # which finds this module among the verbs

    words = {}
    for verb in VERBS:
        text = io.StringIO()
        with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
            dispatch([verb, *(_NEXT.get(verb, ())[:1]), "--help"])
        words[verb] = [*_NEXT.get(verb, ()), *sorted(set(_OPTION.findall(text.getvalue())))]
    return words


def script(shell: str, words: Mapping[str, Sequence[str]]) -> str:
    """The script of a shell.

    Args:
        shell: bash, zsh or fish.
        words: what may follow each verb.
    """
    if shell == "fish":
        lines = [f"complete -c mom-jax -n __fish_use_subcommand -f -a '{' '.join(words)}'"]
        for verb, after in words.items():
            seen = f"complete -c mom-jax -n '__fish_seen_subcommand_from {verb}'"
            plain = [word for word in after if not word.startswith("--")]
            lines += [f"{seen} -a '{' '.join(plain)}'"] if plain else []
            lines += [f"{seen} -l {word.removeprefix('--')}" for word in after if word.startswith("--")]
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'        {verb}) options="{" ".join(after)}" ;;' for verb, after in words.items())
    return {"bash": _BASH, "zsh": _ZSH}[shell].format(verbs=" ".join(words), cases=cases)
