"""What a model does with a text: where each token goes, how long memories keep it, what their keys are near to."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mom_jax.errors import InputError
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.layers.router import BY_TOKENS_ALONE, RouterInputs
from mom_jax.models.blocks import Block, coupled
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.routing import probabilities
from mom_jax.ops.segments import plan_packing
from mom_jax.typing import AnyArray, Array, Float, Int

PIECES = 128  # of the text, after each of which it is measured what memories have kept
CUTS = 8  # before which something was written
NEAREST = 3  # keys for each query


@dataclasses.dataclass(frozen=True)
class LayerView:
    """One memory layer and T tokens, with k routed memories and A assignments each, the shared memory last.

    Attributes:
        number: of the layer in the model, from 0.
        memory_ids: [T, k] int, the routed memories of each token, that of the largest weight first; -1 where heads with
            routers of their own chose fewer.
        weights: [T, k] float32, how the token's reads are mixed; means over heads with routers of their own.
        shares: [T, M] float32, the router's distribution over all memories; the mean of several routers.
        kept_after: [n] int, numbers of tokens.
        kept: [G, n] float32, the share of a memory's content that is still there so many tokens later, whatever went to
            the memory in between; NaN where nothing had been written.
        nearest: [T, A, NEAREST] int, earlier tokens of the memory whose keys are nearest to the token's query, the
            nearest first; -1 where there are none.
        similarity: [T, A, NEAREST] float32, their cosines, means over the heads.
    """

    number: int
    memory_ids: Int[np.ndarray, "T k"]
    weights: Float[np.ndarray, "T k"]
    shares: Float[np.ndarray, "T M"]
    kept_after: Int[np.ndarray, " n"]
    kept: Float[np.ndarray, "G n"]
    nearest: Int[np.ndarray, "T A c"]
    similarity: Float[np.ndarray, "T A c"]

    @property
    def memories(self) -> int:
        """M, without the shared one."""
        return self.shares.shape[1]

    @property
    def assignments(self) -> Int[np.ndarray, "T A"]:
        """The memories of each token, the shared one (number M) included."""
        shared = np.full((len(self.memory_ids), self.nearest.shape[1] - self.memory_ids.shape[1]), self.memories)
        return np.concatenate([self.memory_ids, shared], 1)

    @property
    def load(self) -> Float[np.ndarray, " M"]:
        """Each routed memory's share of all choices."""
        chosen = self.memory_ids[self.memory_ids >= 0]
        return np.bincount(chosen, minlength=self.memories) / chosen.size

    @property
    def half_life(self) -> Float[np.ndarray, " G"]:
        """Tokens until half of a memory's content is gone; infinite where it lasts longer than was looked at."""
        return np.array([_until_half(self.kept_after, kept) for kept in self.kept])


class Inspection(NamedTuple):
    """What a model does with a text."""

    ids: Int[np.ndarray, " T"]
    layers: tuple[LayerView, ...]  # those with memories


def inspect(model: MoMForCausalLM, input_ids: Int[AnyArray, " T"]) -> Inspection:
    """Follows one text through every memory layer of a model.

    *Kept* compares two states: one of a memory that has read all of the text, and one that was emptied on the way and
    then read the same rest. What differs between them is what is left of the content from before. For recurrences that
    are linear in their state it is exactly that content, decayed and overwritten; for the others (TTT, Titans) it is
    the difference that it still makes.

    Args:
        model: with at least one memory layer.
        input_ids: at least two tokens.

    Raises:
        InputError: too few tokens, one outside of the vocabulary, or a model of attention layers alone.
    """
    ids, kinds = np.asarray(input_ids), model.config.layer_kinds
    if ids.ndim != 1 or ids.size < 2:
        raise InputError("input_ids.shape", ids.shape, "give the ids of one text, at least two")
    if "memory" not in kinds:
        raise InputError("model", "a Transformer", "has no memories to look into")
    model = model.without_conv_leak()
    x, views, done = model.embed(ids[None]), [], dict.fromkeys(kinds, 0)
    elsewhere = model.config.mixture and model.config.router_choice != "scores"
    chosen = model.chosen_elsewhere(ids[None], (1, ids.size), None, None, None)[0] if elsewhere else None
    stacks = {kind: nnx.split(coupled(model.blocks(kind))) for kind in kinds}
    for number, kind in enumerate(kinds):
        x, seen = _look(*stacks[kind], done[kind], x, chosen)
        done[kind] += 1
        if seen is not None:
            views.append(_view(number, jax.tree.map(np.asarray, seen)))
    return Inspection(ids, tuple(views))


