"""``mom-jax demo``: the whole path in a few minutes, from text to report."""

import dataclasses
import sys
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
    from mom_jax.cli.completion import Choices, complete
    from mom_jax.cli.runs import console, print_evaluation
    from mom_jax.evals.ngram import ngram_bits_per_byte
    from mom_jax.reports.markdown import write_report
    from mom_jax.runs import evaluate_run, one_device, opened_run, train_and_report
    from mom_jax.terminal import print_table

    out = console()
    if not train_and_report(config, out).finished:
        return 0
    evaluation, data = evaluate_run(config.run_dir)
    print_evaluation(evaluation, out)
    rows = comparison(evaluation["bits_per_byte"], ngram_bits_per_byte(data))
    print_table(_table(rows), out)
    out.print("a completion, sampled at temperature 0.7:", style="bold")
    with opened_run(config.run_dir, one_device()) as (_, model, _step):
        complete(config, model, PROMPT, 200, _write, Choices(temperature=0.7))
    report = write_report(config.run_dir, evaluation, extra=_markdown(rows))
    out.print(f"\n\nreport: {report}")
    return 0


def comparison(ours: float, baselines: dict[str, float]) -> list[tuple[str, str, str]]:
    """Rows (model, bits per byte, how much lower or higher ours is), in the order of ``baselines`` with ours last.

    Args:
        ours: held-out bits per byte of the trained model.
        baselines: those of other models on the same text.
    """
    rows = [
        (
            name,
            f"{bits:.4f}",
            f"{abs(bits - ours):.4f} bits ({abs(1 - ours / bits):.1%}) {'lower' if ours < bits else 'higher'}",
        )
        for name, bits in baselines.items()
    ]
    return [*rows, ("MoM", f"{ours:.4f}", "")]


def _table(rows: list[tuple[str, str, str]]):
    from rich.table import Table

    table = Table(
        "model", "bits per byte", "MoM is", title="held-out text, same files and same bytes", title_justify="left"
    )
    for row in rows:
        table.add_row(*row)
    return table


def _markdown(rows: list[tuple[str, str, str]]) -> str:
    lines = [
        "| model | bits per byte | MoM is |",
        "|---|---:|---|",
        *(f"| {name} | {bits} | {gap} |" for name, bits, gap in rows),
    ]
    return "\n".join(lines)


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
