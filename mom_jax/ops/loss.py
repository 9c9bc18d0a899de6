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

    Works through time in pieces, so memory stays below 128 MiB of logits whatever the vocabulary. Gradients are taken
    from each piece's logits while they are there, with the forward pass: nothing is computed again.

    Returns:
        The sum in nats and the number of labels that are not `IGNORE`, both float32 scalars.
    """
    return _summed_nats(hidden, weight, labels), (labels != IGNORE).sum().astype(jnp.float32)


@jax.custom_vjp
def _summed_nats(
    hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"], labels: Int[Array, "B T"]
) -> Float[Array, ""]:
    def piece(total, xs):
        x, y = xs
        return total + token_cross_entropy(_logits(x, weight), y).sum(), None

    return jax.lax.scan(piece, jnp.zeros((), jnp.float32), _pieces(hidden, labels, weight.shape[0]))[0]


def _summed_nats_fwd(
    hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"], labels: Int[Array, "B T"]
) -> tuple[Float[Array, ""], tuple[Float[Array, "B T D"], Float[Array, "vocab D"]]]:
    """The sum, and its gradients of hidden states and weight."""
    narrow = weight.astype(hidden.dtype)

    def piece(carry, xs):
        total, dweight = carry
        x, y = xs
        logits = _logits(x, narrow)
        surplus = jax.nn.softmax(logits, -1) - jax.nn.one_hot(y, weight.shape[0], dtype=logits.dtype)
        dlogits = jnp.where((y == IGNORE)[..., None], 0, surplus).astype(x.dtype)
        dx = jnp.einsum("btv,vd->btd", dlogits, narrow, preferred_element_type=x.dtype)
        dweight += jnp.einsum("btv,btd->vd", dlogits, x, preferred_element_type=dweight.dtype)
        return (total + token_cross_entropy(logits, y).sum(), dweight), dx

    init = jnp.zeros((), jnp.float32), jnp.zeros(weight.shape, jnp.float32)
    (total, dweight), dhidden = jax.lax.scan(piece, init, _pieces(hidden, labels, weight.shape[0]))
    return total, (_join_time(dhidden, labels.shape[1]), dweight.astype(weight.dtype))


def _summed_nats_bwd(
    gradients: tuple[Float[Array, "B T D"], Float[Array, "vocab D"]], dtotal: Float[Array, ""]
) -> tuple[Float[Array, "B T D"], Float[Array, "vocab D"], None]:
    dhidden, dweight = ((dtotal * gradient).astype(gradient.dtype) for gradient in gradients)
    return dhidden, dweight, None


_summed_nats.defvjp(_summed_nats_fwd, _summed_nats_bwd)


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
    nats, likeliest = (_join_time(s, labels.shape[1]) for s in scores)
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


def _join_time(pieces: Shaped[Array, "pieces B width *rest"], time: int) -> Shaped[Array, "B {time} *rest"]:
    """The inverse of `_split_time`, without what was padded."""
    joined = jnp.moveaxis(pieces, 0, 1)
    return joined.reshape(joined.shape[0], -1, *joined.shape[3:])[:, :time]
