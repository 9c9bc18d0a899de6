"""Items among blanks, said again in order (Gu and Dao, arXiv 2312.00752, section 3.1), by models of equal state.

    mom-jax experiment selective-copy --scale tiny       two CPU cores, four minutes
    mom-jax experiment selective-copy --scale small      two CPU cores, half an hour; one GPU, minutes
    mom-jax experiment selective-copy --scale paper      GPUs; spread it with --shard i/n

A model has to write items, pass over blanks, and tell the i-th marker from the others, which are the same token: it has
to count. The models are those of recall (`studies/mqar.py`): the mixture, one memory of its size, of equal active and
of equal total state, and attention. All but attention have short convolutions.

Tiny: 4 items of 14 in 16 tokens, two layers of width 32 with one head of 4 key and 8 value channels, 4 memories
of which 2 are chosen, one learning rate, two seeds. Small: 8 items in 32 tokens, 2,000 steps, learning rates chosen as
`common/tuned.py` says.
Paper: 16 items of 14 in 4096 tokens, two layers of width 64, 400,000 steps of 64 rows, as Gu and Dao have it; memories
of 16 key and 32 value channels, and their learning rate and larger ones.
"""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mom_jax.data.recall import selective_copy

from ..common.architectures import ARCHITECTURES, COMPARED, architecture, mixture
from ..common.rows import Rows
from ..common.seeds import CELLS, Task, beside_mixture, cells, draw, learned, points_of, rate_cell
from ..common.tuned import EIGHT, GRID
from ..registry import Contrast, Experiment, Point, Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Items(Task):
    """What is to be said again."""

    task: str = "selective-copy"
    length: int
    items: int


TASKS = {
    "tiny": Items(length=16, items=4, vocab=16, hidden_size=32, num_layers=2, head_dim=4, num_memories=4, steps=50,
                  batch_size=32, questions=4, rates=(1e-2,), seeds=(0, 1)),
    "small": Items(length=32, items=8, vocab=16, hidden_size=32, num_layers=2, head_dim=4, num_memories=4, steps=2000,
                   batch_size=32, questions=8, rates=GRID, seeds=EIGHT, together=4),
    "paper": Items(length=4096, items=16, vocab=16, hidden_size=64, num_layers=2, head_dim=16, num_memories=4,
                   steps=400_000, batch_size=64, questions=16, rates=(1e-4, 3e-4, 1e-3), seeds=(0, 1, 2), together=1),
}  # fmt: skip


def points(scale: str) -> list[Point]:
    """Every model."""
    return points_of(TASKS[scale], COMPARED)


def run(point: Point, models: Path) -> dict[str, Any]:
    """The best learning rate of a model, and every seed with it."""
    sizes = {name: point[name] for name in ("length", "items", "vocab")}
    rows = Rows({"task": point["task"], **sizes}, functools.partial(selective_copy, **sizes))
    config = architecture(point["architecture"], dataclasses.replace(mixture(point), use_short_conv=True))
    config = dataclasses.replace(config, impl="xla")  # kernels run one model at a time
    return learned(point, config, rows, models, chance=1 / (point["vocab"] - 2))


def table(records: list[Record]) -> list[list[str]]:
    """Every model's accuracy: mean with its interval, and each seed."""
    heading = ["items", "model", *CELLS, "rate", "state", "active parameters"]
    rows = []
    for record in records:
        point, first = record["point"], record["result"]["runs"][0]
        name, costs = ARCHITECTURES[point["architecture"]][0], [f"{first[cost]:,}" for cost in ("state", "activated")]
        rows.append([str(point["items"]), name, *cells(record), rate_cell(record), *costs])
    return [heading, *rows]


def plot(records: list[Record]) -> dict[str, Figure]:
    """Accuracy of every model with its interval."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes, point = figure.subplots(), records[0]["point"]
    names = [ARCHITECTURES[record["point"]["architecture"]] for record in records]
    for place, (record, (_, colour)) in enumerate(zip(records, names, strict=True)):
        draw(axes, [place], [record], color=colour, fmt="o")
    axes.set_xticks(range(len(names)), [label.replace(" ", "\n") for label, _ in names])
    axes.set(title=f"{point['items']} items in {point['length']} tokens", ylabel="accuracy", ylim=(0, 1.03))
    return {"accuracy": figure}


def contrasts(records: list[Record]) -> list[Contrast]:
    """The mixture beside every other model."""
    return beside_mixture(f"selective copying of {records[0]['point']['items']} items, accuracy", records)


EXPERIMENT = Experiment(points, run, plot, table, contrasts=contrasts, scales=("tiny", "small", "paper"))
