"""What a run carries from step to step."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step reads and replaces; also what a checkpoint holds.

    ``params`` is a nested dictionary of float32 arrays, ``opt_state`` Optax's own; ``step`` counts
    the batches used, ``bad_steps`` the latest skipped ones in a row, ``bad_total`` all skipped ones
    (int32 scalars); ``rng`` is the raw uint32 key that any randomness inside a step folds ``step``
    into; ``ema`` is a moving average of the parameters, ``spikes`` the statistics of
    `training.spikes`; both None where they are not asked for. The same structure carries the arrays' shapes
    and shardings.
    """

    params: Any
    opt_state: Any
    step: Any
    rng: Any
    bad_steps: Any
    bad_total: Any
    ema: Any = None
    spikes: Any = None
