"""Whether programs give what is right, and the same bits twice."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tools.hardware.folder import Entry
from tools.hardware.session import Session


def check(session: Session, entry: Entry) -> dict[str, Any]:
    """Runs a program twice and compares with what is right.

    Returns:
        ``errors`` by output, ``||out - right|| / ||right||``; ``worst`` of them; ``right`` whether all are within the
        tolerance, which NaN never is, or None where there is nothing to compare with; ``same`` whether every bit came
        again.
    """
    program = session.compiled(entry)
    first, second = (list(program(*session.inputs(entry))) for _ in range(2))
    same = all(bool(_same(a, b)) for a, b in zip(first, second, strict=True))
    outcome: dict[str, Any] = {"same": same, "right": None}
    del second
    if not entry.against:
        return outcome
    mask = session.folder.arrays[entry.mask] if entry.mask else None
    pairs = zip(entry.outputs, first, session.right(entry), strict=True)
    errors = {name: float(relative_error(x, y, _of(mask, x))) for name, x, y in pairs}
    worst = max(errors, key=lambda name: np.inf if np.isnan(errors[name]) else errors[name])
    good = all(error <= entry.tolerance for error in errors.values())
    message = f"{worst} {errors[worst]:.1e}"
    return outcome | {"right": good, "worst": message, "errors": errors, "tolerance": entry.tolerance}


def _of(mask, x):
    """The mask of rows as far as ``x`` has such rows."""
    return mask if mask is not None and x.ndim and x.shape[0] == mask.shape[0] else None


@jax.jit
def relative_error(x: jax.Array, right: jax.Array, mask: jax.Array | None) -> jax.Array:
    """``||x - right|| / ||right||`` over the rows of the mask; what is 0 and should be is no error."""
    x, right = x.astype(jnp.float32), right.astype(jnp.float32)
    if mask is not None:
        keep = mask.reshape(-1, *[1] * (x.ndim - 1))
        x, right = jnp.where(keep, x, 0), jnp.where(keep, right, 0)
    off, size = jnp.linalg.norm((x - right).reshape(-1)), jnp.linalg.norm(right.reshape(-1))
    return jnp.where(off == 0, 0.0, off / size)


@jax.jit
def _same(a: jax.Array, b: jax.Array) -> jax.Array:
    if jnp.issubdtype(a.dtype, jnp.floating):
        bits = jnp.dtype(f"uint{8 * a.dtype.itemsize}")
        a, b = (jax.lax.bitcast_convert_type(x, bits) for x in (a, b))
    return jnp.array_equal(a, b)
