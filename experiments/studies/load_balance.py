"""What each memory gets to do, with and without something that keeps loads even: figure 5 of the paper, and beyond.

    mom-jax experiment load-balance --scale tiny        two CPU cores, minutes
    mom-jax experiment load-balance --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment load-balance --scale paper       32 GPUs, ten hours a model

The auxiliary loss (scale 1e-2), a bias of the router's choice that each step moves against the load (loss-free, arXiv
2408.15664), and nothing. Tiny: source code, and synthetic recall. Small: recall of 16 pairs, as in
`studies/capacity.py`, also with 8 and 16 memories, of which two are chosen; and the load at every
learning rate of the search. The paper shows loads of mostly 0.2 to 0.3 with four memories and the loss; whether the
router collapses without it, it leaves open. A memory is dead when it gets less than a hundredth of an even share.
"""

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from mom_jax.drawing import legend_below

from ..common.comparison import Comparison, changed, grouped, measured
from ..common.text import recipe
from ..registry import Experiment, Point, Record

MODELS = {
    "auxiliary loss": changed(router_balance="auxiliary"),
    "loss-free": changed(router_balance="loss_free"),
    "nothing": changed(router_balance="none"),
}
# of the small scale also: whether a router collapses where it has more to choose from
_OPPOSITES = {"auxiliary loss": "auxiliary", "nothing": "none"}
MORE = {
    f"{name}, {count} memories": changed(router_balance=by, num_memories=count)
    for count in (8, 16)
    for name, by in _OPPOSITES.items()
}
PAIRS = (("auxiliary loss", "nothing"), ("auxiliary loss", "loss-free"))
PAIRS += tuple((f"auxiliary loss, {count} memories", f"nothing, {count} memories") for count in (8, 16))
_COMPARISON = Comparison(MODELS, tiny=("text", "recall"))
_SMALL = Comparison(MODELS | MORE, tiny=(), questions=("router-loss",), pairs=PAIRS)


def points(scale: str) -> list[Point]:
    """Those of the comparison."""
    return (_SMALL if scale == "small" else _COMPARISON).points(scale)


def run(point: Point, models: Path) -> dict[str, Any]:
    """The comparison's result with ``load`` [L][M]; of text also ``history``: load and churn while it was trained."""
    from mom_jax.training.log import read_metrics

    from ..common.text import held_out_scores, trained

    result = _SMALL.run(point, models)
    if point["measure"] == "recall":
        return result
    model = MODELS[point["model"]]
    run_dir = trained(recipe(point["size"], model.rule, model.change, point["seed"]), models)
    records = read_metrics(run_dir)
    history = {name: [[r["step"], r[name]] for r in records if name in r] for name in ("load", "routing_churn")}
    load = result if "load" in result else held_out_scores(run_dir, point["size"], 2048)
    return {**result, "load": load["load"], "history": history}


def table(records: list[Record]) -> list[list[str]]:
    """Score, the smallest and largest share of a memory over layers and seeds, and dead memories."""
    from mom_jax.ops.router_statistics import DEAD_SHARE  # imports JAX

    rows = []
    for (size, measure), models in grouped(records).items():
        for model, group in models.items():
            loads = np.asarray(loads_of(group))  # [seeds, L, M]
            dead = int((loads < DEAD_SHARE / loads.shape[-1]).sum())
            churn = [r["result"]["history"]["routing_churn"] for r in group if r["result"].get("history")]
            last = f"{np.mean([c[-1][1] for c in churn if c]):.3f}" if any(churn) else "–"
            cells = [measure, size, model, *measured(measure, group), f"{loads.min():.3f}", f"{loads.max():.3f}"]
            rows.append([*cells, f"{dead} of {loads.size}", last])
    heading = ["measure", "size", "kept even by", "mean [95 %]", "each seed (at chance)", "failed to train"]
    return [[*heading, "smallest share", "largest share", "dead memories", "churn at the end"], *rows]