def distance(one: LayerView, other: LayerView) -> float:
    """How differently two texts are routed by a layer: half the sum of differences of loads, from 0 to 1."""
    return float(np.abs(one.load - other.load).sum() / 2)


class _Seen(NamedTuple):
    memory_ids: Array  # [T, k]
    weights: Array  # [T, k]
    shares: Array  # [T, M]
    queries: Array | None  # [T, A, H or 1, K]; None where a row has no single one
    keys: Array | None
    content: Array  # [P, G], norms of memories at the start of each piece
    left: Array  # [P, C, G], what is left after each piece of the content from before each of the `_cuts`


@functools.partial(jax.jit, static_argnums=0)
def _look(
    graph: Any, params: Any, rank: Array, x: Float[Array, "1 T D"], chosen: Int[Array, "1 T k"] | None
) -> tuple[Float[Array, "1 T D"], _Seen | None]:
    """What a block makes of its input, and what its memories do meanwhile; ``chosen`` where no router chooses."""
    block: Block = nnx.merge(graph, jax.tree.map(lambda a: a[rank], params))
    out = block(x, None, None, None, rank, {} if chosen is None else {"memory_ids": chosen})
    if block.kind != "memory":
        return out.y, None
    mixer, inputs = block.attn, block.attn_norm(x)
    if out.router is None:
        ids = jnp.zeros((x.shape[1], 1), jnp.int32)
        weights = shares = jnp.ones((x.shape[1], 1))
    else:
        bias = mixer.router_bias[...] if mixer.biased else None
        _, assigned = mixer.router.decide(inputs, bias, _by(mixer, chosen, rank, x.shape[1]), None)
        ids, weights = assigned.memory_ids[0], assigned.weights[0].reshape(*assigned.memory_ids.shape[1:], -1).mean(-1)
        shares = probabilities(out.router.logits[:, 0], mixer.router.options.router_scores).mean(0)
    return out.y, _Seen(ids, weights, shares, *_keys(mixer, inputs, ids), *_traces(mixer, inputs, rank, chosen))


def _by(mixer: MemoryMixer, chosen: Int[Array, "B T k"] | None, layer: Array, time: int) -> RouterInputs:
    """What the router decides by, as in decoding."""
    return BY_TOKENS_ALONE if chosen is None else mixer.router.inputs(None, chosen, layer, (len(chosen), time))


def _keys(mixer: MemoryMixer, x: Float[Array, "1 T D"], ids: Int[Array, "T k"]) -> tuple[Array | None, Array | None]:
    """Queries and keys of every assignment, where the rule's rows have one of each."""
    size = mixer.rule.chunk_rows(x.shape[1])
    packing = plan_packing(ids[None], mixer.num_memories or 1, shared=mixer.shared, chunk_size=size)
    rows, _, _ = mixer.rule.rows(x, packing, None, 0)
    q, k = getattr(rows, "q", None), getattr(rows, "k", None)
    if q is None or k is None or q.ndim != 3 or q.shape != k.shape:
        return None, None
    return q[packing.row[0]].astype(jnp.float32), k[packing.row[0]].astype(jnp.float32)


