"""The largest few of a row: as a mask, or as slots that pairs of keys address."""

import jax
import jax.numpy as jnp

from mom_jax.typing import Array, Bool, Float, Int


def among_largest(scores: Float[Array, "*batch choices"], count: int) -> Bool[Array, "*batch choices"]:
    """True at the ``count`` largest of the last axis, the first ones among equals; without a gradient."""
    if count >= scores.shape[-1]:
        return jnp.ones(scores.shape, bool)
    places = jax.lax.top_k(jax.lax.stop_gradient(scores), count)[1]
    return jnp.put_along_axis(jnp.zeros(scores.shape, bool), places, True, axis=-1, inplace=False)


def product_keys(
    logits: Float[Array, "*batch n2"], count: int
) -> tuple[Int[Array, "*batch few"], Float[Array, "*batch few"]]:
    """The ``count`` of n * n slots with the largest logits, and a softmax over these.

    The logit of slot ``i n + j`` is that of i among the first n plus that of j among the last n (product keys, arXiv
    1907.05242, section 3.2), so only the largest of each half are looked at.
    """
    size = logits.shape[-1] // 2
    most = min(count, size)
    (first, i), (second, j) = (jax.lax.top_k(half, most) for half in (logits[..., :size], logits[..., size:]))
    sums = (first[..., :, None] + second[..., None, :]).reshape(*logits.shape[:-1], -1)
    values, place = jax.lax.top_k(sums, count)
    i, j = (jnp.take_along_axis(half, at, -1) for half, at in ((i, place // most), (j, place % most)))
    return i * size + j, jax.nn.softmax(values, -1)