def plot(records: list[Record]) -> dict[str, Figure]:
    """The share of every memory of every layer and seed at the end; the least by learning rate; on text its course."""
    drawn = {"shares": _ends(records), "rates": _by_rate(records), "course": _courses(records)}
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _ends(records: list[Record]) -> Figure:
    """A row for each way: a dot for every memory of every layer and seed, a dash where an even share lies."""
    groups = grouped(records)
    most = max(map(len, groups.values()))
    figure = Figure(figsize=(4.2 * len(groups) + 2, 0.5 * most + 1.3), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    for axes, ((size, measure), models) in zip(panels, groups.items(), strict=True):
        for place, group in enumerate(models.values()):
            shares = np.sort(np.ravel(loads_of(group)))
            axes.plot(shares, place + np.linspace(0.25, -0.25, len(shares)), "o", color="C0", alpha=0.7, markersize=5)
            axes.vlines(1 / len(loads_of(group)[0][0]), place - 0.4, place + 0.4, color="0.3", linestyle="--")
        axes.set(title=f"{measure}, {size}", yticks=range(len(models)), yticklabels=list(models), xlim=(-0.02, None))
        axes.set(ylim=(len(models) - 0.4, -0.6), xlabel="share of a layer's assignments (dashed: even)")
    return figure


def _by_rate(records: list[Record]) -> Figure | None:
    """The least share of a memory, in even shares, at each rate that was tried: a line for each model of recall."""
    shown = [record for record in records if record["result"].get("grid_loads")]
    if not shown:
        return None
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for record, marker in zip(shown, "os^DvP*", strict=False):
        rates, loads = zip(*record["result"]["grid_loads"], strict=True)
        least = [np.min(load) * len(load[0]) for load in loads]
        line = "--" if record["point"]["model"].startswith("nothing") else "-"
        axes.plot(rates, least, marker + line, label=record["point"]["model"], alpha=0.8)
    axes.set_xscale("log", base=2)
    tried = sorted({rate for record in shown for rate, _ in record["result"]["grid_loads"]})
    axes.set_xticks(tried, [f"{rate:g}" for rate in tried], minor=False)
    axes.set(title="recall, one seed", xlabel="learning rate", ylim=(0, 1.03))
    axes.set_ylabel("least share of a memory (1: even, 0: dead)")
    legend_below(figure, 3)
    return figure


def _courses(records: list[Record]) -> Figure | None:
    """Shares by step: a column for each way, a line for each memory of each layer, the first seed."""
    first = [r for r in records if r["point"]["measure"] != "recall" and r["point"]["seed"] == 0]
    if not first:
        return None
    figure = Figure(figsize=(3.6 * len(first) + 0.6, 3.4), layout="constrained")
    panels = figure.subplots(1, len(first), sharey=True, squeeze=False)[0]
    for axes, record in zip(panels, first, strict=True):
        steps, loads = zip(*record["result"]["history"]["load"], strict=True)
        values = np.stack(loads)  # [records, L, M]
        for layer in range(len(values[0])):
            axes.plot(steps, values[:, layer], "-", color=f"C{layer % 10}", alpha=0.8)
        axes.set(title=record["point"]["model"], xlabel="step", ylim=(0, None))
    panels[0].set_ylabel("share of a layer's assignments\n(a colour for each layer)")
    return figure


def loads_of(group: list[Record]) -> list[Any]:
    """The load [L][M] of every seed."""
    return [run["load"] for record in group for run in record["result"].get("runs", [record["result"]])]


def findings(records: list[Record]) -> list[str]:
    """How uneven loads became, and whether a router collapsed at any learning rate."""
    uneven = _collapses(records)
    for (size, measure), models in grouped(records).items():
        spans = {name: np.ptp(loads_of(group)) for name, group in models.items()}
        spread = ", ".join(f"{span:.3f} ({name})" for name, span in spans.items())
        uneven.append(f"{measure}, {size}: between the largest and the smallest share of a memory lie {spread}.")
    return uneven


def _collapses(records: list[Record]) -> list[str]:
    """Of models that nothing keeps even: dead memories at every rate that was tried."""
    from mom_jax.ops.router_statistics import DEAD_SHARE  # imports JAX

    told = []
    for record in records:
        if record["point"]["model"].startswith("nothing") and record["result"].get("grid_loads"):
            rates, loads = zip(*record["result"]["grid_loads"], strict=True)
            dead = [int((np.asarray(load) * len(load[0]) < DEAD_SHARE).sum()) for load in loads]
            counts = ", ".join(f"{count} at {rate:g}" for rate, count in zip(rates, dead, strict=True))
            told.append(f"{record['point']['model']}: dead memories of {np.size(loads[0])} by learning rate: {counts}.")
    return told


EXPERIMENT = Experiment(
    points,
    run,
    plot,
    table,
    findings,
    _SMALL.contrasts,
    scales=_COMPARISON.scales,
    training=_SMALL.training,
)
