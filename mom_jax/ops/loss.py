"""Next-token cross entropy that never holds all logits at once."""

import jax
import jax.numpy as jnp

from mom_jax.typing import Array, Float, Int

IGNORE = -100  # labels with this value do not count
_MAX_LOGITS = 2**25  # logits held at a time: 128 MiB in float32


def token_cross_entropy(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Nats of each label, in float32; 0 where the label is `IGNORE`."""
    logits = logits.astype(jnp.float32)
    nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    return jnp.where(labels == IGNORE, 0.0, nats)


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"], labels: Int[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed cross entropy of ``hidden @ weight.T`` against ``labels``.

    Works through time in pieces and recomputes each piece's logits in the backward pass, so
    memory stays below 128 MiB of logits whatever the vocabulary.

    Returns:
        The sum in nats and the number of labels that are not `IGNORE`, both float32 scalars.
    """
    batch, time, _ = hidden.shape
    pieces = min(time, -(-batch * time * weight.shape[0] // _MAX_LOGITS))
    width = -(-time // pieces)
    padding = pieces * width - time
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels_padded = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=IGNORE)

    @jax.checkpoint
    def piece(total, xs):
        x, y = xs
        logits = jnp.einsum("btd,vd->btv", x, weight.astype(x.dtype), preferred_element_type=jnp.float32)
        return total + token_cross_entropy(logits, y).sum(), None

    xs = (_split_time(hidden, pieces), _split_time(labels_padded, pieces))
    total, _ = jax.lax.scan(piece, jnp.zeros((), jnp.float32), xs)
    return total, (labels != IGNORE).sum().astype(jnp.float32)


def _split_time(x, pieces):
    return jnp.moveaxis(x.reshape(x.shape[0], pieces, -1, *x.shape[2:]), 1, 0)
