"""Decays between the rows of a chunk, from log gates of any strength.

Only the gates between two rows are summed. The difference of two running sums would lose small
gates next to very negative ones: a gate of -1e4 costs three digits. At the start of a document a
mask cuts every path across it, so that nothing has to cancel.
"""

from typing import NamedTuple

import jax.numpy as jnp

from mom_jax.ops.chunks import transpose
from mom_jax.ops.segments import ChunkTable
from mom_jax.ops.triangular import diagonal_blocks, paired
from mom_jax.typing import Array, Bool, Float


class Documents(NamedTuple):
    """Which paths stay within one document, [chunks, 1, C] or [chunks, 1, C, C]; None if no document starts inside."""

    between: Bool[Array, "chunks 1 C C"] | None  # two rows
    enter: Bool[Array, "chunks 1 C"] | None  # the chunk's start and a row
    leave: Bool[Array, "chunks 1 C"] | None  # a row and the chunk's end
    across: Bool[Array, "chunks 1"] | None  # start and end


def documents(table: ChunkTable) -> Documents:
    """The masks of a table."""
    if table.reset is None:
        return Documents(None, None, None, None)
    number = jnp.cumsum(table.reset.reshape(-1, 1, table.chunk_size), -1, dtype=jnp.int32)
    same = number[..., :, None] == number[..., None, :]
    return Documents(same, number == 0, number == number[..., -1:], number[..., -1] == 0)


def masked(x: Float[Array, "*#shape"], keep: Bool[Array, "*#shape"] | None) -> Float[Array, "*#shape"]:
    """``x`` where ``keep`` holds, else 0."""
    return x if keep is None else jnp.where(keep, x, 0.0)


class Cut(NamedTuple):
    """Decays at one level of halving: blocks of 2b rows, cut in the middle, in the order of the chunk."""

    to: Float[Array, "chunks H _ _ K"]  # blocks, b; from just after each row of the first half to the cut
    since: Float[Array, "chunks H _ _ K"]  # from the cut to just before each row of the second half


class ChannelDecays(NamedTuple):
    """Decays from one log gate for each channel."""

    cuts: tuple[Cut, ...]  # b = 1, 2, 4, ... C / 2
    enter: Float[Array, "chunks H C K"]  # from the chunk's start to just before a row
    leave: Float[Array, "chunks H C K"]  # from just after a row to the chunk's end
    across: Float[Array, "chunks H K"]


def channel_decays(g: Float[Array, "chunks H C K"], table: ChunkTable) -> ChannelDecays:
    """Decays between the rows of a chunk, channel by channel, without forming them for all pairs.

    A chunk is halved recursively. Exactly one of these cuts separates a pair of rows i < t:
    i lies in the half before it, t in the half after it. Both factors of its decay, from i to the
    cut and from the cut to t, are at most 1, so gates of any strength neither overflow nor lose
    the part that counts, and each cut is one matmul.
    """
    before = behind = jnp.zeros_like(g)  # sums within the row's half
    whole = g
    cuts = []
    for level in range(table.chunk_size.bit_length() - 1):
        first_before, second_before = halves(before, 1 << level)
        first_behind, second_behind = halves(behind, 1 << level)
        first, second = halves(whole, 1)
        cuts.append(Cut(jnp.exp(first_behind), jnp.exp(second_before)))
        before = _join(first_before, second_before + first)
        behind = _join(first_behind + second, second_behind)
        whole = (first + second)[..., 0, :]
    inside = documents(table)
    enter, leave, across = (None if keep is None else keep[..., None] for keep in inside[1:])
    return ChannelDecays(
        cuts=tuple(cuts),
        enter=masked(jnp.exp(before), enter),
        leave=masked(jnp.exp(behind), leave),
        across=masked(jnp.exp(whole[..., 0, :]), across),
    )


def halves(
    x: Float[Array, "*batch C K"], rows: int
) -> tuple[Float[Array, "*batch blocks {rows} K"], Float[Array, "*batch blocks {rows} K"]]:
    """First and second halves of all blocks of ``2 * rows`` rows."""
    return paired(x.reshape(*x.shape[:-2], -1, rows, x.shape[-1]))


def _join(
    first: Float[Array, "*batch blocks b K"], second: Float[Array, "*batch blocks b K"]
) -> Float[Array, "*batch 2*blocks*b K"]:
    """The inverse of `halves`."""
    x = jnp.stack([first, second], -3)
    return x.reshape(*x.shape[:-4], -1, x.shape[-1])


