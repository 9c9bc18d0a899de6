"""Which states of a run are saved: none after steps that were skipped, for it would push out one that is as good."""

from typing import Any

import jax

from mom_jax.training.checkpoint import Checkpoints, latest_step
from mom_jax.training.state import TrainState


class Saver:
    """Writes checkpoints, but none for steps that were skipped: it would push out one that is as good.

    Args:
        checkpoints: of the run.
        step: the newest checkpoint's, or 0.
        state: what the sitting begins with.
    """

    def __init__(self, checkpoints: Checkpoints, step: int, state: TrainState):
        self._checkpoints, self._updates = checkpoints, step - int(jax.device_get(state.bad_total))
        self.newest = step or None  # step of the newest checkpoint

    def save(self, step: int, state: TrainState, position: dict[str, Any], *, ends: bool) -> int:
        """Saves the state after ``step``, unless the last steps were skipped.

        When a sitting ends it is saved all the same if there were updates before these steps that no checkpoint has.

        Returns:
            how many of the last steps were skipped, in a row.
        """
        skipped, total = map(int, jax.device_get((state.bad_steps, state.bad_total)))
        if not skipped or (ends and step - total > self._updates):
            try:
                self._checkpoints.save(step, state, position)
            except OSError:  # of this one, or of the one before, which was thought to be written
                self.newest, self._updates = latest_step(self._checkpoints.folder), -1
                raise
            self.newest, self._updates = step, step - total
        return skipped
