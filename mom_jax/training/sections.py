"""Sections of a run's config: checkpoints, spikes, traces.

Importing this module imports neither JAX nor Optax.
"""

import dataclasses
from typing import Annotated, Literal

from mom_jax.fields import Count, Range, check_fields


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """How often checkpoints are written and how many stay."""

    every: Count = 1000
    """Steps between checkpoints; one more is always written at the end."""
    keep: Count = 3
    """Number of newest checkpoints to keep."""
    on_full_disk: Literal["stop", "go_on"] = "stop"
    """When a checkpoint does not fit on the disk: end the run, or go on and try again at the next one; the last one
    that is whole stays in both cases."""

    def __post_init__(self):
        check_fields(self, "checkpoint.")


@dataclasses.dataclass(frozen=True)
class SpikesConfig:
    """What to do about steps whose loss or gradient norm is far above that of the steps before."""

    skip: bool = False
    """Leave out their updates, as those of steps that are not finite."""
    rewind: Annotated[int, Range(least=0, below=2**31)] = 0
    """Go back to a checkpoint at least so many steps before such a step, and on with the text behind it; 0: do not."""
    window: Count = 128
    """Steps of which mean and standard deviation are taken; before them nothing is far."""
    factor: Annotated[float, Range(above=0, most=1e6)] = 6.0
    """So many standard deviations above the mean are far."""

    def __post_init__(self):
        check_fields(self, "spikes.")

    @property
    def active(self) -> bool:
        """Whether such steps are looked for."""
        return self.skip or self.rewind > 0


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """A trace of a few steps by JAX's profiler, in the run's folder profile."""

    start: Count | None = None
    """First step of the trace; take one after the first steps, which compile."""
    steps: Annotated[int, Range(least=1, most=1000)] = 3
    """Number of steps."""

    def __post_init__(self):
        check_fields(self, "profile.")
