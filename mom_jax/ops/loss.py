"""Next-token cross entropy that never holds all logits at once."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.labels import IGNORE
from mom_jax.ops.precision import wide, widened
from mom_jax.typing import Array, Bool, Float, Int, Shaped

_MAX_LOGITS = 2**25  # logits held at a time: 128 MiB in float32


def token_cross_entropy(logits: Float[Array, "*batch V"], labels: Int[Array, "*batch"]) -> Float[Array, "*batch"]:
    """Nats of each label, in float32 or wider; 0 where the label is `IGNORE`."""
    logits = widened(logits)
    nats = jax.nn.logsumexp(logits, -1) - jnp.take_along_axis(logits, jnp.maximum(labels, 0)[..., None], -1)[..., 0]
    return jnp.where(labels == IGNORE, 0.0, nats)


def chunked_cross_entropy(
    hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"], labels: Int[Array, "B T"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Summed cross entropy of ``hidden @ weight.T`` against ``labels``.

    Works through time in pieces, so memory stays below 128 MiB of logits whatever the vocabulary. Gradients are taken
    from each piece's logits while they are there, with the forward pass: nothing is computed again.

    Returns:
        The sum in nats and the number of labels that are not `IGNORE`; scalars in float32 or wider.
    """
    of_both: Any = penalised_cross_entropy(hidden, weight, labels, 0.0)
    return of_both[1], (labels != IGNORE).sum().astype(wide(hidden.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def penalised_cross_entropy(
    hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"], labels: Int[Array, "B T"], z_scale: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """As `chunked_cross_entropy`, with a penalty that keeps logits near 0.

    It is ``z_scale * logsumexp(logits)^2`` of each label, the z-loss of PaLM (arXiv 2204.02311, section 5; 1e-4 there).

    Returns:
        (nats and penalties, nats alone), summed; scalars in float32 or wider. Gradients are those of the first: the
        second is to be looked at where there is a penalty.
    """

    def piece(sums, xs):
        x, y = xs
        return jax.tree.map(jnp.add, sums, _scores(logits_of(x, weight), y, z_scale)), None

    return jax.lax.scan(piece, _zeros(hidden), _pieces(hidden, labels, weight.shape[0]))[0]


def _zeros(hidden: Float[Array, "B T D"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    return jnp.zeros((), wide(hidden.dtype)), jnp.zeros((), wide(hidden.dtype))


def _scores(
    logits: Float[Array, "B T vocab"], labels: Int[Array, "B T"], z_scale: float
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    nats = token_cross_entropy(logits, labels).sum()
    if not z_scale:
        return nats, nats
    squares = jnp.where(labels == IGNORE, 0.0, jnp.square(jax.nn.logsumexp(logits, -1)))
    return nats + z_scale * squares.sum(), nats


def _summed_nats_fwd(
    hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"], labels: Int[Array, "B T"], z_scale: float
) -> tuple[tuple[Float[Array, ""], Float[Array, ""]], tuple[Float[Array, "B T D"], Float[Array, "vocab D"]]]:
    """The sums, and the first one's gradients of hidden states and weight."""
    narrow = weight.astype(hidden.dtype)

    def piece(carry, xs):
        sums, dweight = carry
        x, y = xs
        logits = logits_of(x, narrow)
        shares = jax.nn.softmax(logits, -1)
        surplus = shares - jax.nn.one_hot(y, weight.shape[0], dtype=logits.dtype)
        if z_scale:
            surplus += 2 * z_scale * jax.nn.logsumexp(logits, -1, keepdims=True) * shares
        dlogits = jnp.where((y == IGNORE)[..., None], 0, surplus).astype(x.dtype)
        dx = jnp.einsum("btv,vd->btd", dlogits, narrow, preferred_element_type=x.dtype)
        dweight += jnp.einsum("btv,btd->vd", dlogits, x, preferred_element_type=dweight.dtype)
        return (jax.tree.map(jnp.add, sums, _scores(logits, y, z_scale)), dweight), dx

    init = _zeros(hidden), jnp.zeros(weight.shape, wide(hidden.dtype))
    (sums, dweight), dhidden = jax.lax.scan(piece, init, _pieces(hidden, labels, weight.shape[0]))
    return sums, (_join_time(dhidden, labels.shape[1]), dweight.astype(weight.dtype))


def _summed_nats_bwd(
    z_scale: float,
    gradients: tuple[Float[Array, "B T D"], Float[Array, "vocab D"]],
    dsums: tuple[Float[Array, ""], Float[Array, ""]],
) -> tuple[Float[Array, "B T D"], Float[Array, "vocab D"], None]:
    dtotal = dsums[0] if z_scale else dsums[0] + dsums[1]  # without a penalty both are one
    dhidden, dweight = ((dtotal * gradient).astype(gradient.dtype) for gradient in gradients)
    return dhidden, dweight, None


penalised_cross_entropy.defvjp(_summed_nats_fwd, _summed_nats_bwd)


def chunked_token_scores(
    hidden: Float[Array, "B T D"],
    weight: Float[Array, "vocab D"],
    labels: Int[Array, "B T"],
    candidates: Bool[Array, " vocab"] | None = None,
) -> tuple[Float[Array, "B T"], Bool[Array, "B T"]]:
    """Nats of each label (0 at `IGNORE`), float32 or wider, and whether it is the likeliest token; memory as above.

    Nats are of all rows of ``weight``; the likeliest is sought among ``candidates`` where they are given.
    """

    def piece(_, xs):
        x, y = xs
        logits = logits_of(x, weight)
        choices = logits if candidates is None else jnp.where(candidates, logits, -jnp.inf)
        return None, (token_cross_entropy(logits, y), jnp.argmax(choices, -1) == y)

    _, scores = jax.lax.scan(piece, None, _pieces(hidden, labels, weight.shape[0]))
    nats, likeliest = (_join_time(s, labels.shape[1]) for s in scores)
    return nats, likeliest


def logits_of(hidden: Float[Array, "B T D"], weight: Float[Array, "vocab D"]) -> Float[Array, "B T vocab"]:
    """``hidden @ weight.T``, multiplied in the dtype of hidden states, summed in float32 or wider."""
    return jnp.einsum("btd,vd->btv", hidden, weight.astype(hidden.dtype), preferred_element_type=wide(hidden.dtype))


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
