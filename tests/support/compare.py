"""Closeness relative to the size of the expected array."""

from typing import Any

import jax
import numpy as np


def relative_error(got: Any, want: Any) -> float:
    """Largest absolute difference over the largest absolute expected value; NaN counts as infinite."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape, (got.shape, want.shape)
    if want.size == 0:
        return 0.0
    error = np.abs(got - want).max() / max(np.abs(want).max(), 1e-30)
    return float(error) if np.isfinite(error) else np.inf


def assert_close(got: Any, want: Any, tolerance: float, atol: float = 0.0) -> None:
    """Every leaf of ``got`` lies within ``tolerance`` of the largest value of its expected leaf, or within ``atol``."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(want)
    leaves = treedef.flatten_up_to(got)
    assert paths
    errors = {}
    for (path, expected), leaf in zip(paths, leaves, strict=True):
        near = atol > 0 and np.shape(leaf) == np.shape(expected) and np.allclose(leaf, expected, rtol=0, atol=atol)
        errors[jax.tree_util.keystr(path)] = 0.0 if near else relative_error(leaf, expected)
    wrong = {path: error for path, error in errors.items() if not error <= tolerance}
    assert not wrong, f"relative errors above {tolerance}: {wrong}"
