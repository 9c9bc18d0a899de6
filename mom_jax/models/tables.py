"""The tables of embeddings and outputs [vocab, D], used on a mesh by each device for its own tokens.

A device gathers a table once for a pass; its gradient comes back as a sum of which each device gets its part.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike

from mom_jax.layers.devices import Devices, whole
from mom_jax.ops.loss import chunked_token_scores, penalised_cross_entropy
from mom_jax.ops.precision import widened
from mom_jax.typing import AnyArray, Array, Float, Int

TABLE_AXES = ("tensor", "fsdp")


def looked_up(table: Float[Array, "vocab D"], ids: Int[AnyArray, "B T"], dtype: DTypeLike) -> Float[Array, "B T D"]:
    """The rows of a table, in ``dtype``. Gradients are summed in float32 or wider, for a token may occur often."""
    devices = Devices.of(*ids.shape)
    if devices is None:
        return _rows(table, ids, P(), dtype)
    spec = devices.spec(table, P(*TABLE_AXES))
    local = lambda table, ids: _rows(table, ids, spec, dtype)  # noqa: E731
    return devices.map(local, (spec, devices.tokens), devices.tokens)(table, ids)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _rows(
    table: Float[Array, "own_vocab own_D"], ids: Int[AnyArray, "B T"], spec: P, dtype: DTypeLike
) -> Float[Array, "B T D"]:
    return whole(table, spec, dtype)[ids]


def _rows_fwd(
    table: Float[Array, "own_vocab own_D"], ids: Int[AnyArray, "B T"], spec: P, dtype: DTypeLike
) -> tuple[Float[Array, "B T D"], tuple[Float[Array, "own_vocab own_D"], Int[AnyArray, "B T"]]]:
    return _rows(table, ids, spec, dtype), (table, ids)


def _rows_bwd(
    spec: P,
    dtype: DTypeLike,
    saved: tuple[Float[Array, "own_vocab own_D"], Int[AnyArray, "B T"]],
    drows: Float[Array, "B T D"],
) -> tuple[Float[Array, "own_vocab own_D"], None]:
    table, ids = saved
    drows = widened(drows)
    gathered, back = jax.vjp(lambda table: whole(table, spec, drows.dtype), table)  # of which the shape alone is used
    summed = jnp.zeros(gathered.shape, drows.dtype).at[ids].add(drows)
    return *back(summed), None


_rows.defvjp(_rows_fwd, _rows_bwd)


def cross_entropy(
    hidden: Float[Array, "B T D"], table: Float[Array, "vocab D"], labels: Int[AnyArray, "B T"], z_scale: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`mom_jax.ops.loss.penalised_cross_entropy` of ``hidden @ table.T``, of all tokens.

    On a mesh the devices of the tensor axis, which hold the same tokens, share them.
    """
    devices = Devices.of(*labels.shape)
    if devices is None:
        return penalised_cross_entropy(hidden, table, jnp.asarray(labels), z_scale)
    spec, shared = devices.spec(table, P(*TABLE_AXES)), devices.sharing_tokens(labels.shape[1])

    def local(hidden: Array, table: Array, labels: Array) -> tuple[Array, Array]:
        sums = penalised_cross_entropy(hidden, whole(table, spec, hidden.dtype), labels, z_scale)
        return jax.lax.psum(sums, shared.token_axes)

    return devices.map(local, (shared.tokens, spec, shared.tokens), (P(), P()))(hidden, table, labels)


def token_nats(
    hidden: Float[Array, "B T D"], table: Float[Array, "vocab D"], labels: Int[AnyArray, "B T"]
) -> Float[Array, "B T"]:
    """Cross entropy of ``hidden @ table.T`` against each label, float32; 0 where it does not count."""
    devices = Devices.of(*labels.shape)
    if devices is None:
        return chunked_token_scores(hidden, table, jnp.asarray(labels))[0]
    spec, tokens = devices.spec(table, P(*TABLE_AXES)), devices.tokens

    def local(hidden: Array, table: Array, labels: Array) -> Array:
        return chunked_token_scores(hidden, whole(table, spec, hidden.dtype), labels)[0]

    return devices.map(local, (tokens, spec, tokens), tokens)(hidden, table, labels)
