"""The five questions that a page of results opens with, answered from the comparisons of its small sweeps."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from ..common.architectures import ARCHITECTURES
from ..common.capacity_plot import NAMES, RULE_NAMES, costs_plot
from ..common.seeds import scores, trained
from ..common.statistics import Judged, Verdict
from ..registry import Point, Record, get_experiment

# name: (question, the experiment whose small scale answers it)
QUESTIONS = {
    "active-state": ("Does a mixture recall more than one memory of equal active state?", "capacity"),
    "total-state": ("Does a mixture recall more than one memory of equal total state?", "capacity"),
    "parameters": ("Does a mixture recall more than one memory of no more parameters?", "capacity"),
    "cost": ("What does a mixture cost?", "capacity"),
    "router-loss": ("Does the router need its loss?", "load-balance"),
}
# of a verdict: alone, and before what it is against
_WHERE: dict[Verdict, tuple[str, str]] = {
    "better": ("ahead", "ahead of"),
    "worse": ("behind", "behind"),
    "undecided": ("undecided", "undecided against"),
}


class Answer(NamedTuple):
    """A question with what is known.

    Attributes:
        name, question: of `QUESTIONS`.
        lines: the answer in words, a paragraph each; every one follows from the comparisons.
        judged: the comparisons.
        draw: makes the picture; None where nothing has been measured.
    """

    name: str
    question: str
    lines: list[str]
    judged: list[Judged]
    draw: Callable[[], Figure] | None


def answers(records: Mapping[str, Sequence[Record]], judged: Sequence[Judged]) -> list[Answer]:
    """All questions.

    Args:
        records: of the small sweeps, by experiment.
        judged: all comparisons of the page.
    """
    return [_answer(name, records, [j for j in judged if name in j.contrast.questions]) for name in QUESTIONS]


def _answer(name: str, records: Mapping[str, Sequence[Record]], judged: list[Judged]) -> Answer:
    question, experiment = QUESTIONS[name]
    if name == "cost" and records.get(experiment):
        return Answer(name, question, _costs(records[experiment]), [], lambda: costs_plot(records[experiment]))
    if not judged:
        command = f"mom-jax experiment {experiment} --scale small"
        return Answer(name, question, [f"Not yet run at the small scale: `{command}`."], [], None)
    lines = [_short(judged), *_by_rival(judged), *_long(judged), *_failures(records, judged)]
    return Answer(name, question, lines, judged, lambda: forest(judged, question))


def _short(judged: list[Judged]) -> str:
    """The answer in a word or two, and how many comparisons it rests on."""
    counts: Counter[Verdict] = Counter(one.verdict for one in judged)
    agreed: dict[Verdict, str] = {"better": "Yes", "worse": "No"}
    word = next((word for verdict, word in agreed.items() if counts[verdict] == len(judged)), None)
    if word is None:
        word = "Undecided" if counts["undecided"] == len(judged) else "It depends on what it is compared with"
    return f"{word}: of {len(judged)} comparison{'s' * (len(judged) > 1)} {_told(counts)}."


def _told(counts: Mapping[Verdict, int]) -> str:
    return ", ".join(f"{counts[verdict]} {word}" for verdict, (word, _) in _WHERE.items())


def _by_rival(judged: list[Judged]) -> list[str]:
    """The verdicts against rivals of one kind, whatever their size; nothing where this sums up nothing."""
    kinds: dict[str, Counter[Verdict]] = {}
    for one in judged:
        kinds.setdefault(re.sub(r" x\d+$", "", one.contrast.other), Counter())[one.verdict] += 1
    parts = [f"against {kind}: {_told(counts)}" for kind, counts in sorted(kinds.items())]
    return [f"By what stands against it: {'; '.join(parts)}."] if 1 < len(kinds) < len(judged) else []


def _long(judged: list[Judged]) -> list[str]:
    """A line for each model that is compared and what is measured: differences with their intervals."""
    groups: dict[tuple[str, str], list[Judged]] = {}
    for one in judged:
        groups.setdefault((one.contrast.what, one.contrast.first), []).append(one)
    return [f"{what}: {first} is {_verdicts(group)}." for (what, first), group in groups.items()]


def _verdicts(group: list[Judged]) -> str:
    """Verdict by verdict, what it is against, with the difference, its interval and the number of seeds."""
    parts = []
    for verdict, (_, where) in _WHERE.items():
        rivals = sorted((one for one in group if one.verdict == verdict), key=lambda one: -one.difference.value)
        parts += [f"{where} {', '.join(map(_rival, rivals))}"] if rivals else []
    return "; ".join(parts)


def _rival(one: Judged) -> str:
    value, low, high = one.difference
    seeds = f"{len(one.contrast.ours)} and {len(one.contrast.theirs)} seeds"
    return f"{one.contrast.other} ({value:+.2f} [{low:+.2f}, {high:+.2f}], {seeds})"


def _failures(records: Mapping[str, Sequence[Record]], judged: list[Judged]) -> list[str]:
    """Which of the models that are compared have seeds that failed to train, by experiment."""
    compared = {one.contrast for one in judged}
    told = []
    for experiment, group in records.items():
        contrasts = compared.intersection(get_experiment(experiment).contrasts(list(group)))
        names = {name for contrast in contrasts for name in (contrast.first, contrast.other)}
        beside = [record for record in group if _name(record["point"]) in names]
        told += [line for record in beside if (line := _failed(experiment, record))]
    return [f"Failed to train, and so part of no comparison: {', '.join(told)}."] if told else []


def _name(point: Point) -> str:
    architecture = point.get("architecture", "")
    return point.get("model") or NAMES.get(architecture) or ARCHITECTURES.get(architecture, ("",))[0]


def _failed(experiment: str, record: Record) -> str:
    """A model, how many of its seeds failed, and at what; empty if none did or what it learns has no chance level."""
    point = record["point"]
    if "chance" not in record["result"] or not (failures := len(scores(record)) - len(trained(record))):
        return ""
    rule = [RULE_NAMES[point["rule"]]] if "rule" in point else []
    task = ", ".join([*rule, *([f"{point['pairs']} pairs"] if "pairs" in point else [])]) or experiment
    return f"{_name(point)} {failures} of {len(scores(record))} ({task})"


def _costs(records: Sequence[Record]) -> list[str]:
    """Every mixture's state and FLOPs beside one memory's, of the fewest pairs as in the picture; not measured."""
    fewest = min(record["point"]["pairs"] for record in records)
    records = [record for record in records if record["point"]["pairs"] == fewest]
    results = {(r["point"]["rule"], r["point"]["pairs"], r["point"]["architecture"]): r["result"] for r in records}
    lines = ["Counted from the models' shapes, so without an interval; the picture sets accuracy against each cost."]
    for (rule, pairs, name), result in results.items():
        one = results.get((rule, pairs, "one"))
        if one and name.startswith("mom"):
            times = [result[cost] / one[cost] for cost in ("state", "touched", "flops", "parameters")]
            lines.append(
                f"{NAMES[name]}, {RULE_NAMES[rule]}, {pairs} pairs, beside one memory: {times[0]:.3g} times the state, "
                f"{times[1]:.3g} times the state that a token touches, {times[2]:.2f} times the training FLOPs of the "
                f"layers, {times[3]:.2f} times the parameters of the whole model."
            )
    return lines


def forest(judged: Sequence[Judged], title: str) -> Figure:
    """Differences with their intervals, a row each; filled where the verdict stands, hollow where it is undecided."""
    figure = Figure(figsize=(9.0, 0.27 * len(judged) + 1.6), layout="constrained")
    axes = figure.subplots()
    for place, one in enumerate(judged):
        value, low, high = one.difference
        decided = one.verdict != "undecided"
        look: dict[str, Any] = {"color": "C0" if decided else "C7", "markerfacecolor": "C0" if decided else "none"}
        spread = [[value - low], [high - value]] if np.isfinite(low) else None
        axes.errorbar([value], [place], xerr=spread, fmt="o", capsize=3, **look)
    axes.axvline(0, color="0.5", linewidth=1)
    labels = [f"{one.contrast.first} less {one.contrast.other} ({_task(one)})" for one in judged]
    axes.set_yticks(range(len(judged)), labels, fontsize=8)
    axes.set(ylim=(len(judged) - 0.5, -0.5), xlabel="difference in accuracy, 95 % interval\n(hollow: undecided)")
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")  # longer than the panel is wide
    return figure


def _task(one: Judged) -> str:
    return one.contrast.what.removesuffix(", accuracy").removeprefix("recall of ")
