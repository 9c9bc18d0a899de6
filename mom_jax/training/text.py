"""The batches of a run: those of its text, or a caller's own."""

import dataclasses
from collections.abc import Callable, Iterable

from mom_jax.data.loader import TrainLoader, eval_batches
from mom_jax.data.prepare import prepared
from mom_jax.data.tokenizers import check_rows, load_tokenizer
from mom_jax.training.config import TrainConfig
from mom_jax.training.extensions import Extensions, OwnBatches
from mom_jax.typing import Batch


@dataclasses.dataclass(frozen=True)
class Text:
    """Training batches with their position, and what makes those of an evaluation, if anything does."""

    loader: TrainLoader | OwnBatches
    held_out: Callable[[], Iterable[Batch]] | None
    fingerprint: str = ""
    notes: tuple[str, ...] = ()  # lines for the user

    def epochs(self) -> dict[str, float]:
        """How often the text was read so far, for the log; nothing where that is not known."""
        return self.loader.epochs() if isinstance(self.loader, TrainLoader) else {}


def check_vocabulary(config: TrainConfig) -> None:
    """Raises `InputError` when the tokenizer has more tokens than the model has rows for."""
    tokens = load_tokenizer(config.data.tokenizer).vocab_size
    remedy = f"train a new model with --model.vocab-size {tokens}, or name the tokenizer of this one"
    check_rows(config.data.tokenizer, tokens, config.model.vocab_size, remedy)


def open_text(config: TrainConfig, own: Extensions, rows: tuple[int, int]) -> Text:
    """What the run trains on and is evaluated on, of which this process reads ``rows`` (see `rows_of_process`).

    Raises:
        InputError: bad data, or a tokenizer with more tokens than the model has rows.
    """
    if own.batches is not None:
        return Text(OwnBatches(own.batches), own.held_out)
    check_vocabulary(config)
    data = prepared(config.data)

    def held_out() -> Iterable[Batch]:
        return eval_batches(data, config.data, *rows, max_windows=config.eval_windows)

    loader = TrainLoader(data, config.data, *rows)
    return Text(loader, own.held_out or held_out, data.fingerprint, (*data.notes, *_repeats(loader, config.steps)))


def _repeats(loader: TrainLoader, steps: int) -> list[str]:
    """A line where text is read more than once."""
    times = {name.removeprefix("epochs_"): epochs for name, epochs in loader.epochs_after(steps).items()}
    several = [f"{'the text' if name == 'epochs' else name} {n:.1f} times" for name, n in times.items() if n > 1]
    return [f"{steps:,} steps read {', '.join(several)}"] if several else []
