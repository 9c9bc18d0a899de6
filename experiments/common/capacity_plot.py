"""Names and picture of `studies/capacity.py`: accuracy against state and training FLOPs; no experiment by itself."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from mom_jax.drawing import legend_below

from ..registry import Record
from .seeds import course, draw

TIMES = (3, 5, 9)  # state that a token touches with k of 2 or 4, and all of 4 or 8 memories with the shared one
MIXTURES = ((4, 2), (8, 2), (8, 4))  # memories, chosen
PARTS = ("keys", "values", "heads")
NAMES = {
    "one": "one memory",
    **{f"mom {m}/{k}/1": f"MoM {m}/{k}/1" for m, k in MIXTURES},
    **{f"{part} x{times}": f"one, {more} x{times}" for times in TIMES
       for part, more in zip(PARTS, ("wider keys", "wider values", "more heads"), strict=True)},
    "parameters": "one, MLP of equal parameters",
    "attention": "attention",
}  # fmt: skip
RULE_NAMES = {"gated_deltanet": "Gated DeltaNet", "gla": "GLA"}
# label, models in the order of a line, look: told apart by shape and dashes as well as by colour
_FAMILIES: tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...] = (
    ("one memory, wider keys", ("one", "keys x3", "keys x5", "keys x9"), {"color": "C1", "fmt": "^-"}),
    ("one memory, wider values", ("one", "values x3", "values x5", "values x9"), {"color": "C4", "fmt": "s--"}),
    ("one memory, more heads", ("one", "heads x3", "heads x5", "heads x9"), {"color": "C9", "fmt": "D:"}),
    ("one memory, MLP of equal parameters", ("parameters",), {"color": "C5", "fmt": "P"}),
    ("attention", ("attention",), {"color": "C7", "fmt": "*"}),
    ("mixture: memories/chosen/shared", ("mom 4/2/1", "mom 8/2/1", "mom 8/4/1"), {"color": "C0", "fmt": "o"}),
)
_AXES = (
    ("state", "state of a sequence (bytes)"),
    ("touched", "state touched by a token (bytes)"),
    ("flops", "training FLOPs per token, layers"),
)


def capacity_plot(records: list[Record]) -> dict[str, Figure]:
    """For each number of pairs accuracy (a row for each rule, a column for each cost), and the course of training."""
    return {
        f"{name}-{pairs}-pairs": drawn(records, pairs)
        for pairs in sorted({record["point"]["pairs"] for record in records})
        for name, drawn in (("accuracy", _of_pairs), ("course", courses_plot))
    }


def courses_plot(records: Sequence[Record], pairs: int) -> Figure:
    """Validation loss by step, the mean of the seeds, a panel for each rule: whether it has stopped falling."""
    of_pairs = [record for record in records if record["point"]["pairs"] == pairs]
    rules = [rule for rule in RULE_NAMES if any(record["point"]["rule"] == rule for record in of_pairs)]
    figure = Figure(figsize=(max(8.5, 4.6 * len(rules) + 0.6), 4.8), layout="constrained")
    panels = figure.subplots(1, len(rules), sharey=True, squeeze=False)[0]
    dashes = ("-", "--", ":", "-.")
    for axes, rule in zip(panels, rules, strict=True):
        for record in of_pairs:
            if record["point"]["rule"] == rule:
                steps, losses = course(record)
                number = list(NAMES).index(record["point"]["architecture"])
                label = NAMES[record["point"]["architecture"]]
                marker = "o" if len(steps) == 1 else ""
                axes.plot(steps, losses, marker + dashes[number % 4], color=f"C{number % 10}", label=label)
        axes.set(title=f"{RULE_NAMES[rule]}, {pairs} pairs", xlabel="step")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    panels[0].set_ylabel("validation loss (nats), mean of seeds")
    legend_below(figure, 3)
    return figure


def costs_plot(records: Sequence[Record]) -> Figure:
    """The same of the fewest pairs."""
    return _of_pairs(records, min(record["point"]["pairs"] for record in records))


def _of_pairs(records: Sequence[Record], pairs: int) -> Figure:
    by_model = {(r["point"]["rule"], r["point"]["architecture"]): r for r in records if r["point"]["pairs"] == pairs}
    rules = [rule for rule in RULE_NAMES if any(key[0] == rule for key in by_model)]
    attention = next((r for (_, name), r in by_model.items() if name == "attention"), None)
    figure = Figure(figsize=(10.5, 3.1 * len(rules) + 0.9), layout="constrained")
    grid = figure.subplots(len(rules), len(_AXES), sharey=True, sharex="col", squeeze=False)
    for row, rule in zip(grid, rules, strict=True):
        models = {name: record for (of, name), record in by_model.items() if of == rule}
        models |= {"attention": attention} if attention else {}
        for axes, (cost, label) in zip(row, _AXES, strict=True):
            _panel(axes, models, cost)
            axes.set_xlabel(label if rule == rules[-1] else "")
        row[0].set_ylabel(f"accuracy, {pairs} pairs")
        row[0].set_title(RULE_NAMES[rule])
    legend_below(figure, 3)
    return figure


def _panel(axes: Axes, models: dict[str, Record], cost: str) -> None:
    for label, names, look in _FAMILIES:
        line = [models[name] for name in names if name in models]
        if line:
            places = [float(record["result"][cost]) for record in line]
            draw(axes, places, line, label=label, markersize=6, **look)
    for name, record in models.items():
        if name.startswith("mom") and record["result"]["runs"]:
            accuracy = sum(run["accuracy"] for run in record["result"]["runs"]) / len(record["result"]["runs"])
            place = (record["result"][cost], accuracy)
            axes.annotate(name.removeprefix("mom "), place, (5, -11), textcoords="offset points", fontsize=8)
    axes.set(ylim=(0, 1.03))
    axes.set_xscale("log", base=2)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _short(value)))


def _short(value: float) -> str:
    return f"{value / 1024:,.4g}K" if value >= 1024 else f"{value:,.4g}"
