"""What a program of one's own may put into a training run, beside its config."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import jax
import optax

from mom_jax.models.lm import MoMForCausalLM
from mom_jax.typing import Batch

# What a step minimises: of the model and one micro-batch, the loss and scalars for the log. Those of the micro-batches
# are averaged.
Loss = Callable[[MoMForCausalLM, Batch], tuple[jax.Array, dict[str, jax.Array]]]
OwnTransformation = optax.GradientTransformation | Callable[[optax.Schedule], optax.GradientTransformation]


class Callback:
    """Is called while a run goes on, in all of its processes; override what you need.

    A method that returns True asks the run to stop as a signal would: with a checkpoint, to be continued.
    """

    def on_step(self, step: int, metrics: dict[str, jax.Array]) -> bool | None:
        """After a step was started; who reads ``metrics``, which are on the device, waits for its end."""

    def on_evaluate(self, step: int, scores: dict[str, Any]) -> bool | None:
        """After an evaluation: ``held_out_loss`` in nats per token, and more."""

    def on_checkpoint(self, step: int, folder: Path) -> bool | None:
        """When a checkpoint is whole and on the disk."""


class Logger(Protocol):
    """Gets what a run logs, in its first process."""

    def log(self, step: int, metrics: dict[str, Any], group: str) -> None:
        """Takes numbers and lists of them (per layer, per layer and memory) by name; ``group`` is train or held_out."""

    def close(self) -> None:
        """The sitting ends."""


@dataclasses.dataclass(frozen=True)
class Extensions:
    """A caller's own parts of a run.

    Attributes:
        callbacks: called in this order.
        loggers: beside TensorBoard and ``metrics.jsonl``.
        optimizer: an Optax transformation in the place of the config's, or a function of the config's schedule that
            returns one. It sees to clipping itself.
        loss: in the place of the cross entropy and the routers' losses.
        batches: training batches (this process's rows of ``input_ids``, ``labels`` and ``segment_ids``, int32 [B, T])
            in the place of the config's data. With ``get_state`` and ``set_state`` it continues as it says; otherwise a
            resumed run draws and drops the batches that it had.
        held_out: makes the batches of an evaluation; without it a run with ``batches`` is not evaluated.
    """

    callbacks: Sequence[Callback] = ()
    loggers: Sequence[Logger] = ()
    optimizer: OwnTransformation | None = None
    loss: Loss | None = None
    batches: Iterator[Batch] | None = None
    held_out: Callable[[], Iterable[Batch]] | None = None

    def transformation(self, schedule: optax.Schedule) -> optax.GradientTransformation | None:
        """The optimizer, if there is one."""
        if self.optimizer is None or isinstance(self.optimizer, optax.GradientTransformation):
            return self.optimizer
        return self.optimizer(schedule)


NONE = Extensions()


class OwnBatches:
    """An iterator of one's own as the loop uses it: a position, which resuming returns to."""

    def __init__(self, batches: Iterator[Batch]):
        self._batches, self._drawn = batches, 0

    def __next__(self) -> Batch:
        batch = next(self._batches)
        self._drawn += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """The position, ready for JSON."""
        own = self._batches.get_state() if hasattr(self._batches, "get_state") else None  # type: ignore[attr-defined]
        return {"drawn": self._drawn, "own": own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where `get_state` was called."""
        if hasattr(self._batches, "set_state"):
            self._batches.set_state(state["own"])  # type: ignore[attr-defined]
        else:
            for _ in range(self._drawn, state["drawn"]):
                next(self._batches)
        self._drawn = state["drawn"]
