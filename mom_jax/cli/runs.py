"""What several verbs say and do with a run; imports JAX."""

import logging
from typing import Any

from rich.console import Console
from rich.table import Table

from mom_jax import terminal
from mom_jax.terminal import print_table
from mom_jax.training.processes import is_first


def console() -> Console:
    """Where verbs print, the first of several processes alone.

    The checkpoint library's own log is kept out of it, for its errors reach us as exceptions.
    """
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    return terminal.console(quiet=not is_first())


def print_evaluation(evaluation: dict[str, Any], out: Console) -> None:
    """Prints tables of the scores, the loss by position, and the load of each memory."""
    scores = Table(title=f"held-out text, step {evaluation['step']}", title_justify="left")
    for name in ("tokens", "loss (nats)", "perplexity", "bits per byte"):
        scores.add_column(name, justify="right")
    scores.add_row(
        f"{evaluation['tokens']:,}",
        f"{evaluation['loss']:.4f}",
        f"{evaluation['perplexity']:.3f}",
        f"{evaluation['bits_per_byte']:.4f}",
    )
    positions = Table("position", "tokens", "loss (nats)", title="by position in the window", title_justify="left")
    for bucket in evaluation["by_position"]:
        positions.add_row(f"{bucket['start']}-{bucket['stop'] - 1}", f"{bucket['tokens']:,}", f"{bucket['loss']:.4f}")
    for table in (scores, positions):
        print_table(table, out)
    if "load" not in evaluation:
        return
    memories = [f"memory {m}" for m in range(len(evaluation["load"][0]))]
    loads = Table("layer", *memories, "entropy (nats)", title="share of the assignments", title_justify="left")
    for layer, (load, entropy) in enumerate(zip(evaluation["load"], evaluation["routing_entropy"], strict=True)):
        loads.add_row(str(layer), *(f"{share:.3f}" for share in load), f"{entropy:.3f}")
    print_table(loads, out)
