"""Scores of a run: printed first, then kept; imports JAX."""

import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from mom_jax.cli.completion import Choices, complete
from mom_jax.cli.notes import note
from mom_jax.cli.runs import console
from mom_jax.cli.tables import print_results
from mom_jax.data.shards import PreparedData
from mom_jax.data.tokenizers import ByteTokenizer, load_tokenizer
from mom_jax.errors import InputError
from mom_jax.evals.ngram import ngram_bits_per_byte
from mom_jax.evals.results import (
    EVALUATION_FILE,
    TASKS_FILE,
    Evaluation,
    Sample,
    add_evaluation,
    add_tasks,
    is_complete,
    read_evaluations,
)
from mom_jax.locks import only_writer
from mom_jax.paths import local_path
from mom_jax.reports.markdown import write_report
from mom_jax.reports.tables import baseline_table, evaluation_tables, task_tables
from mom_jax.runs import ANSWERS, OpenedRun, all_devices, evaluate_run_on_tasks, opened_run, score
from mom_jax.training.checkpoint import NEWEST, Choice
from mom_jax.training.log import METRICS_FILE

_COUNTED = 2**30  # training tokens up to which n-gram models are counted; these take two minutes
_PROMPT, _SAMPLE, _TEMPERATURE = 32, 160, 0.7  # tokens of a prompt and of its continuation


def score_and_keep(
    run: str,
    place: Path | None,
    *,
    choice: Choice = NEWEST,
    sample: bool = True,
    prompt: str | None = None,
    about: bool = True,
    **options: int,
) -> int:
    """Scores a run on held-out text; prints, then adds the scores to ``eval.json`` and renews ``report.md``.

    Args:
        run: its folder.
        place: of the files; None keeps nothing.
        choice: which of its parameters.
        sample: continue a prompt too, where there is one device.
        prompt: the beginning of a held-out document unless given.
        about: print what text it is first.
        options: of `mom_jax.runs.score`.

    Returns:
        The exit status.
    """
    out, mesh = console(), all_devices()
    with opened_run(run, mesh, choice) as opened:
        scored = score(opened, run, mesh, out.print if about else lambda line: None, ema=choice.ema, **options)
        evaluation = scored.evaluation
        for table in evaluation_tables([evaluation]):
            print_results(table, out)
        if is_complete(evaluation) and scored.data.tokenizer_fingerprint == ByteTokenizer.fingerprint:
            evaluation["baselines"] = _baselines(scored.data, place)
            print_results(baseline_table(evaluation), out)
        if sample and mesh.size == 1:
            _add_sample(evaluation, opened, prompt or _beginning(scored.data, opened.config.data.tokenizer), out)
    return _keep(place, lambda folder: _keep_evaluation(run, folder, evaluation, out))


def score_tasks_and_keep(run: str, place: Path | None, names: Sequence[str], **options: Any) -> int:
    """Runs tasks of lm-evaluation-harness on a run; prints the results, then adds them to ``tasks.json``.

    Args:
        run: its folder.
        place: of the file and of the answers; None keeps nothing.
        names: of tasks.
        options: of `mom_jax.runs.evaluate_run_on_tasks`.

    Returns:
        The exit status.
    """
    out = console()
    with nullcontext() if place is None else only_writer(place, "tasks", "out"):
        results = evaluate_run_on_tasks(run, names, answers=place and place / ANSWERS, **options)
    for table in task_tables(results):
        print_results(table, out)

    def keep(folder: Path) -> None:
        add_tasks(folder, results, note)
        out.print(f"results: {folder / TASKS_FILE}")

    return _keep(place, keep)


def _keep(place: Path | None, write: Callable[[Path], None]) -> int:
    """Writes results that have been printed; what goes wrong now is one line."""
    if place is None:
        return 0
    try:
        write(place)
    except OSError as error:
        note(f"{place}: the results above were not kept ({error.strerror or error}); --out FOLDER keeps them elsewhere")
        return 1
    return 0


def _keep_evaluation(run: str, folder: Path, evaluation: Evaluation, out: Console) -> None:
    add_evaluation(folder, evaluation, note)
    out.print(f"scores: {folder / EVALUATION_FILE}")
    if (local_path(run, "run") / METRICS_FILE).exists():  # a converted model was not trained here
        try:
            out.print(f"report: {write_report(run, folder)}")
        except InputError as error:
            note(f"report.md was not renewed: {error}")


def _baselines(data: PreparedData, place: Path | None) -> dict[str, float]:
    """Bits per byte of n-gram models, counted once for a text; none where there is too much of it."""
    # Read for the sake of speed alone: who adds to the file complains.
    for known in read_evaluations(place, lambda complaint: None) if place else []:
        if known.get("text") == data.fingerprint and (baselines := known.get("baselines")):
            return baselines
    return ngram_bits_per_byte(data) if len(data.train) <= _COUNTED else {}


def _beginning(data: PreparedData, tokenizer: str) -> str:
    """The beginning of the first held-out document that has one."""
    ids, is_first = data.held_out.read(0, 4096)
    starts = np.flatnonzero(is_first)
    lengths = np.diff(starts, append=len(ids))
    start = starts[np.argmax(lengths >= 2 * _PROMPT)]
    return load_tokenizer(tokenizer).decode(ids[start : start + _PROMPT])


def _add_sample(evaluation: Evaluation, opened: OpenedRun, prompt: str, out: Console) -> None:
    """Prints a prompt and its continuation, and adds them to the evaluation."""
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        sys.stdout.write(piece)
        sys.stdout.flush()

    out.print(f"a continuation, sampled at temperature {_TEMPERATURE}:", style="bold")
    try:
        complete(opened.config, opened.model, prompt, _SAMPLE, write, Choices(temperature=_TEMPERATURE))
    except InputError as error:
        note(f"no continuation: {error}")
        return
    out.print("\n")
    evaluation["sample"] = Sample(prompt=prompt, text="".join(pieces).removeprefix(prompt), temperature=_TEMPERATURE)
