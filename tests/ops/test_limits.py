"""Where one recurrence is another one, and what it must not touch."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.packed import Layout
from support.primitives import HEADS, PRIMITIVES, SLOTS

from mom_jax.ops.beginnings import begin_with
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.log_linear import LogLinearRows, log_linear
from mom_jax.ops.mesa import MESA, MesaRows
from mom_jax.ops.scalar_decay import SCALAR_DECAY, ScalarDecayRows
from mom_jax.ops.sparse_choice import product_keys
from mom_jax.ops.sparse_delta import SparseDeltaRows, sparse_delta
from mom_jax.ops.vector_decay import VECTOR_DECAY, VectorDecayRows

LENGTHS, K, V = (21, 0, 7), 8, 12
LAYOUT = Layout(LENGTHS, 8)
TOKENS = sum(LENGTHS)


def drawn(*shape):
    """Random rows, packed."""
    return LAYOUT.pack(np.random.default_rng(sum(shape)).normal(size=(TOKENS, HEADS, *shape)).astype(np.float32))


def gates(*shape):
    """Log decays of tokens; padding has none."""
    return LAYOUT.pack(np.asarray(-np.logaddexp(0, np.random.default_rng(3).normal(size=(TOKENS, HEADS, *shape)))))


def values(primitive, rows, resets=(5, 21), **options):
    """Outputs of the tokens, from no state."""
    return jax.jit(lambda rows: primitive(rows, LAYOUT.table(resets), **options)[0])(rows)[LAYOUT.index]


def test_all_slots_are_the_gated_delta_rule():
    """A token that writes and reads every slot writes at a softmax of as many channels."""
    q, k = (jax.nn.softmax(drawn(SLOTS) * sign, -1) for sign in (1, -1))
    every = jnp.broadcast_to(jnp.arange(SLOTS), q.shape)
    g, beta = gates(), jax.nn.sigmoid(drawn()) * (LAYOUT.pack(np.ones(TOKENS))[:, None])
    rows = SparseDeltaRows(q, k, drawn(V), g, beta, every, every)
    want = values(DELTA_RULE, DeltaRuleRows(q, k, drawn(V), g, beta), scale=1.0)
    assert_close(values(sparse_delta(SLOTS), rows, scale=1.0), want, 1e-5)


@pytest.mark.parametrize("residual", ["aggregate", "local"])
def test_other_slots_stay_bit_for_bit(residual):
    """A chunk that names the first four of nine slots, over three segments of which one is empty."""
    writes = jnp.broadcast_to(jnp.arange(3), (LAYOUT.rows, HEADS, 3))
    weights = jax.nn.softmax(drawn(3), -1)
    ones = LAYOUT.pack(np.ones((TOKENS, HEADS), np.float32))
    rows = SparseDeltaRows(weights, weights, drawn(V), gates(), 0.5 * ones, writes + 1, writes)
    state = jnp.asarray(np.random.default_rng(1).normal(size=(len(LENGTHS), HEADS, 9, V)), jnp.float32)
    _, after = jax.jit(lambda state: sparse_delta(9, residual)(rows, LAYOUT.table(), state))(state)
    np.testing.assert_array_equal(after[:, :, 3:], state[:, :, 3:])
    np.testing.assert_array_equal(after[1], state[1])
    assert np.all(np.asarray(after[0, :, :3] != state[0, :, :3]))


@pytest.mark.parametrize("residual", ["aggregate", "local"])
def test_no_table_of_all_slots(residual):
    """Of arrays in the program of a pass and its gradient, one has all slots: whole numbers, one for each."""
    slots = jnp.broadcast_to(jnp.arange(3), (LAYOUT.rows, HEADS, 3))
    rows = SparseDeltaRows(drawn(3), drawn(3), drawn(V), gates(), gates(), slots, slots)
    loss = lambda v: sparse_delta(65536, residual)(rows._replace(v=v), LAYOUT.table((5,)))[0].sum()  # noqa: E731
    program = str(jax.make_jaxpr(jax.grad(loss))(rows.v))
    assert set(re.findall(r"(\w+\[[^\]]*\b65536\b[^\]]*\])", program)) == {f"i32[{HEADS},65536]"}


@pytest.mark.parametrize("half,count", [(4, 6), (4, 16), (32, 16)])
@pytest.mark.parametrize("step", [0.0, 0.5], ids=["apart", "ties"])
def test_product_keys_are_the_largest_sums(half, count, step):
    """Slots, in order, and weights of a softmax over the largest of all sums; among equals the first pair of halves."""
    logits = np.random.default_rng(0).normal(size=(5, 2, 2, half)).astype(np.float32)
    logits = np.round(logits / step) * step + 0.0 if step else logits
    slots, weights = product_keys(jnp.asarray(logits.reshape(5, 2, -1)), count)
    places = np.argsort(-logits, -1, kind="stable")
    first, second = np.moveaxis(np.take_along_axis(logits, places, -1), 2, 0)
    sums = (first[..., :, None] + second[..., None, :]).reshape(5, 2, -1)
    order = np.argsort(-sums, -1, kind="stable")[..., :count]
    i, j = (np.take_along_axis(places[:, :, n], at, -1) for n, at in enumerate((order // half, order % half)))
    np.testing.assert_array_equal(slots, i * half + j)
    chosen = np.exp(np.take_along_axis(sums, order, -1))
    assert_close(weights, chosen / chosen.sum(-1, keepdims=True), 1e-6)


@pytest.mark.parametrize("kind", ["none", "head", "channel"])
def test_levels_of_weight_one_are_no_levels(kind):
    """Scalar decay without and with gates, and vector decay."""
    q, k, v, valid = drawn(K), drawn(K + 1)[..., 1:], drawn(V), LAYOUT.pack(np.ones(TOKENS)) > 0
    g = {"none": None, "head": gates(), "channel": gates(K)}[kind]
    weights = jnp.ones((LAYOUT.rows, HEADS, 6))
    base = (
        (VECTOR_DECAY, VectorDecayRows(q, k, v, g))
        if kind == "channel"
        else (SCALAR_DECAY, ScalarDecayRows(q, k, v, g))
    )
    assert_close(values(log_linear(6), LogLinearRows(q, k, v, weights, valid, g)), values(*base), 1e-5)


def test_levels_by_their_definition():
    """One segment, a document inside: every pair of tokens weighed by its level."""
    q, k, v, g, valid = drawn(K), drawn(K + 1)[..., 1:], drawn(V), gates(), LAYOUT.pack(np.ones(TOKENS)) > 0
    weights = jax.nn.softplus(drawn(6))
    got = values(log_linear(6), LogLinearRows(q, k, v, weights, valid, g), resets=(5,))
    q, k, v, g, weights = (np.asarray(x, np.float64)[LAYOUT.index] for x in (q, k, v, g, weights))
    want = np.zeros_like(v)
    for begin, end in ((0, 5), (5, 21), (21, 28)):
        for t in range(begin, end):
            for i in range(begin, t + 1):
                level = ((t - begin) ^ (i - begin)).bit_length()
                weight = weights[t, :, level] * np.exp(g[i + 1 : t + 1].sum(0)) * (q[t] * k[i]).sum(-1) / K**0.5
                want[t] += weight[:, None] * v[i]
    assert_close(got, want, 1e-5)


def test_a_strong_regulariser_is_linear_attention():
    """Times L, reads of a memory that solves go to those of scalar decay as L grows."""
    unit = lambda x: x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-9)  # noqa: E731
    q, k, v, g = unit(drawn(K)), unit(drawn(K + 1)[..., 1:]), drawn(V), gates()
    beta = 0.5 * LAYOUT.pack(np.ones((TOKENS, HEADS), np.float32))
    want = values(SCALAR_DECAY, ScalarDecayRows(q, k, beta[..., None] * v, g), scale=1.0)
    errors = []
    for ridge in (1e2, 1e4):
        rows = MesaRows(q, k, v, g, beta, jnp.full((HEADS, K), ridge))
        errors.append(float(jnp.abs(ridge * values(MESA, rows, scale=1.0) - want).max() / jnp.abs(want).max()))
    assert errors[1] < 1e-3 < errors[0] < 0.1


@pytest.mark.parametrize("name", [name for name, case in PRIMITIVES.items() if case.primitive.skips])
def test_a_row_that_writes_nothing(name):
    """Scaled by 0 it leaves the state as it is, bit for bit, by head too; by 1 it does what it did."""
    case = PRIMITIVES[name]
    example = case.example(tokens=3, segments=3)
    rows, state = case.packed(example["rows"], example["shared"]), jax.tree.map(jnp.asarray, example["state"])
    step = lambda by: case.primitive.step(case.primitive.scaled(rows, jnp.asarray(by)), state, 1.0)  # noqa: E731
    _, skipped = step(np.zeros(3, np.float32))
    _, second = step(np.array([[0, 1]] * 3, np.float32))
    o, whole = step(np.ones(3, np.float32))
    want, plain = case.primitive.step(rows, state, 1.0)
    states = map(jax.tree.leaves, (skipped, second, state, whole, plain))
    for one, by_head, old, scaled, new in zip(*states, strict=True):
        np.testing.assert_array_equal(one, old)
        np.testing.assert_array_equal(by_head[:, 0], old[:, 0])
        np.testing.assert_array_equal(by_head[:, 1], new[:, 1])
        np.testing.assert_array_equal(scaled, new)
    np.testing.assert_array_equal(o, want)


@pytest.mark.parametrize("name", [name for name, case in PRIMITIVES.items() if case.primitive.beside])
def test_documents_begin_with_a_state(name):
    """Three documents in one segment read, and leave, what they do as segments that are given the state."""
    case, (together, apart) = PRIMITIVES[name], (Layout((11,), 8), Layout((4, 5, 2), 8))
    example = case.example(tokens=11, segments=1)
    state = jnp.asarray(example["state"])

    @jax.jit
    def run(rows):
        packed = case.packed(jax.tree.map(together.pack, rows), example["shared"])
        table = together.table((0, 4, 9))
        begun = begin_with(case.primitive, packed, table, state, goes_on=False)
        o, final = case.primitive(begun.rows, table, jnp.zeros_like(state), scale=0.5, impl="reference")
        packed = case.packed(jax.tree.map(apart.pack, rows), example["shared"])
        want, states = case.primitive(packed, apart.table(), jnp.repeat(state, 3, 0), scale=0.5, impl="reference")
        got = (o + 0.5 * begun.reads)[together.index], (final + begun.left)[0]
        return got, (want[apart.index], states[-1])

    assert_close(*run(example["rows"]), 1e-5)
