"""Packing by counting, against lists built token by token."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.compare import assert_close

from mom_jax.errors import InputError
from mom_jax.ops.dispatch import as_chunks
from mom_jax.ops.documents import count_documents
from mom_jax.ops.segments import pack, packed_length, plan_packing, unpack_mix
from tools.kernels.equations import equations


def expected_segments(memories, num_memories, shared, mask):
    """The flat assignments of every (memory, row), memory-major, in time order."""
    batch, time, top_k = memories.shape
    slots = top_k + shared
    segments = []
    for memory, b in itertools.product(range(num_memories + shared), range(batch)):
        chosen = []
        for t in range(time):
            choices = [*memories[b, t], *([num_memories] if shared else [])]
            if mask[b, t] and memory in choices:
                chosen.append((b * time + t) * slots + choices.index(memory))
        segments.append(chosen)
    return segments


def check_packing(packing, runs, segments, chunk, slots, tokens):
    """Every claim of `Packing` and `ChunkTable` that does not concern documents."""
    rows = packing.assignment.shape[0]
    assignment, row, table = np.asarray(packing.assignment), np.asarray(packing.row).reshape(-1), packing.table
    start, length, position = (np.asarray(x) for x in (packing.start, packing.length, packing.position))
    want_row, want_assignment, begin = np.full(tokens * slots, rows), np.full(rows, tokens * slots), 0
    chunks = []
    for s, chosen in enumerate(segments):
        assert start[s] == begin and length[s] == len(chosen)
        want_assignment[begin : begin + len(chosen)] = chosen
        want_row[chosen] = np.arange(begin, begin + len(chosen))
        np.testing.assert_array_equal(position[begin : begin + len(chosen)], np.arange(len(chosen)))
        count = -(-len(chosen) // chunk)
        chunks += [(s, i == 0, i == count - 1) for i in range(count)]
        begin += count * chunk
    np.testing.assert_array_equal(assignment, want_assignment)
    np.testing.assert_array_equal(row, want_row)
    np.testing.assert_array_equal(packing.valid, want_assignment < tokens * slots)
    np.testing.assert_array_equal(packing.token, want_assignment // slots)
    assert rows % chunk == 0 and begin <= rows and table.chunk_size == chunk and table.num_segments == len(segments)
    used = len(chunks)
    assert (
        list(zip(*(np.asarray(x)[:used].tolist() for x in (table.segment, table.first, table.last)), strict=True))
        == chunks
    )
    assert (np.asarray(table.segment)[used:] == len(segments)).all() and not np.asarray(table.last)[used:].any()
    counts = [-(-len(chosen) // chunk) for chosen in segments]
    np.testing.assert_array_equal(table.count, counts)
    longest_first = sorted(((s, sum(counts[:s]), n) for s, n in enumerate(counts)), key=lambda run: -run[2])
    np.testing.assert_array_equal(runs, [*longest_first, (len(counts), used, rows // chunk - used)])
    batch = len(segments) // packing.group_sizes.shape[0]
    sizes = [sum(-(-len(c) // chunk) * chunk for c in segments[i : i + batch]) for i in range(0, len(segments), batch)]
    np.testing.assert_array_equal(packing.group_sizes, sizes)


def distinct_memories(rng, batch, time, num_memories, top_k):
    """Random distinct choices [B, T, k]."""
    return np.argsort(rng.random((batch, time, num_memories)), -1)[..., :top_k].astype(np.int32)


PLANS = [  # batch, time, memories, top_k, shared, chunk: few, because each compiles
    (1, 1, 3, 2, True, 4),
    (1, 13, 1, 1, False, 4),
    (2, 9, 3, 3, True, 1),
    (2, 9, 5, 2, True, 4),
    (3, 6, 5, 4, False, 4),
    (3, 6, 3, 1, True, 1),
    (4, 1, 5, 2, True, 1),
    (1, 1, 3, 3, False, 1),
]


@functools.cache
def planned(num_memories, shared, chunk):
    """The compiled plan, and its runs of chunks."""
    options = {"num_memories": num_memories, "shared": shared, "chunk_size": chunk}

    @jax.jit
    def plan(memories, mask):
        packing = plan_packing(memories, **options, attention_mask=mask)
        return packing, as_chunks(packing.table).runs

    return plan


@st.composite
def routings(draw):
    """A plan with its memories, skewed or balanced, and any mask."""
    plan = draw(st.sampled_from(PLANS))
    batch, time, num_memories, top_k, _, _ = plan
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    if draw(st.booleans()):
        memories = distinct_memories(rng, batch, time, num_memories, top_k)
    else:  # everything to the same memories; the others stay empty
        memories = np.broadcast_to(rng.permutation(num_memories)[:top_k].astype(np.int32), (batch, time, top_k))
    if draw(st.booleans()):  # some choices are of no memory
        memories = np.where(rng.random(memories.shape) < 0.3, np.int32(-1), memories)
    kind = draw(st.sampled_from(["none", "left", "right", "holes", "row", "all"]))
    mask, cut = np.ones((batch, time), np.int32), draw(st.integers(0, time))
    if kind == "left":
        mask[-1, :cut] = 0
    elif kind == "right":
        mask[-1, cut:] = 0
    elif kind == "holes":
        mask = rng.integers(0, 2, (batch, time)).astype(np.int32)
    elif kind == "row":
        mask[0] = 0
    elif kind == "all":
        mask[:] = 0
    return plan, memories, None if kind == "none" else mask


@given(routings())
@settings(max_examples=60)
def test_rows_are_the_tokens_of_each_memory_in_time_order(routing):
    """No token is dropped, moved or doubled, and the chunk table describes exactly these rows."""
    (batch, time, num_memories, top_k, shared, chunk), memories, mask = routing
    packing, runs = planned(num_memories, shared, chunk)(memories, mask)
    keep = np.ones((batch, time)) if mask is None else mask
    segments = expected_segments(memories, num_memories, shared, keep)
    check_packing(packing, runs, segments, chunk, top_k + shared, batch * time)
    assert packing.assignment.shape[0] == packed_length(batch, time, top_k, num_memories, shared, chunk)


@pytest.mark.parametrize("time", [70, 64])
def test_full_size_chunks(time):
    """C = 64, with time a multiple of it and not."""
    memories = distinct_memories(np.random.default_rng(time), 2, time, 4, 2)
    packing, runs = planned(4, True, 64)(memories, None)
    check_packing(packing, runs, expected_segments(memories, 4, True, np.ones((2, time))), 64, 3, 2 * time)


@pytest.mark.parametrize(
    "time,top_k,num_memories,chunk", [*itertools.product([1, 2, 5, 6], [1, 2, 3], [3, 4], [1, 2, 4])]
)
def test_packed_length_is_the_worst_case(time, top_k, num_memories, chunk):
    """Exactly the rows of the routing that needs most: no routing overflows, and one fills it."""
    loads = itertools.product(range(time + 1), repeat=num_memories)
    worst = max(sum(-(-n // chunk) for n in load) for load in loads if sum(load) == time * top_k)
    for batch, shared in ((1, False), (3, True)):
        want = batch * (worst + (-(-time // chunk) if shared else 0)) * chunk
        assert packed_length(batch, time, top_k, num_memories, shared, chunk) == want


@pytest.mark.parametrize("masked", [False, True])
def test_resets(masked):
    """A row resets where its document is another than that of the token before it in the same memory, or, at first,
    than the one that goes on from before the call; that a document's number comes back changes nothing."""
    rng = np.random.default_rng(3)
    memories = distinct_memories(rng, 2, 12, 4, 2)
    numbers = np.array([[1, 1, 2, 1, 1, 1, 2, 2, 3, 1, 1, 1], [5, 5, 5, 0, 0, 0, 0, 5, 0, 5, 5, 5]], np.int32)
    mask = rng.integers(0, 2, (2, 12)) if masked else np.ones((2, 12), np.int64)
    documents = count_documents(numbers, jnp.asarray(mask), jnp.array([1, 4]))
    options = {"shared": True, "chunk_size": 4}
    plan = jax.jit(lambda m, mask, d: plan_packing(m, 4, **options, attention_mask=mask, documents=d))
    packing = plan(memories, mask, documents)
    count, want = runs(numbers, mask, [1, 4])[0], np.zeros(packing.assignment.shape[0], bool)
    for s, chosen in enumerate(expected_segments(memories, 4, True, mask)):
        before = 0
        for i, assignment in enumerate(chosen):
            document = count.reshape(-1)[assignment // 3]
            want[int(packing.start[s]) + i] = document != before
            before = document
    np.testing.assert_array_equal(packing.table.reset, want)


def runs(numbers, mask, last):
    """Documents begun at or before each token, and each row's last number, token by token."""
    count, last = np.zeros(numbers.shape, int), list(last)
    for b, t in np.ndindex(*numbers.shape):
        count[b, t] = count[b, t - 1] if t else 0
        if mask[b, t]:
            count[b, t] += last[b] is not None and numbers[b, t] != last[b]
            last[b] = numbers[b, t]
    return count, last


@pytest.mark.parametrize(
    "before, dtype", [(None, np.int32), ([2, 0], np.int32), ([2, 0], np.uint8), (None, np.int64), ([2, 0], bool)]
)
def test_documents_are_runs(before, dtype):
    """Any numbers of any integer type, padding anywhere and with any number, a number from the call before."""
    rng = np.random.default_rng(1)
    for mask in (None, rng.integers(0, 2, (2, 15)), np.eye(2, 15, 14, int)):
        numbers = rng.integers(0, 2 if dtype is bool else 3, (2, 15)).astype(dtype)
        got = count_documents(numbers, mask, None if before is None else jnp.array(before))
        count, last = runs(numbers.astype(int), np.ones((2, 15)) if mask is None else mask, before or [None, None])
        np.testing.assert_array_equal(got.index, count)
        for b in range(2):
            assert last[b] is None or int(got.number[b]) == last[b]
        assert count_documents(got) is got
    assert count_documents(None, mask) is None


@pytest.mark.parametrize(
    "numbers, message",
    [
        (np.array([[1, 2**32 + 1]]), r"segment_ids=4294967297: document numbers must fit int32"),
        (np.array([[1, 2**31]], np.uint32), r"segment_ids=2147483648: document numbers must fit int32"),
        (jnp.array([[1.2, 1.7]]), r"segment_ids\.dtype='?float32'?: document numbers are whole"),
    ],
)
def test_numbers_that_would_be_mistaken(numbers, message):
    """Nothing is cut off silently."""
    with pytest.raises(InputError, match=message):
        count_documents(numbers)


@pytest.fixture(scope="module", params=["shared", "routed", "masked"])
def example(request):
    """A packing with empty memories, its weights and a mask."""
    rng = np.random.default_rng(7)
    memories = jnp.asarray(distinct_memories(rng, 2, 11, 3, 2))
    mask = jnp.asarray(rng.integers(0, 2, (2, 11))) if request.param == "masked" else None
    shared = request.param != "routed"
    packing, _ = planned(6, shared, 4)(memories, mask)
    weights = jnp.asarray(rng.normal(size=(2, 11, 2 + shared)), jnp.float32)
    return packing, weights, np.ones((2, 11)) if mask is None else np.asarray(mask)


def with_gradients(function, inputs, cotangent):
    """Values in float32, and gradients of all inputs."""

    @jax.jit
    def run(inputs, cotangent):
        y, pull = jax.vjp(function, *inputs)
        return y, pull(cotangent)

    return run(*jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), (inputs, cotangent)))


