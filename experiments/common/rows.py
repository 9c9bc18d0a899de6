"""What a model of a synthetic task reads; no experiment by itself."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mom_jax.data.recall import RecallBatch

Maker = Callable[[np.random.Generator, int], RecallBatch]  # (generator, rows) to a batch


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a task: makers of batches of one shape, whose rows have at most `synthetic.Training.questions` labels.

    Attributes:
        facts: JSON; what tells these rows from others.
        make: makes those of test and validation, and of training where that has none of its own.
        lessons: makes those of training, if they are others: of fewer labels.
        tests: make others that the trained model is scored on, by name.
        kinds: number of kinds that a token's last id tells (`mom_jax.data.recall.interference`); 0 where it tells none.
    """

    facts: Mapping[str, Any]
    make: Maker
    lessons: Maker | None = None
    tests: Mapping[str, Maker] = dataclasses.field(default_factory=dict)
    kinds: int = 0
