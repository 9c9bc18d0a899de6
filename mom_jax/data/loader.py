"""Windows of tokens and the batches made of them, for training and for held-out evaluation.

A batch is a dict of int32 arrays [B, T]: ``input_ids``; ``labels``, the next token, -100 where the next token begins
another document; ``segment_ids``, which count the documents inside a window from 1, and are 0 on padding.
A document's end token is therefore predicted, its first token is not.
"""

from collections.abc import Iterator
from typing import Any, Self

import numpy as np

from mom_jax.data.config import DataConfig
from mom_jax.data.shards import PreparedData, TokenStream
from mom_jax.errors import InputError
from mom_jax.labels import IGNORE
from mom_jax.typing import Batch


class TokenWindows:
    """Random access to the windows of a token stream: window i reads tokens i*T to i*T + T inclusive.

    Args:
        stream: the tokens.
        sequence_length: tokens per window, T.
        padded: keep the ragged last window, padded to T. Then every token that has a predecessor in its document
            is the label of exactly one position. Without it, all windows are full.
    """

    def __init__(self, stream: TokenStream, sequence_length: int, *, padded: bool):
        self._stream, self._length = stream, sequence_length
        labels = max(len(stream) - 1, 0)
        self._count = -(-labels // sequence_length) if padded else labels // sequence_length

    def __len__(self) -> int:
        """Number of windows."""
        return self._count

    def __getitem__(self, index: int) -> Batch:
        """Window ``index`` as ``input_ids``, ``labels`` and ``segment_ids``, each int32 [T]."""
        if not 0 <= index < self._count:
            raise IndexError(f"window {index} of {self._count}")
        start, length = index * self._length, self._length
        ids, is_first = self._stream.read(start, start + length + 1)
        filled = len(ids) - 1
        window = empty_window(length)
        window["input_ids"][:filled] = ids[:-1]
        window["labels"][:filled] = np.where(is_first[1:], IGNORE, ids[1:])
        window["segment_ids"][:filled] = np.cumsum(is_first[:-1]) + (not is_first[0])
        return window

    def __repr__(self) -> str:
        return f"TokenWindows({self._count} x {self._length})"


def empty_window(length: int) -> Batch:
    """A window of padding alone: ids 0, labels ignored, segment 0; each int32 [T]."""
    zeros = np.zeros(length, np.int32)
    return {"input_ids": zeros, "labels": np.full(length, IGNORE, np.int32), "segment_ids": zeros.copy()}


class TrainLoader:
    """Endless iterator over training batches whose position can be saved and restored exactly.

    The windows are shuffled anew in every epoch, and epochs join without a gap. Those of a mixture's parts are drawn in
    turns by their weights. Step n of any number of processes
    reads the same global batch; a process holds every ``process_count``-th row of it. A saved position may therefore
    be restored by another number of processes.

    Raises:
        InputError: the text is too short for one batch, or ``batch_size`` does not divide over the processes.
    """

    def __init__(self, data: PreparedData, config: DataConfig, process_index: int = 0, process_count: int = 1):
        import grain  # who reads a model need not wait for it

        parts = [(part.name, part.weight, stream) for part, stream in data.parts] or [("", 1.0, data.train)]
        rows = _rows_per_process(config.batch_size, process_count)
        windows = [_windows(name, stream, config) for name, _, stream in parts]
        shuffled = [grain.MapDataset.source(part).seed(config.seed).shuffle().repeat(None) for part in windows]
        order = grain.MapDataset.mix(shuffled, [weight for _, weight, _ in parts]) if data.parts else shuffled[0]
        self._shares = [(name, weight, len(part)) for (name, weight, _), part in zip(parts, windows, strict=True)]
        # Two threads make the next batches meanwhile; windows are slices of a memory map, so no process is worth it.
        options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=2)
        self._iterator = iter(order[process_index::process_count].batch(rows).to_iter_dataset(options))
        self._path = config.mixture or config.path
        self._identity = {
            "batch_size": config.batch_size,
            "sequence_length": config.sequence_length,
            "data_seed": config.seed,
            "data_fingerprint": data.fingerprint,
        }

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """This process's rows of the next global batch, each int32 [B / process_count, T]."""
        return next(self._iterator)

    def epochs(self) -> dict[str, float]:
        """How often the windows were read so far: ``epochs``, of a mixture ``epochs_NAME`` for each part."""
        return self.epochs_after(self._iterator.get_state()["next_index"])

    def epochs_after(self, batches: int) -> dict[str, float]:
        """As `epochs`, after so many batches."""
        read = batches * self._identity["batch_size"]
        return {f"epochs_{n}" if n else "epochs": read * weight / count for n, weight, count in self._shares}

    def get_state(self) -> dict[str, Any]:
        """The position, and what it depends on, ready for JSON."""
        return {**self._identity, "next_index": self._iterator.get_state()["next_index"]}

    def set_state(self, state: Any) -> None:
        """Continues where `get_state` was called.

        Raises:
            InputError: the state belongs to other data, batches or windows, or is none.
        """
        if not isinstance(state, dict) or type(state.get("next_index")) is not int or state["next_index"] < 0:
            raise InputError("data position", state, "is damaged; resume from another checkpoint")
        for field, ours in self._identity.items():
            if state.get(field) == ours:
                continue
            if field == "data_fingerprint":
                remedy = "its text or tokenizer is not the one that the run was trained with; use the same to resume"
                raise InputError("data.path", self._path, remedy)
            remedy = f"the saved position was taken with {state.get(field)}; use the same to resume"
            raise InputError(field, ours, remedy)
        self._iterator.set_state({"next_index": state["next_index"]})


