"""A trace of a few steps, which xprof, TensorBoard and Perfetto open."""

from pathlib import Path
from typing import Any

import jax

from mom_jax.training.config import ProfileConfig

FOLDER = "profile"  # in the run's folder


class Profile:
    """Traces the steps that the config names.

    Args:
        config: which steps.
        run_dir: the run's folder, in whose ``profile`` the trace goes.
    """

    def __init__(self, config: ProfileConfig, run_dir: Path):
        self._first, self._last = config.start, (config.start or 0) + config.steps - 1
        self._folder, self._running = run_dir / FOLDER, False

    def before(self, step: int, state: Any) -> None:
        """Call it before ``step`` is started; ``state`` is what it starts from."""
        if step == self._first:
            jax.block_until_ready(state)  # or steps before it would be in the trace
            jax.profiler.start_trace(str(self._folder), create_perfetto_trace=True)
            self._running = True

    def after(self, step: int, metrics: Any) -> bool:
        """Call it after ``step`` was started; says whether the trace was written now."""
        if not self._running or step < self._last:
            return False
        jax.block_until_ready(metrics)
        self.close()
        return True

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