def head_decays(
    g: Float[Array, "chunks H C"], table: ChunkTable
) -> tuple[
    Float[Array, "chunks H C C"], Float[Array, "chunks H C"], Float[Array, "chunks H C"], Float[Array, "chunks H"]
]:
    """Decays from one log gate for each head: between rows (lower triangle), from the start, to the end, and across.

    A row reads after its own gate. One gate for all channels needs no cuts: one product sums the gates
    between all pairs, which is faster.
    """
    size = table.chunk_size
    lower = jnp.tril(jnp.ones((size, size), g.dtype))
    passed = jnp.matmul(lower, g[..., :, None] * jnp.tril(lower, -1), precision="highest")  # sum over i < j <= t
    inside = documents(table)
    between = lower > 0 if inside.between is None else inside.between & (lower > 0)
    total = jnp.cumsum(g, -1)
    return (
        jnp.exp(jnp.where(between, passed, -jnp.inf)),
        masked(jnp.exp(total), inside.enter),
        masked(jnp.exp(passed[..., -1, :]), inside.leave),
        masked(jnp.exp(total[..., -1]), inside.across),
    )


def before_decay(
    between: Float[Array, "chunks H C C"], enter: Float[Array, "chunks H C"], table: ChunkTable
) -> tuple[Float[Array, "chunks H C C"], Float[Array, "chunks H C"]]:
    """Decays of `head_decays` between rows and from the start, for a row that reads before its own gate.

    It reads what the row before reads after its gate, and that row itself.
    """
    inside = documents(table)
    between = jnp.pad(between[..., :-1, :], [(0, 0)] * (between.ndim - 2) + [(1, 0), (0, 0)])
    enter = jnp.concatenate([jnp.ones_like(enter[..., :1]), enter[..., :-1]], -1)
    return masked(between, inside.between), masked(enter, inside.enter)


def decayed_scores(
    left: Float[Array, "chunks H C K"], right: Float[Array, "chunks H C K"], decays: ChannelDecays, table: ChunkTable
) -> Float[Array, "chunks H C C"]:
    """``sum_c left_tc right_ic exp(sum of g_jc over i < j < t)`` for i < t of one document, else 0."""
    # [chunks, H, blocks, b, b], from a block for each row to one
    scores = jnp.zeros((*left.shape[:-1], 1, 1), left.dtype)
    for level, cut in enumerate(decays.cuts):
        corner = products(halves(left, 1 << level)[1] * cut.since, halves(right, 1 << level)[0] * cut.to)
        first, second = paired(scores)
        top = jnp.concatenate([first, jnp.zeros_like(first)], -1)
        scores = jnp.concatenate([top, jnp.concatenate([corner, second], -1)], -2)
    return masked(scores[..., 0, :, :], documents(table).between)


def decayed_values(
    scores: Float[Array, "chunks H C C"], values: Float[Array, "chunks H C K"], decays: ChannelDecays
) -> Float[Array, "chunks H C K"]:
    """``sum_i scores_ti values_ic exp(sum of g_jc over i < j < t)`` over i < t: values decay, not keys."""
    total = jnp.zeros_like(values)
    for level, cut in enumerate(decays.cuts):
        rows = 1 << level
        corner = diagonal_blocks(scores, 2 * rows)[..., rows:, :rows]
        first, second = halves(values, rows)
        total += _join(jnp.zeros_like(second), cut.since * (corner @ (cut.to * first)))
    return total


def products(
    reads: Float[Array, "*batch blocks b K"], writes: Float[Array, "*batch blocks b K"]
) -> Float[Array, "*batch blocks b b"]:
    """All inner products of two small blocks; for few rows a matmul is slower than plain sums.

    Blocks and their rows share an axis in the sums: jaxlib 0.10 crashes on a CPU when it sums over one of
    seven axes, which gradients under ``vmap`` would have.
    """
    *batch, blocks, rows, channels = reads.shape
    if rows > 4:
        return reads @ transpose(writes)
    pairs = reads.reshape(*batch, blocks * rows, 1, channels) * jnp.repeat(writes, rows, -3)
    return jnp.sum(pairs, -1).reshape(*batch, blocks, rows, rows)
