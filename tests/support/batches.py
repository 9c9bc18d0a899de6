"""Batches of random tokens for a training step."""

import numpy as np

POISON = 250  # a token that the batches below hold only when asked to


def make_batch(seed: int, *, poisoned: bool = False) -> dict[str, np.ndarray]:
    """Eight rows of 64 random tokens below 200, a tenth of them without a label; row 1 holds two documents."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 200, (8, 65), dtype=np.int32)
    if poisoned:
        ids[3, 10] = POISON
    labels = np.where(rng.random((8, 64)) < 0.1, -100, ids[:, 1:]).astype(np.int32)
    labels[0, :40] = -100  # rows bear different numbers of labels
    segments = np.ones((8, 64), np.int32)
    segments[1, 30:] = 2
    return {"input_ids": ids[:, :-1], "labels": labels, "segment_ids": segments}
