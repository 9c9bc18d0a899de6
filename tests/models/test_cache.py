"""One call for prefill, chunked prefill and single steps: any split of the tokens gives the full pass."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from support.calls import compiled, in_pieces
from support.compare import assert_close, relative_error

TIME = 14
PIECES = (1, 7)  # few lengths, because each compiles


@st.composite
def splits(draw):
    """Lengths that sum to TIME."""
    lengths = []
    while sum(lengths) < TIME:
        lengths.append(draw(st.sampled_from([n for n in PIECES if n <= TIME - sum(lengths)])))
    return lengths


@st.composite
def batches(draw):
    """Ids, a mask with padding left, right or in holes, and document numbers, of two rows."""
    rng = np.random.default_rng(draw(st.integers(0, 2**31)))
    ids = rng.integers(0, 32, (2, TIME)).astype(np.int32)
    kind, cut = draw(st.sampled_from(["none", "left", "right", "holes"])), draw(st.integers(1, TIME - 1))
    mask = np.ones((2, TIME), np.int32)
    if kind == "left":
        mask[0, :cut] = 0
    elif kind == "right":
        mask[0, cut:] = 0
    elif kind == "holes":
        mask = rng.integers(0, 2, (2, TIME)).astype(np.int32)
    documents = np.sort(rng.integers(0, draw(st.integers(1, 6)), (2, TIME)), -1).astype(np.int32)
    return ids, mask, documents % 3  # numbers come back


@pytest.fixture(scope="module")
def rounded(model):
    """The compiled call of a model whose parameters differ in their last digit."""
    rng, (graph, params) = np.random.default_rng(0), nnx.split(model)
    changed = jax.tree.map(lambda p: p * np.float32(1 + 1e-7 * rng.normal(size=p.shape)), params)
    return compiled(nnx.merge(graph, changed))


@given(splits(), batches())
@settings(max_examples=20, deadline=None)
def test_any_split_equals_the_full_pass(call, rounded, model, lengths, batch):
    """Logits and the final cache, also cut inside documents and where a memory holds an older document.

    Among batches drawn at random some magnify rounding more than others: as much is allowed.
    """
    ids, mask, documents = batch
    full = call(ids, mask, documents, model.init_cache(2))
    without = call(ids, mask, documents, None)
    assert without.cache is None
    change = relative_error(rounded(ids, mask, documents).logits, without.logits)
    tolerance = max(2e-5, 2 * change)
    assert_close(full.logits, without.logits, tolerance)
    logits, cache = in_pieces(call, model.init_cache(2), lengths, ids, mask, documents)
    assert_close((logits, cache), (full.logits, full.cache), tolerance, atol=2e-6)


def test_a_mask_with_columns_of_earlier_calls(call, model):
    """A mask that grows with the text, as other libraries keep it: its last columns count."""
    ids = np.random.default_rng(2).integers(0, 32, (2, 14)).astype(np.int32)
    mask, documents = np.ones((2, 14), np.int32), np.zeros((2, 7), np.int32)
    mask[0, 9] = 0
    cache = call(ids[:, :7], mask[:, :7], documents, model.init_cache(2)).cache
    short = call(ids[:, 7:], mask[:, 7:], documents, cache)
    long = call(ids[:, 7:], mask, documents, cache)
    np.testing.assert_array_equal(short.logits, long.logits)


def test_the_size_is_constant(call, model):
    """Shapes and dtypes after any call are those of the empty cache."""
    empty = model.init_cache(2)
    describe = lambda cache: jax.tree.map(lambda x: (x.shape, x.dtype), cache)  # noqa: E731
    for n in (1, 7):
        zeros = np.zeros((2, n), np.int32)
        out = call(zeros, zeros + 1, zeros, empty)
        assert describe(out.cache) == describe(empty)
    assert empty.memory.recurrent.shape == (2, 5, 2, 2, 8, 12) and empty.memory.recurrent.dtype == jnp.float32
    assert {name: x.shape[2:] for name, x in empty.memory.conv.items()} == {
        "q": (2, 3, 16),
        "k": (2, 3, 16),
        "v": (2, 3, 24),
    }


def test_a_masked_step_changes_nothing(call, model):
    """A step under mask 0 leaves that row's memories as they were."""
    ids = np.random.default_rng(3).integers(0, 32, (2, 7)).astype(np.int32)
    documents = np.zeros((2, 7), np.int32)
    before = call(ids, np.ones((2, 7), np.int32), documents, model.init_cache(2)).cache
    after = call(ids[:, :1], np.array([[0], [1]], np.int32), documents[:, :1], before).cache
    row = lambda memory, i: jax.tree.map(lambda x: x[..., i] if x.ndim == 2 else x[:, :, i], memory)  # noqa: E731
    for old, new in zip(jax.tree.leaves(row(before.memory, 0)), jax.tree.leaves(row(after.memory, 0)), strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(after.memory.length - before.memory.length, [[0, 1], [0, 1]])
    assert np.abs(after.memory.recurrent[:, -1, 1] - before.memory.recurrent[:, -1, 1]).max() > 1e-3
