"""Recall of pairs: its tasks, and a model's result on one; no experiment by itself."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

from mom_jax.models.config import MoMConfig

from ..registry import Point
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
    from mom_jax.data.recall import fused_mqar, mqar

    maker = {"mqar": mqar, "fused": fused_mqar}[point["task"]]
    sizes = {name: point[name] for name in ("length", "pairs", "vocab")}
    facts = {"task": point["task"], **sizes}
    config = dataclasses.replace(config, impl="xla")  # kernels run one model at a time
    return learned(point, config, functools.partial(maker, **sizes), facts, models, chance=1 / point["pairs"])
