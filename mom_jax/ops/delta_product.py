"""Several steps of the delta rule for each token (Gated DeltaProduct, arXiv 2502.10297), over packed segments.

Per head, with a state S of shape [K, V] in float32 and n steps with a key, a value and a strength each:

    S_t = exp(g_t) S_{t-1};   for j in 1 ... n: S_t += k_tj (beta_tj (v_tj - S_t^T k_tj))^T;   o_t = scale * S_t^T q_t

A step is a row of the delta rule (`mom_jax.ops.delta_rule`): the first one decays, the last one is read. So a row
becomes n sub-rows, and a chunk n chunks, for whatever form of the delta rule runs here.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows, delta_rule_chunked
from mom_jax.ops.handover import by_columns
from mom_jax.ops.precision import widened
from mom_jax.ops.primitive import Form, Primitive, kernels_over, matrix
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.sub_rows import only_at, sub_rows, sub_table
from mom_jax.typing import Array, Float


class DeltaProductRows(NamedTuple):
    """Rows of several steps of the delta rule."""

    q: Float[Array, "N H K"]
    k: Float[Array, "N H steps K"]  # L2-normalised
    v: Float[Array, "N H steps V"]
    g: Float[Array, "N H"]  # log decay of the token, at most 0
    beta: Float[Array, "N H steps"]  # write strengths


def delta_product_step(
    rows: DeltaProductRows, state: Float[Array, "N H K V"], scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "N H K V"]]:
    """One token for each of N independent states. Returns outputs (``v.dtype``) and new states."""
    q, k, v, g, beta = map(widened, rows)
    o = jnp.zeros(rows.v.shape[:2] + rows.v.shape[-1:], rows.v.dtype)
    for j in range(rows.k.shape[2]):
        decay = g if j == 0 else jnp.zeros_like(g)
        o, state = DELTA_RULE.step(DeltaRuleRows(q, k[:, :, j], v[:, :, j], decay, beta[..., j]), state, scale)
    return o.astype(rows.v.dtype), state


def _by_sub_rows(
    form: Form, rows: DeltaProductRows, table: ChunkTable, state: Float[Array, "S H K V"] | None, scale: float
) -> tuple[Float[Array, "N H V"], Float[Array, "S H K V"] | None]:
    """The same function as a form of the delta rule over sub-rows."""
    steps = rows.k.shape[2]
    each = DeltaRuleRows(
        only_at(rows.q, steps - 1, steps),
        sub_rows(rows.k),
        sub_rows(rows.v),
        only_at(rows.g, 0, steps),
        sub_rows(rows.beta),
    )
    o, state = form(each, sub_table(table, steps), state, scale)
    return o[steps - 1 :: steps], state


def _beside(
    rows: DeltaProductRows, read: Callable[[Float[Array, "N H K"]], Float[Array, "N H V"]]
) -> tuple[DeltaProductRows, Float[Array, "N H V"]]:
    kept = jnp.exp(widened(rows.g))[..., None]
    erased = [read(kept * widened(rows.k[:, :, j])) for j in range(rows.k.shape[2])]
    return rows._replace(v=widened(rows.v) - jnp.stack(erased, 2)), read(kept * widened(rows.q))


@functools.cache
def delta_product(steps: int) -> Primitive:
    """That many steps of the delta rule for each token."""
    return Primitive(
        name="delta product",
        rows=DeltaProductRows,
        state=matrix,
        step=delta_product_step,
        chunked=functools.partial(_by_sub_rows, delta_rule_chunked),
        handover=by_columns,
        split=True,
        beside=_beside,
        kernels=kernels_over(DELTA_RULE, _by_sub_rows),
        inert=("g", "beta"),
        flops=lambda chunk, keys, values: _flops(steps, chunk, keys, values),
    )


def _flops(steps: int, chunk: int, key_dim: int, value_dim: int) -> tuple[float, float]:
    forward, backward = DELTA_RULE.flops(chunk, key_dim, value_dim)
    return steps * forward, steps * backward


DELTA_PRODUCT = delta_product(steps=2)
