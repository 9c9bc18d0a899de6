"""What a model hands in for a comparison: named NumPy arrays."""

from typing import Literal, Protocol

import numpy as np

Record = dict[str, np.ndarray]
Dtype = Literal["float32", "bfloat16"]


class Subject(Protocol):
    """One implementation of one checkpoint; names of parameters are the published ones."""

    def forward(self, ids: np.ndarray) -> Record:
        """``embedded`` [B, T, D], ``hidden/<layer>`` behind each block, ``logits``.

        Of layers with a router also its logits ``router/<layer>`` [B, T, M], and which memories each token chose,
        ``choices/<layer>`` [B, T, M] of bool: equal logits, frequent in bfloat16, leave that open.
        """
        ...

    def block(self, layer: int, x: np.ndarray, cotangent: np.ndarray | None = None) -> Record:
        """One block alone: ``hidden``, ``router`` and ``choices`` for the input ``x`` [B, T, D].

        With a cotangent of ``hidden``, ``gradient/<parameter>`` and ``gradient/x`` instead.
        """
        ...

    def loss_and_gradients(self, ids: np.ndarray) -> Record:
        """``loss/lm``, ``loss/aux`` (unscaled), ``loss/total``, and ``gradient/<parameter>`` of the total.

        Labels are the ids, shifted by one.
        """
        ...

    def decode(self, ids: np.ndarray, prefill: int) -> Record:
        """``decode/prefill`` [B, prefill, vocab] of one call, ``decode/steps`` [B, steps, vocab] of single ones."""
        ...

    def continue_greedily(self, ids: np.ndarray, new_tokens: int) -> np.ndarray:
        """The likeliest tokens [B, new] after ``ids``, each fed back."""
        ...


def as_mask(memories: np.ndarray, num_memories: int) -> np.ndarray:
    """[..., M] of bool, True at the given memories [..., k]."""
    mask = np.zeros((*memories.shape[:-1], num_memories), bool)
    np.put_along_axis(mask, memories, True, -1)
    return mask


def layer_numbers(record: Record, kind: str) -> list[int]:
    """The layers that have an entry ``<kind>/<layer>``, in order."""
    return sorted(int(name.removeprefix(f"{kind}/")) for name in record if name.startswith(f"{kind}/"))
