"""What a model hands in for a comparison: named NumPy arrays."""

from typing import Literal, Protocol

import numpy as np

Record = dict[str, np.ndarray]
Dtype = Literal["float32", "bfloat16"]


class Subject(Protocol):
    """One implementation of one checkpoint; names of parameters are the published ones."""

    def forward(self, ids: np.ndarray) -> Record:
        """``embedded`` [B, T, D], ``hidden/<layer>`` behind each block, ``router/<layer>`` [B, T, M], ``logits``.

        Attention layers have no router.
        """
        ...

    def block(self, layer: int, x: np.ndarray, cotangent: np.ndarray | None = None) -> Record:
        """One block alone: ``hidden`` [B, T, D] and ``router`` [B, T, M] for the input ``x``.

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


def layer_numbers(record: Record, kind: str) -> list[int]:
    """The layers that have an entry ``<kind>/<layer>``, in order."""
    return sorted(int(name.removeprefix(f"{kind}/")) for name in record if name.startswith(f"{kind}/"))
