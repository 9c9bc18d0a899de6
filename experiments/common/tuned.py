"""A model at its best learning rate, over several seeds: one rule for every experiment of the small scale.

The rate is chosen on a seed of its own, which counts for nothing else: a grid is tried, and the rate whose loss on
validation rows is the lowest is taken. While that is the grid's lowest or highest, the grid is extended on that side.
Then fresh seeds are trained at that rate and scored on test rows. No run takes part in both. A grid of one rate is
taken as it is.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mom_jax.files import json_line, read_json, with_nan, write_atomically
from mom_jax.models.config import MoMConfig

if TYPE_CHECKING:
    from .rows import Rows
    from .synthetic import Training

GRID = (1e-3, 2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2, 3)
EIGHT = tuple(range(8))  # where some runs stray
TUNING_SEED = 100
_FACTOR = 2.0
_EXTENSIONS = 2  # times two rates; after that a rate is said to lie at the edge

Run = dict[str, Any]
Train = Callable[[Sequence[tuple[float, int]]], list[Run]]  # (rate, seed) of each model to its results


def tuned(train: Train, grid: Sequence[float] = GRID, seeds: Sequence[int] = SEEDS) -> dict[str, Any]:
    """The best rate of a model, and its runs with that rate.

    Args:
        train: trains models of a rate and a seed each, and returns of each at least ``validation_loss``.
        grid: learning rates, ascending.
        seeds: of the runs that count; `TUNING_SEED` is not among them.

    Returns:
        JSON-ready: ``learning_rate``, ``inside`` (whether it lies inside the grid), ``grid`` [[rate, validation loss]],
        ``grid_loads`` [[rate, load [L][M]]] of mixtures, and ``runs``, one for each seed, in their order.
    """
    if len(grid) == 1:
        return {"learning_rate": grid[0], "inside": False, "grid": [], "runs": train([(grid[0], s) for s in seeds])}
    tried = _tried(train, grid)
    for _ in range(_EXTENSIONS):
        more = _beyond(_losses(tried))
        if not more:
            break
        tried |= _tried(train, more)
    losses, rates = _losses(tried), sorted(tried)
    rate = _lowest(losses)
    return {
        "learning_rate": rate,
        "inside": not _beyond(losses),
        "grid": [[each, losses[each]] for each in rates],
        "grid_loads": [[each, tried[each]["load"]] for each in rates if "load" in tried[each]],
        "runs": train([(rate, seed) for seed in seeds]),
    }


def _tried(train: Train, rates: Sequence[float]) -> dict[float, Run]:
    return dict(zip(rates, train([(rate, TUNING_SEED) for rate in rates]), strict=True))


def _losses(tried: Mapping[float, Run]) -> dict[float, float]:
    return {rate: run["validation_loss"] for rate, run in tried.items()}


def _lowest(losses: Mapping[float, float]) -> float:
    return min(losses, key=lambda rate: (not losses[rate] < float("inf"), losses[rate]))


def _beyond(losses: Mapping[float, float]) -> list[float]:
    """Two more rates on the side where the best one is the last; none where it lies inside."""
    best, rates = _lowest(losses), sorted(losses)
    if best not in (rates[0], rates[-1]):
        return []
    factor = _FACTOR if best == rates[-1] else 1 / _FACTOR
    return [best * factor**n for n in (1, 2)]


def kept(config: MoMConfig, rows: "Rows", training: "Training", models: Path, together: int) -> Train:
    """Trains a model with rates and seeds as asked, and keeps the results, so that a stopped point goes on.

    Runs of a grid, which count for nothing else, are not scored on ``rows.tests``.

    Args:
        config: the model.
        rows: what it reads.
        training: all but rate and seed.
        models: the folder; files are named after the rows' facts, the model and the training.
        together: this many models at most run in one program.
    """
    from .synthetic import train_together

    def train(asked: Sequence[tuple[float, int]]) -> list[Run]:
        each = [dataclasses.replace(training, learning_rate=rate, seed=seed) for rate, seed in asked]
        return [run for i in range(0, len(each), together) for run in part(each[i : i + together])]

    def part(each: "list[Training]") -> list[Run]:
        key = json.dumps([rows.facts, config.to_dict(), [dataclasses.asdict(one) for one in each]], sort_keys=True)
        path = models / f"tuned-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
        if not path.is_file():
            tests = {} if each[0].seed == TUNING_SEED else rows.tests
            runs = train_together(config, dataclasses.replace(rows, tests=tests), each)
            models.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json_line({"runs": runs}))  # a loss that was NaN is null there
        return with_nan(read_json(path, dict[str, Any], "delete it to train again")["runs"])

    return train
