"""How one token is chosen from logits: greedily, or drawn among the likeliest, by a key of each row's own."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.errors import InputError
from mom_jax.typing import Array, Float, Int

_NORMAL = np.finfo(np.float32)  # temperatures between 0 and the smallest normal number count as 0


class Sampling(NamedTuple):
    """What the compiled code is specialised on."""

    greedy: bool
    top_k: int | None = None
    top_p: bool = False


class Knobs(NamedTuple):
    """What may change without compiling anew."""

    temperature: np.float32
    top_p: np.float32


def sampling(temperature: float, top_k: int | None, top_p: float | None, vocab: int) -> tuple[Sampling, Knobs]:
    """How to choose among ``vocab`` ids: options as `mom_jax.decoding.generate` has them.

    Raises:
        InputError: an option out of its range.
    """
    if not 0 <= float(temperature) <= float(_NORMAL.max):
        raise InputError("temperature", temperature, "must be 0 (greedy) or positive, and finite in float32")
    if top_k is not None and not (isinstance(top_k, int | np.integer) and 1 <= top_k <= vocab):
        raise InputError("top_k", top_k, f"must lie between 1 and the vocabulary size ({vocab}), a whole number")
    if top_p is not None and not 0 < top_p <= 1:
        raise InputError("top_p", top_p, "must lie in (0, 1]")
    how = Sampling(bool(temperature < _NORMAL.tiny), top_k, top_p is not None)
    return how, Knobs(np.float32(temperature), np.float32(1.0 if top_p is None else top_p))


def check_keys(rng: Array | None, rows: int, how: Sampling) -> Array:
    """One key for all rows, or one for each, as `row_keys` takes them.

    Raises:
        InputError: there is none, and tokens are to be drawn; or there are as many as fit no row.
    """
    if rng is None:
        if not how.greedy:
            raise InputError("rng", None, "pass a jax.random.key to sample with temperature > 0")
        return jax.random.key(0)
    keys = rng if jnp.issubdtype(rng.dtype, jax.dtypes.prng_key) else jax.random.wrap_key_data(rng)
    if keys.shape not in ((), (rows,)):
        raise InputError("rng.shape", keys.shape, f"expected one jax.random.key, or one for each row, ({rows},)")
    return keys


def row_keys(rng: Array, numbers: Int[Array, " B"]) -> Array:
    """The keys [B] of rows: their own, or their numbers folded into the one that all share."""
    return rng if rng.ndim else jax.vmap(jax.random.fold_in, in_axes=(None, 0))(rng, numbers)


def drawn(logits: Float[Array, "B vocab"], how: Sampling, knobs: Knobs, rng: Array) -> tuple[Int[Array, " B"], Array]:
    """One token for each row from float32 logits, and the keys [B] of the rows' next ones.

    A row's token depends on its own logits and key alone.
    """
    if how.greedy:
        return jnp.argmax(logits, -1).astype(jnp.int32), rng
    # Differences from the best are divided, for quotients of the logits overflow at low temperatures.
    logits = (logits - logits.max(-1, keepdims=True)) / knobs.temperature
    if how.top_k is not None:
        weakest = jax.lax.top_k(logits, how.top_k)[0][:, -1:]
        logits = jnp.where(logits < weakest, -jnp.inf, logits)
    if how.top_p:
        ranked = jnp.sort(logits, -1, descending=True)
        before = jnp.cumsum(jax.nn.softmax(ranked, -1), -1) - jax.nn.softmax(ranked, -1)
        weakest = jnp.min(jnp.where(before < knobs.top_p, ranked, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < weakest, -jnp.inf, logits)
    following, now = jnp.moveaxis(jax.vmap(jax.random.split)(rng), 1, 0)
    return jax.vmap(jax.random.categorical)(now, logits).astype(jnp.int32), following
