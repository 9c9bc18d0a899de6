"""Recall of pairs: its tasks, and a model's result on one; no experiment by itself."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from numpy.random import Generator

from mom_jax.data.recall import RecallBatch, fused_mqar, mqar
from mom_jax.models.config import MoMConfig

from ..registry import Point
from .rows import Rows
from .seeds import Task, learned
from .tuned import EIGHT, GRID


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Task):
    """What is to be recalled; ``task`` is mqar or fused."""

    length: int
    pairs: int


TINY = Pairs(task="fused", length=24, pairs=8, vocab=64, hidden_size=32, num_layers=1, head_dim=4, num_memories=4,
             steps=50, batch_size=32, questions=8, rates=(1e-2,), seeds=(0, 1))  # fmt: skip


def small(pairs: int, steps: int = 1500) -> Pairs:
    """Fused tokens of the small scale: 256 pairs a step, however many in a row; eight seeds, since some runs stray."""
    return Pairs(task="fused", length=2 * pairs, pairs=pairs, vocab=512, hidden_size=64, num_layers=1, head_dim=8,
                 num_memories=4, steps=steps, batch_size=256 // pairs, questions=pairs, test_rows=1024, rates=GRID,
                 seeds=EIGHT, together=4)  # fmt: skip


def recalled(config: MoMConfig, point: Point, models: Path) -> dict[str, Any]:
    """The result of a model on a point's task, which is kept: several experiments ask for the same.

    Args:
        config: the model.
        point: fields of `Pairs`.
        models: where results are kept.
    """
    maker = {"mqar": mqar, "fused": fused_mqar}[point["task"]]
    make = functools.partial(maker, length=point["length"], vocab=point["vocab"])
    facts = {name: point[name] for name in ("task", "length", "pairs", "vocab")}
    rows = Rows(facts, functools.partial(make, pairs=point["pairs"]))
    if "fewest" in point:
        lessons = functools.partial(_of_some_pairs, make, point["fewest"], point["pairs"])
        rows = Rows({**facts, "fewest": point["fewest"]}, rows.make, lessons)
    config = dataclasses.replace(config, impl="xla")  # kernels run one model at a time
    return learned(point, config, rows, models, chance=1 / point["pairs"])


def _of_some_pairs(make: Callable[..., RecallBatch], fewest: int, most: int, rng: Generator, batch: int) -> RecallBatch:
    """Rows of as many pairs each: a power of two of the fewest, drawn."""
    return make(rng, batch, pairs=fewest << int(rng.integers((most // fewest).bit_length())))
