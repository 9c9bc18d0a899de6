"""``mom-jax demo``: the whole path in a few minutes, from text to report."""

import dataclasses
from collections.abc import Sequence

from mom_jax.cli.parsing import parse
from mom_jax.errors import InputError
from mom_jax.training.config import TrainConfig, get_train_preset

DESCRIPTION = """Trains mom-tiny for about three minutes (on two CPU cores) on the Python standard library's source,
or resumes; scores it on held-out files beside unigram, bigram and trigram models of the same text; continues a prompt;
writes the report. Options are those of mom-jax train mom-tiny.

Example: mom-jax demo --run-dir runs/demo"""

PROMPT = "def __init__(self, "


def main(args: Sequence[str]) -> int:
    """Parses the arguments and runs the demonstration."""
    default = dataclasses.replace(get_train_preset("mom-tiny"), run_dir="runs/demo")
    config = parse(TrainConfig, args, prog="mom-jax demo", description=DESCRIPTION, default=default)
    if config.data.tokenizer != "bytes":
        raise InputError(
            "data.tokenizer", config.data.tokenizer, "the demo compares with byte models; leave it at bytes"
        )
    # JAX loads only now, after the arguments have proved sound.
    from mom_jax.cli.runs import console
    from mom_jax.cli.scores import score_and_keep
    from mom_jax.paths import local_path
    from mom_jax.runs import train_and_report

    if not train_and_report(config, console()).finished:
        return 0
    return score_and_keep(config.run_dir, local_path(config.run_dir, "run_dir"), prompt=PROMPT)
