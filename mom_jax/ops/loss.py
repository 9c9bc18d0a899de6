"""Next-token cross entropy that never holds all logits at once."""

import jax
import jax.numpy as jnp

from mom_jax.labels import IGNORE
from mom_jax.typing import Array, Bool, Float, Int, Shaped

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
    xs = _pieces(hidden, labels, weight.shape[0])

    @jax.checkpoint
    def piece(total, xs):
        x, y = xs
        return total + token_cross_entropy(_logits(x, weight), y).sum(), None

    total, _ = jax.lax.scan(piece, jnp.zeros((), jnp.float32), xs)
    return total, (labels != IGNORE).sum().astype(jnp.float32)


def chunked_token_scores(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "vocab D"],
    labels: Int[Array, "B T"],
    candidates: Bool[Array, " vocab"] | None = None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Nats of each label (0 at `IGNORE`), float32, and whether it is the likeliest token; memory as above.

    Nats are of all rows of ``weight``; the likeliest is sought among ``candidates`` where they are given.
    """

    def piece(_, xs):
        x, y = xs
        logits = _logits(x, weight)
        choices = logits if candidates is None else jnp.where(candidates, logits, -jnp.inf)
        return None, (token_cross_entropy(logits, y), jnp.argmax(choices, -1) == y)

    _, scores = jax.lax.scan(piece, None, _pieces(hidden, labels, weight.shape[0]))
    nats, likeliest = (jnp.moveaxis(s, 0, 1).reshape(labels.shape[0], -1)[:, : labels.shape[1]] for s in scores)
    return nats, likeliest


def _logits(hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"]) -> Float[Array, "B T vocab"]:
    return jnp.einsum("btd,vd->btv", hidden, weight.astype(hidden.dtype), preferred_element_type=jnp.float32)


def _pieces(
    hidden: Float[Array, "B T D"], labels: Int[Array, "B T"], vocab: int
) -> tuple[Float[Array, "pieces B width D"], Int[Array, "pieces B width"]]:
    """Hidden states and labels cut along time, so that a piece's logits fit."""
    batch, time = labels.shape
    pieces = min(time, -(-batch * time * vocab // _MAX_LOGITS))
    padding = pieces * -(-time // pieces) - time
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0)))
    labels = jnp.pad(labels, ((0, 0), (0, padding)), constant_values=IGNORE)
    return _split_time(hidden, pieces), _split_time(labels, pieces)


def _split_time(x: Shaped[Array, "B time *rest"], pieces: int) -> Shaped[Array, "{pieces} B width *rest"]:
    return jnp.moveaxis(x.reshape(x.shape[0], pieces, -1, *x.shape[2:]), 1, 0)
