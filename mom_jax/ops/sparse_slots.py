"""A state of many slots of which a chunk touches few: what its rows name is gathered, run densely, and kept.

Slots lie in a log: what each chunk left of the slots that it touched. A chunk finds a slot where the chunk that touched
it last left it, so no table of all slots is made, neither of states nor of their gradients, and the cost of a chunk
does not depend on how many slots there are. Only a state that is given has them all, and what becomes of it.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mom_jax.ops.segments import ChunkTable
from mom_jax.typing import Array, Bool, Float, Int

# (arrays of a chunk, the state of its slots) -> (outputs of the chunk, the new state)
Body = Callable[[Any, Float[Array, "H U V"]], tuple[Float[Array, "C H V"], Float[Array, "H U V"]]]
_Log = Float[Array, "chunks H U V"]


class Touched(NamedTuple):
    """Which slots the rows of each chunk name, U at most for a head; the number of slots stands where there is none."""

    slots: Int[Array, "chunks H U"]
    place: Int[Array, "chunks C H E"]  # of each of a row's E names, among them


def touched(names: Int[Array, "N H E"], chunk_size: int, num_slots: int) -> Touched:
    """Slots by chunk and head, each once, in order."""
    _, heads, each = names.shape
    # [chunks, H, C * E]
    flat = jnp.moveaxis(names.reshape(-1, chunk_size, heads, each), 2, 1).reshape(-1, heads, chunk_size * each)
    order = jnp.argsort(flat, -1)
    found = jnp.take_along_axis(flat, order, -1)
    new = jnp.concatenate([jnp.ones_like(found[..., :1], bool), found[..., 1:] != found[..., :-1]], -1)
    number = jnp.cumsum(new, -1, dtype=jnp.int32) - 1
    most = min(chunk_size * each, num_slots)
    slots = jnp.full((*flat.shape[:2], most), num_slots, jnp.int32)
    slots = jnp.put_along_axis(slots, number, found.astype(jnp.int32), axis=-1, inplace=False)
    place = jnp.put_along_axis(jnp.zeros_like(number), order, number, axis=-1, inplace=False)
    place = place.reshape(-1, heads, chunk_size, each)
    return Touched(slots, jnp.moveaxis(place, 1, 2))


def run_over_slots(
    body: Body,
    xs: Any,
    slots: Int[Array, "chunks H U"],
    table: ChunkTable,
    state: Float[Array, "S H M V"] | None,
    shape: jax.ShapeDtypeStruct,
) -> tuple[Float[Array, "N H V"], Float[Array, "S H M V"] | None]:
    """Runs ``body`` over chunks, each on the slots of its segment that it touches.

    Args:
        body: of one chunk; it sees to documents inside of the chunk.
        xs: floating arrays [chunks, ...].
        slots: that each chunk touches; M where there is none.
        table: segments of the chunks.
        state: of every segment; None starts from 0 and returns none.
        shape: of one state, [H, M, V].
    """
    documents, links = _Documents.of(table), _links(slots, _first_chunks(table), shape.shape[1])
    own = documents.within(links)
    log = jnp.zeros((*slots.shape, shape.shape[-1]), shape.dtype)
    run: Any = _run
    if state is None:
        o, _ = run(body, xs, own, log, None)
        return o.reshape(-1, *o.shape[2:]), None
    heads, segment = jnp.arange(slots.shape[1])[:, None], table.segment[:, None, None]
    fresh = documents.is_first[:, None, None] & (links.before == slots.size)
    entering = jnp.where(fresh[..., None], state.at[segment, heads, slots].get(mode="fill", fill_value=0), 0)
    o, log = run(body, xs, own, log, entering)
    if table.reset is not None:
        log = jnp.where(documents.is_last[:, None, None, None], log, 0)
        state = jnp.where(documents.goes_on[:, None, None, None], state, 0)
    last = jnp.where(links.behind == slots.size, slots, shape.shape[1])
    return o.reshape(-1, *o.shape[2:]), state.at[segment, heads, last].set(log, mode="drop")


class _Links(NamedTuple):
    """The slot's neighbours in the log, as numbers ``chunk * U + place``; chunks * H * U where there is none."""

    before: Int[Array, "chunks H U"]  # in the last chunk of the segment that touched it
    behind: Int[Array, "chunks H U"]  # in the next one


def _first_chunks(table: ChunkTable) -> Int[Array, " chunks"]:
    """The first chunk of each chunk's segment; unused chunks are one more segment."""
    begins = table.segment != jnp.roll(table.segment, 1)
    return jax.lax.cummax(jnp.where(begins, jnp.arange(begins.shape[0]), 0))


