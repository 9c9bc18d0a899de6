"""Several runs side by side."""

import json
from typing import Any

from matplotlib.figure import Figure

from mom_jax.cli.train import command_of
from mom_jax.drawing import legend_beside, one_panel, picture
from mom_jax.evals.harness.suites import suite_means
from mom_jax.reports.tables import Table, scored_windows
from mom_jax.training.config import flat

from .runs import Run
from .sections import Picture, Section

# Fields that say where and how a run went, not what it computed.
_ELSEWHERE = ("run_dir", "max_minutes", "log_every", "eval_every", "data.cache_dir")
_NOT_ALIKE = "Text, tokenizer, window or what was scored of it differ: not all of these losses can be compared."


def compare_runs(runs: list[Run]) -> Section:
    """Several runs in one table, what differs between their configurations, and their held-out losses in one plot."""
    rows = [_row(run) for run in runs]
    measured = [name for name in rows[0] if any(row[name] != "–" for row in rows)]
    texts = {_scored(run) for run in runs}
    note = "" if len(texts) == 1 else _NOT_ALIKE
    section = Section("Runs side by side")
    heading = ["", *(run.name for run in runs)]
    section.tables.append(Table("", heading, [[name, *(row[name] for row in rows)] for name in measured], note))
    section.tables.extend(_differences(runs))
    drawn = [run for run in runs if run.records.held_out and run.config]
    if len(drawn) > 1:
        section.pictures.append(Picture("held-out loss by tokens", picture(lambda: _held_out(drawn))))
    return section


def _row(run: Run) -> dict[str, str]:
    evaluation, means = _first(run), suite_means(run.tasks["tasks"])
    held_out = run.records.held_out
    measured = {
        "preset": command_of(run.config)[0] if run.config else None,
        "parameters": f"{run.cost.parameters:,}",
        "activated": f"{run.cost.activated:,}",
        "state (bytes)": f"{run.cost.state_bytes:,}",
        "tokens": f"{run.tokens:,}" if run.tokens else None,
        "training loss": f"{run.records.training[-1]['lm_loss']:.4f}" if run.records else None,
        "held-out loss in training": f"{held_out[-1]['held_out_loss']:.4f}" if held_out else None,
        "held-out loss (mom-jax eval)": f"{evaluation['loss']:.4f}" if evaluation else None,
        "perplexity": f"{evaluation['perplexity']:.3f}" if evaluation else None,
        "bits per byte": f"{evaluation['bits_per_byte']:.4f}" if evaluation else None,
        "recall (%)": f"{100 * means['recall']:.2f}" if "recall" in means else None,
        "commonsense (%)": f"{100 * means['commonsense']:.2f}" if "commonsense" in means else None,
    }
    return {name: value or "–" for name, value in measured.items()}


def _first(run: Run) -> Any:
    return run.evaluations[0] if run.evaluations else {}


def _scored(run: Run) -> tuple[Any, ...]:
    """What decides whether losses of two runs can be compared."""
    evaluation = _first(run)
    if run.config is None:
        return evaluation.get("data"), None, None, evaluation.get("sequence_length"), None
    data, scored = run.config.data, scored_windows(evaluation) if "windows" in evaluation else None
    length = evaluation.get("sequence_length", data.sequence_length)
    return data.path, data.held_out_path, data.tokenizer, length, scored


def _differences(runs: list[Run]) -> list[Table]:
    configs = {run.name: flat(run.config.to_dict()) for run in runs if run.config}
    fields = dict.fromkeys(field for config in configs.values() for field in config)
    rows = []
    for field in fields:
        values = [json.dumps(config.get(field)) for config in configs.values()]
        if field not in _ELSEWHERE and len(set(values)) > 1:
            rows.append([field, *values])
    return [Table("What differs between their configurations", ["field", *configs], rows)] if rows else []


def _held_out(runs: list[Run]) -> Figure:
    figure, axes = one_panel("Held-out loss in training", "tokens", "cross entropy (nats per token)")
    for number, run in enumerate(runs):
        tokens = [record["step"] * run.tokens_per_step for record in run.records.held_out]
        losses = [record["held_out_loss"] for record in run.records.held_out]
        axes.plot(tokens, losses, "o-", color=f"C{number % 10}", markersize=4, label=run.name)
    lengths = [run.records.held_out[-1]["step"] * run.tokens_per_step for run in runs]
    if max(lengths) > 20 * min(lengths):
        axes.set_xscale("log")
    legend_beside(figure)
    return figure