@pytest.mark.parametrize("rest", [(), (3,), (2, 5)], ids=str)
def test_pack_and_its_gradient(example, rest):
    """Against a loop over rows, and its automatic gradient."""
    packing, _, _ = example
    rng = np.random.default_rng(1)
    x, dy = rng.normal(size=(2, 11, *rest)), rng.normal(size=(packing.assignment.shape[0], *rest))
    want, dx = np.zeros(dy.shape), np.zeros((22, *rest))
    for n, token in enumerate(np.asarray(packing.token)):
        if token < 22:
            want[n] = x.reshape(22, *rest)[token]
            dx[token] += dy[n]
    got = with_gradients(lambda x: pack(x, packing), (x,), dy)
    assert_close(got, (want, (dx.reshape(x.shape),)), 1e-6)


@pytest.mark.parametrize("rest", [(), (2, 5)], ids=str)
def test_unpack_mix_and_its_gradients(example, rest):
    """Against a loop over tokens; masked tokens read exactly 0 and send nothing back."""
    packing, weights, mask = example
    rng = np.random.default_rng(2)
    y, do = rng.normal(size=(packing.assignment.shape[0], *rest)), rng.normal(size=(2, 11, *rest))
    want, dy, dw = np.zeros(do.shape), np.zeros(y.shape), np.zeros(weights.shape)
    for b, t, j in itertools.product(*map(range, weights.shape)):
        n = int(packing.row[b, t, j])
        assert (n < len(y)) == bool(mask[b, t])
        if n < len(y):
            want[b, t] += float(weights[b, t, j]) * y[n]
            dy[n] += float(weights[b, t, j]) * do[b, t]
            dw[b, t, j] = (y[n] * do[b, t]).sum()
    got = with_gradients(lambda y, w: unpack_mix(y, w, packing), (y, weights), do)
    assert_close(got, (want, (dy, dw)), 1e-6)
    assert not np.asarray(got[0])[mask == 0].any()


def test_no_sort_and_no_scatter_add(example):
    """Neither planning, nor packing, nor their gradients sort or accumulate by scatter."""
    packing, weights, _ = example

    def plan(memories):
        return plan_packing(memories, 6, shared=True, chunk_size=4).assignment

    def there_and_back(x, weights):
        return (unpack_mix(pack(x, packing) ** 2, weights, packing) ** 2).sum()

    x = jnp.ones((2, 11, 3))
    memories = jnp.zeros((2, 11, 2), jnp.int32)
    programs = jax.make_jaxpr(plan)(memories), jax.make_jaxpr(jax.grad(there_and_back, (0, 1)))(x, weights)
    used = {equation.primitive.name for program in programs for equation in equations(None, program.jaxpr)}
    assert {"cumsum", "gather", "scatter"} <= used  # the walk sees inside
    assert not {name for name in used if "sort" in name or name in ("scatter-add", "scatter_add", "scatter-mul")}