def _windows(name: str, stream: TokenStream, config: DataConfig) -> TokenWindows:
    """The windows of a text, or of the part of that name, which fill a batch at least."""
    windows = TokenWindows(stream, config.sequence_length, padded=False)
    if len(windows) < config.batch_size:
        filled = f"{len(windows)} windows of {config.sequence_length} tokens"
        of_part = f" of {name}" if name else ""
        remedy = f"the training text{of_part} fills only {filled}; lower it or sequence_length"
        raise InputError("batch_size", config.batch_size, remedy)
    return windows


def eval_batches(
    data: PreparedData,
    config: DataConfig,
    process_index: int = 0,
    process_count: int = 1,
    *,
    max_windows: int | None = None,
) -> Iterator[Batch]:
    """This process's rows of the held-out batches, in order; every token is the label of one position at most once.

    All batches have the same shape, each int32 [B / process_count, T], and all processes get equally many: the last
    window is padded to T tokens and the last batch to B windows.

    Args:
        data: the opened folder.
        config: gives ``sequence_length`` and the global ``batch_size``.
        process_index: this process.
        process_count: of so many.
        max_windows: evaluate about this many windows, evenly spread, instead of all.

    Raises:
        InputError: ``batch_size`` does not divide over the processes, or ``max_windows`` is not positive.
    """
    rows = _rows_per_process(config.batch_size, process_count)
    if max_windows is not None and max_windows < 1:
        raise InputError("max_windows", max_windows, "must be at least 1")
    windows = TokenWindows(data.held_out, config.sequence_length, padded=True)
    count = min(len(windows), max_windows or len(windows))
    chosen = np.arange(count) * len(windows) // count
    return _padded_batches(windows, chosen, config, rows, process_index)


def _padded_batches(
    windows: TokenWindows, chosen: np.ndarray, config: DataConfig, rows: int, process_index: int
) -> Iterator[Batch]:
    for start in range(process_index * rows, process_index * rows + len(chosen), config.batch_size):
        batch = [windows[i] for i in chosen[start : start + rows]]
        batch += [empty_window(config.sequence_length)] * (rows - len(batch))
        yield {field: np.stack([window[field] for window in batch]) for field in batch[0]}


def _rows_per_process(batch_size: int, process_count: int) -> int:
    if batch_size % process_count:
        raise InputError("batch_size", batch_size, f"must be a multiple of the number of processes ({process_count})")
    return batch_size // process_count
