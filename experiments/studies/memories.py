"""The number of memories, and how many of them a token goes to: figures 6 and 8 of the paper.

    mom-jax experiment memories --scale tiny        two CPU cores, minutes
    mom-jax experiment memories --scale small       two CPU cores, an hour; one GPU, minutes
    mom-jax experiment memories --scale paper       32 GPUs, ten hours a model

One memory, then 2 to 8 (paper: to 16) of which a half or a quarter is chosen, beside the shared one. Tiny and small:
synthetic recall, as in `studies/capacity.py`. The paper has figures without numbers, in which the averages of recall
and commonsense tasks generally rise with the number of memories.
"""

import numpy as np
from matplotlib.figure import Figure

from mom_jax.drawing import legend_beside
from mom_jax.models.baselines import single

from ..common.comparison import MEASURES, Comparison, Model, changed, every, good, grouped
from ..registry import Experiment, Record

RATIOS = {"half chosen": (0.5, "C0"), "a quarter chosen": (0.25, "C1")}


def label(memories: int, top_k: int) -> str:
    """A model's name."""
    return f"{top_k} of {memories}"


PAIRS = [(4, 2), (2, 1), (8, 4), (4, 1), (8, 2), (16, 8), (16, 4)]  # memories, chosen
_MODELS = {"1 memory": Model(single)} | {label(m, k): changed(num_memories=m, topk=k) for m, k in PAIRS}
_FEW = Comparison({name: _MODELS[name] for name in _MODELS if "16" not in name}, tiny=("recall",))
_ALL = Comparison(_MODELS, tiny=())


def plot(records: list[Record]) -> dict[str, Figure]:
    """Each measure against the number of memories: a line for each share that is chosen, a dot or cross for a seed."""
    groups = grouped(records)
    figure = Figure(figsize=(4.6 * len(groups) + 0.4, 3.8), layout="constrained")
    panels = figure.subplots(1, len(groups), squeeze=False)[0]
    names = {name for models in groups.values() for name in models}
    counts = sorted({1, *(m for m, k in PAIRS if label(m, k) in names)})
    for axes, ((size, measure), models) in zip(panels, groups.items(), strict=True):
        for name, (ratio, colour) in RATIOS.items():
            line = {1: models.get("1 memory")}
            line |= {m: models.get(label(m, k)) for m, k in sorted(PAIRS) if k == ratio * m}
            runs = {m: (every(measure, group), good(measure, group)) for m, group in line.items() if group}
            means = {m: np.mean(learnt) for m, (_, learnt) in runs.items() if learnt}
            axes.plot(list(means), list(means.values()), "o-", color=colour, label=name)
            for m, (values, learnt) in runs.items():
                at_chance = [value for value in values if value not in learnt]
                axes.plot([m] * len(learnt), learnt, ".", color=colour, alpha=0.6)
                axes.plot([m] * len(at_chance), at_chance, "x", color=colour)
        better = "lower" if MEASURES[measure].lower else "higher"
        axes.set(title=size, xlabel="memories", ylabel=f"{MEASURES[measure].title} ({better} is better)")
        axes.set_xscale("log", base=2)
        axes.set_xticks(counts, list(map(str, counts)))
    legend_beside(figure)
    return {"memories": figure}


EXPERIMENT = Experiment(
    lambda scale: (_FEW if scale in ("tiny", "small") else _ALL).points(scale),
    _ALL.run,
    plot,
    _ALL.table,
    contrasts=_ALL.contrasts,
    scales=_FEW.scales,
    training=_ALL.training,
)
