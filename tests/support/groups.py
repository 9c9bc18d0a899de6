"""Products of groups of rows as they are defined."""

import numpy as np


def loop(x, weights, sizes, dys):
    """ys, dx and dWs in float64."""
    x, *rest = (np.asarray(a, np.float64) for a in (x, *weights, *dys))
    weights, dys = rest[: len(weights)], rest[len(weights) :]
    ys, dx, dws, begin = [np.zeros_like(dy) for dy in dys], np.zeros_like(x), [np.zeros_like(w) for w in weights], 0
    for group, size in enumerate(sizes):
        rows = slice(begin, begin + size)
        for y, w, dy, dw in zip(ys, weights, dys, dws, strict=True):
            y[rows], dw[group] = x[rows] @ w[group], x[rows].T @ dy[rows]
            dx[rows] += dy[rows] @ w[group].T
        begin += size
    return tuple(ys), dx, tuple(dws)