def _cuts(pieces: int) -> np.ndarray:
    """The pieces, evenly spread, whose beginnings part what was written before from what comes after."""
    count = min(CUTS, pieces - 1)
    return np.unique(np.arange(1, count + 1) * pieces // (count + 1)).clip(1)


def _traces(
    mixer: MemoryMixer, x: Float[Array, "1 T D"], layer: Array, chosen: Int[Array, "1 T k"] | None
) -> tuple[Array, Array]:
    """`_Seen.content` and `_Seen.left`: batch row 0 reads all of the text, the others are emptied at a cut each."""
    count = min(PIECES, x.shape[1])
    length, emptied_at = x.shape[1] // count, jnp.asarray([-1, *_cuts(count)])
    rows = len(emptied_at)

    def split(values):  # [1, T, ...] to [P, rows, length, ...]
        pieces = values[0, : count * length].reshape(count, 1, length, *values.shape[2:])
        return jnp.broadcast_to(pieces, (count, rows, *pieces.shape[2:]))

    def read(cache, numbered):
        number, piece, ids = numbered
        before, emptied = _content(cache.recurrent), emptied_at == number
        recurrent = jax.tree.map(lambda a: jnp.where(_along(emptied, a), 0, a), cache.recurrent)
        cache = dataclasses.replace(cache, recurrent=recurrent)
        _, _, cache = mixer.read(piece, cache=cache, inputs=_by(mixer, ids, layer, length))
        assert cache is not None
        after = _content(cache.recurrent)
        return cache, (_norm(before)[:, 0], _norm(after[:, 1:] - after[:, :1]).T)

    pieces = (jnp.arange(count), split(x), None if chosen is None else split(chosen))
    _, (content, left) = jax.lax.scan(read, mixer.empty_cache(1, rows, x.dtype), pieces)
    return content, left


def _along(rows: Array, states: Float[Array, "L G B *state"]) -> Array:
    return rows.reshape(1, 1, -1, *[1] * (states.ndim - 3))


def _content(recurrent: Any) -> Float[Array, "G B size"]:
    """What memories hold: the largest array of a state; others count tokens or sum gates."""
    largest = max(jax.tree.leaves(recurrent), key=lambda leaf: leaf.size)[0]
    return largest.reshape(*largest.shape[:2], -1)


def _norm(x: Float[Array, "G B size"]) -> Float[Array, "G B"]:
    return jnp.sqrt(jnp.sum(jnp.square(x), -1))


def _view(number: int, seen: _Seen) -> LayerView:
    count, memories = seen.content.shape
    length, cuts = len(seen.memory_ids) // count, _cuts(count)
    kept = np.full((memories, count - cuts[0]), np.nan, np.float32)
    for pieces in range(1, 1 + kept.shape[1]):
        fits = np.flatnonzero(cuts + pieces <= count)  # cuts that so many pieces follow
        before, left = seen.content[cuts[fits]].sum(0), seen.left[cuts[fits] + pieces - 1, fits].sum(0)
        kept[:, pieces - 1] = np.divide(left, before, out=np.full(memories, np.nan, np.float32), where=before > 0)
    order = np.argsort(-np.where(seen.memory_ids < 0, -1, seen.weights), axis=1, kind="stable")
    shape = len(seen.memory_ids), seen.memory_ids.shape[1] + memories - seen.shares.shape[1], NEAREST
    view = LayerView(
        number=number,
        memory_ids=np.take_along_axis(np.asarray(seen.memory_ids), order, 1),
        weights=np.take_along_axis(np.asarray(seen.weights, np.float32), order, 1),
        shares=np.asarray(seen.shares, np.float32),
        kept_after=length * np.arange(1, 1 + kept.shape[1]),
        kept=kept,
        nearest=np.full(shape, -1),
        similarity=np.full(shape, np.nan, np.float32),
    )
    if seen.queries is not None and seen.keys is not None:
        shared = np.arange(seen.memory_ids.shape[1], seen.queries.shape[1])
        places = np.concatenate([order, np.broadcast_to(shared, (len(order), shared.size))], 1)[..., None, None]
        _find_nearest(view, *(np.take_along_axis(np.asarray(x), places, 1) for x in (seen.queries, seen.keys)))
    return view


def _find_nearest(view: LayerView, queries: np.ndarray, keys: np.ndarray) -> None:
    """Fills in the keys nearest to each query, memory by memory."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12) for x in (queries, keys)]
    for memory in range(len(view.kept)):
        tokens, slots = np.nonzero(view.assignments == memory)
        q, k = (np.asarray(x[tokens, slots], np.float32) for x in unit)
        cosines = np.einsum("thk,shk->ts", q, k) / q.shape[1]
        cosines[np.triu_indices(len(tokens))] = -np.inf  # earlier tokens alone
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :NEAREST]
        best = np.take_along_axis(cosines, order, 1)
        width = order.shape[1]
        view.nearest[tokens, slots, :width] = np.where(np.isfinite(best), tokens[order], -1)
        view.similarity[tokens, slots, :width] = np.where(np.isfinite(best), best, np.nan)


def _until_half(after: np.ndarray, kept: np.ndarray) -> float:
    """Where ``kept``, which begins with 1 at 0, first falls below a half; between two points it decays evenly."""
    points, values = np.concatenate([[0], after]), np.concatenate([[1], kept])
    if np.isnan(values).any():
        return float("nan")
    below = np.flatnonzero(values < 0.5)
    if not below.size:
        return float("inf")
    before, then = np.log(values[below[0] - 1]), np.log(max(values[below[0]], 1e-30))
    share = (before - np.log(0.5)) / (before - then)
    return float(points[below[0] - 1] + share * (points[below[0]] - points[below[0] - 1]))
