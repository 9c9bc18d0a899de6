"""Recall of pairs: the tasks of a tiny scale, and results that several experiments share."""

import dataclasses
import functools
import hashlib
import json
from pathlib import Path
from typing import Any

from mom_jax.files import read_json, write_json
from mom_jax.models.config import MoMConfig

from ..registry import Point
from .seeds import Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pairs(Task):
    """What is to be recalled; ``task`` is mqar or fused."""

    length: int
    pairs: int


TINY = tuple(
    Pairs(task="fused", length=24, pairs=pairs, vocab=64, hidden_size=32, num_layers=1, head_dim=4, num_memories=4,
          steps=800, batch_size=32, questions=12)
    for pairs in (8, 12)
)  # fmt: skip
TINY_RATES = (1e-2, 3e-3)
_TRAINING = ("learning_rate", "steps", "batch_size", "seed", "questions")


def recalled(config: MoMConfig, point: Point, models: Path) -> dict[str, Any]:
    """The result of a model on a point's task, which is kept: several experiments ask for the same.

    Args:
        config: the model.
        point: fields of `Pairs`, ``learning_rate`` and ``seed``.
        models: where results are kept.
    """
    from mom_jax.data.recall import fused_mqar, mqar

    from .synthetic import Training, train_and_score

    training = {name: point[name] for name in ("task", "length", "pairs", "vocab", *_TRAINING)}
    key = json.dumps([training, config.to_dict()], sort_keys=True)
    path = models / f"recall-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"
    if not path.is_file():
        maker = {"mqar": mqar, "fused": fused_mqar}[point["task"]]
        make = functools.partial(maker, length=point["length"], pairs=point["pairs"], vocab=point["vocab"])
        result = train_and_score(config, make, Training(**{name: point[name] for name in _TRAINING}))
        models.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
    return read_json(path, dict[str, Any], "delete it to train again")