def _links(slots: Int[Array, "chunks H U"], begin: Int[Array, " chunks"], num_slots: int) -> _Links:
    """All neighbours. The numbers in ``seen`` are what is left of a table of all slots: one for V floats."""
    (chunks, heads, most), nowhere = slots.shape, slots.size
    every = jnp.arange(heads)[:, None]

    def body(seen, chunk):
        here, number, first = chunk
        found = seen.at[every, here].get(mode="fill", fill_value=-1)
        seen = seen.at[every, here].set(number * most + jnp.arange(most), mode="drop")
        return seen, jnp.where(found >= first * most, found, nowhere)

    seen = jnp.full((heads, num_slots), -1)
    before = jax.lax.scan(body, seen, (slots, jnp.arange(chunks), begin))[1]
    # [H, chunks * U]
    by_head = jnp.moveaxis(before, 1, 0).reshape(heads, -1)
    behind = jnp.full_like(by_head, nowhere).at[every, by_head].set(jnp.arange(chunks * most), mode="drop")
    return _Links(before, jnp.moveaxis(behind.reshape(heads, chunks, most), 0, 1))


class _Documents(NamedTuple):
    """Where documents begin among chunks."""

    before: Int[Array, " chunks"]  # documents that began before each chunk
    behind: Int[Array, " chunks"]  # and up to its end
    is_first: Bool[Array, " chunks"]  # none began in the segment before the chunk
    is_last: Bool[Array, " chunks"]  # none begins in the segment behind it
    goes_on: Bool[Array, " S"]  # none begins in the segment

    @classmethod
    def of(cls, table: ChunkTable) -> "_Documents":
        """From a table."""
        chunks = table.segment.shape[0]
        resets = jnp.zeros((chunks, 1)) if table.reset is None else table.reset.reshape(chunks, -1)
        each = jnp.sum(resets, -1, dtype=jnp.int32)
        behind = jnp.cumsum(each)
        before = behind - each
        begin, none = before[_first_chunks(table)], jnp.zeros(table.num_segments, jnp.int32)
        first, last = (none.at[table.segment].max(count, mode="drop") for count in (begin, behind))
        is_last = behind == last.at[table.segment].get(mode="clip")
        return cls(before, behind, before == begin, is_last, first == last)

    def within(self, links: _Links) -> _Links:
        """The neighbours of the same document."""
        most, nowhere = links.before.shape[-1], links.before.size
        here = self._number(self.behind, links.before // most) == self.before[:, None, None]
        there = self._number(self.before, links.behind // most) == self.behind[:, None, None]
        return _Links(jnp.where(here, links.before, nowhere), jnp.where(there, links.behind, nowhere))

    @staticmethod
    def _number(count: Int[Array, " chunks"], chunk: Int[Array, "chunks H U"]) -> Int[Array, "chunks H U"]:
        return count.at[chunk].get(mode="fill", fill_value=-1)


def _found(log: _Log, at: Int[Array, "H U"]) -> Float[Array, "H U V"]:
    heads, most = jnp.arange(log.shape[1])[:, None], log.shape[2]
    return log.at[at // most, heads, at % most].get(mode="fill", fill_value=0)


def _entering(log: _Log, at: Int[Array, "H U"], given: Float[Array, "H U V"] | None) -> Float[Array, "H U V"]:
    return _found(log, at) if given is None else given + _found(log, at)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(body: Body, xs: Any, links: _Links, empty: _Log, given: _Log | None) -> tuple[Any, _Log | None]:
    """Outputs and, if slots are ``given`` a state, the log. ``empty`` is where it is written."""
    return _run_fwd(body, xs, links, empty, given)[0]


def _run_fwd(body: Body, xs: Any, links: _Links, empty: _Log, given: _Log | None) -> tuple[Any, Any]:
    def forward(log, chunk):
        x, at, own, number = chunk
        o, new = body(x, _entering(log, at, own))
        return log.at[number].set(new), o

    log, o = jax.lax.scan(forward, empty, (xs, links.before, given, jnp.arange(empty.shape[0])))
    return (o, None if given is None else log), (xs, links, given, log)


def _run_bwd(body: Body, residuals: Any, cotangents: Any) -> Any:
    xs, links, given, log = residuals
    do, dlog = cotangents

    def backward(dfound, chunk):
        x, links, own, do, dnew, number = chunk
        left = _entering(dfound, links.behind, dnew)
        dx, dentering = jax.vjp(body, x, _entering(log, links.before, own))[1]((do, left))
        return dfound.at[number].set(dentering), dx

    numbers = jnp.arange(log.shape[0])
    dfound, dxs = jax.lax.scan(backward, jnp.zeros_like(log), (xs, links, given, do, dlog, numbers), reverse=True)
    return dxs, None, None, None if given is None else dfound


_run.defvjp(_run_fwd, _run_bwd)
