"""What a backward pass should find stored where the rest of a forward pass is run again."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

RECURRENCE = "recurrence"  # outputs, what forward kernels hand to backward ones, and where rows lie
PROJECTION = "projection"  # what tokens are projected to before


def keep(arrays: Any, name: str = RECURRENCE) -> Any:
    """The same arrays, named for policies of `jax.checkpoint` that store what has this name.

    For what costs more to compute again than to read. Without such a policy it does nothing.
    """
    return jax.tree.map(lambda x: checkpoint_name(x, name), arrays)
