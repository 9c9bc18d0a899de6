"""The largest few of a row: as a mask, or as slots that pairs of keys address."""

import jax
import jax.numpy as jnp
import numpy as np

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
    1907.05242, section 3.2), so only the largest of each half are looked at, and of their sums those that may be among
    the largest.
    """
    size = logits.shape[-1] // 2
    most = min(count, size)
    halves = jax.lax.top_k(logits.reshape(-1, size), most)  # of two axes, or else XLA sorts whole rows on a CPU
    largest, places = (y.reshape(*logits.shape[:-1], 2, most) for y in halves)
    sums = (largest[..., 0, :, None] + largest[..., 1, None, :]).reshape(*logits.shape[:-1], -1)
    able = _able(most, count)
    pair = able[jax.lax.top_k(jax.lax.stop_gradient(sums)[..., able], count)[1]]
    i, j = (jnp.take_along_axis(places[..., half, :], at, -1) for half, at in ((0, pair // most), (1, pair % most)))
    return i * size + j, jax.nn.softmax(jnp.take_along_axis(sums, pair, -1), -1)


def _able(most: int, count: int) -> Int[Array, " pairs"]:
    """Of the sums of two sorted rows, [most * most], those that may be among the ``count`` largest.

    Of the others ``(a + 1) (b + 1) - 1`` are no smaller than that of a and b, and come before it where they are equal.
    """
    a, b = np.divmod(np.arange(most * most), most)
    return jnp.asarray(np.flatnonzero((a + 1) * (b + 1) <= count), jnp.int32)
