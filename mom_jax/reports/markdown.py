"""A run as a page: ``report.md`` and the pictures beside it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mom_jax.errors import install, is_installed
from mom_jax.evals.results import Evaluation, read_evaluations
from mom_jax.files import write_atomically
from mom_jax.paths import local_path
from mom_jax.reports.records import Records, nothing_logged, read_records
from mom_jax.reports.tables import Table, evaluation_tables, in_words
from mom_jax.reports.words import TWO_LOSSES, describe_model, last_held_out, sample_of
from mom_jax.training.config import CONFIG_FILE, TrainConfig


def write_report(run_dir: str | Path, out: Path | None = None) -> Path:
    """Writes ``report.md`` and its PNG pictures: what was logged in training, and the evaluations, if there are any.

    Args:
        run_dir: a run with at least one record in its ``metrics.jsonl``.
        out: where the page goes and where ``eval.json`` is; the run's folder unless given.

    Returns:
        The path of ``report.md``.

    Raises:
        InputError: no run there, or nothing was logged yet.
    """
    run_dir = local_path(run_dir, "run_dir")
    out, left_out = out or run_dir, list[str]()
    config = TrainConfig.from_file(run_dir / CONFIG_FILE)
    records = read_records(run_dir, left_out.append)
    if not records:
        raise nothing_logged(run_dir, left_out)
    evaluations = read_evaluations(out, left_out.append)
    shown = curves(config, records, out)
    lines = [*_summary(config, records), *_left_out(left_out), *_evaluation(evaluations), *shown, ""]
    write_atomically(out / "report.md", "\n".join(lines))
    return out / "report.md"


def _summary(config: TrainConfig, records: Records) -> list[str]:
    data, last = config.data, records.training[-1]
    speed = np.median([record["tokens_per_second"] for record in records.training])
    window = f"{data.batch_size} windows of {data.sequence_length}"
    rows = [
        ["steps", f"{last['step']:,} of {config.steps:,}"],
        ["tokens per step", f"{data.tokens_per_step:,} ({window})"],
        ["text", f"`{data.path}`, tokenizer `{data.tokenizer}`"],
        ["model", describe_model(config.model)],
        ["last training loss", f"{last['lm_loss']:.4f} nats per token"],
    ]
    if records.held_out:
        rows.append(["last held-out loss in training", last_held_out(config, records.held_out[-1])])
    rows += [["skipped steps", f"{last['bad_total']:.0f}"], ["median speed", f"{speed:,.0f} tokens/s"]]
    where = "The whole configuration is in `config.json`, every logged number in `metrics.jsonl`."
    return [f"# Training run {Path(config.run_dir).name}", "", *Table("", ["", ""], rows, where).markdown()]


def _left_out(complaints: Sequence[str]) -> list[str]:
    return ["Left out:", "", *(f"- {complaint}" for complaint in complaints), ""] if complaints else []


def _evaluation(evaluations: Sequence[Evaluation]) -> list[str]:
    if not evaluations:
        return []
    scores, *details = evaluation_tables(evaluations)
    lines = ["## Held-out text", "", TWO_LOSSES, "", *scores.markdown()]
    if len(evaluations) > 1:
        lines += [f"The following is about the first row: {in_words(evaluations[0])}.", ""]
    lines += [line for table in details for line in table.markdown()]
    for title, text in sample_of(evaluations):
        lines += [f"## {title}", "", *(f"    {line}" for line in text.splitlines()), ""]
    return lines


def curves(config: TrainConfig, records: Records, out: Path) -> list[str]:
    """Draws the curves as PNG files into ``out``, if that can be done here; returns the lines that show them."""
    if not is_installed("matplotlib"):
        return ["## Curves", "", f"They are drawn where matplotlib is installed: `{install('report')}`"]
    from mom_jax.reports.pictures import draw_pictures  # of the extra `report`

    pictures = draw_pictures(config, records)
    for name, png in pictures.items():
        write_atomically(out / f"{name}.png", png)
    return ["## Curves", "", *(f"![{name.replace('_', ' ').capitalize()}]({name}.png)" for name in pictures)]
