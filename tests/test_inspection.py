"""What `mom_jax.inspect` finds, against what is known: routing, fixed decays, and keys by hand."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.parameters import random_model

from mom_jax import MoMConfig, inspect
from mom_jax.data.tokenizers import load_tokenizer
from mom_jax.errors import InputError
from mom_jax.inspection import Inspection, LayerView, distance
from mom_jax.models.config import AttentionConfig
from mom_jax.reports.inspection import _tokens, inspection_page, inspection_table, token_texts

TEXT = "<b>to be</b> or\nnot to be: das ist hier die Frage, schön"
IDS = load_tokenizer("bytes").encode(TEXT)
SIZES = {"vocab_size": 264, "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 8, "intermediate_size": 16}


@pytest.fixture(scope="module")
def mixture():
    """A hybrid whose memories have no decay, so that nothing is ever forgotten, and what was found of it."""
    hybrid = {"num_hidden_layers": 3, "attn": AttentionConfig(layers=(1,), num_heads=2)}
    options = {"num_heads": 2, "memory_rule": "linear_attention", "num_memories": 3}
    model = random_model(MoMConfig(**SIZES | hybrid | options))
    return model, inspect(model, IDS)


def test_routing_is_that_of_the_model(mixture):
    model, found = mixture
    graph, params = nnx.split(model)
    router = jax.jit(lambda params: nnx.merge(graph, params)(IDS[None]).router)(params)
    assert [layer.number for layer in found.layers] == [0, 2], "the attention layer lies between them"
    for number, layer in enumerate(found.layers):
        np.testing.assert_array_equal(layer.memory_ids, router.memory_ids[number, 0])
        np.testing.assert_allclose(layer.weights, router.weights[number, 0], rtol=1e-5)
        np.testing.assert_allclose(layer.load * layer.memory_ids.size, router.load[number, 0], rtol=1e-6)
        np.testing.assert_allclose(layer.shares.sum(1), 1, rtol=1e-5)
        assert set(layer.assignments[:, -1]) == {3}, "the shared memory"


def test_without_decay_everything_is_kept(mixture):
    for layer in mixture[1].layers:
        np.testing.assert_allclose(layer.kept, 1, rtol=1e-4)
        assert np.isinf(layer.half_life).all()


def test_a_fixed_decay_is_found():
    """RetNet with one head: gamma = 1 - 2^-5, whatever is written."""
    found = inspect(random_model(MoMConfig(**SIZES, num_heads=1, memory_rule="retnet", mixture=False)), IDS)
    for layer in found.layers:
        want = (1 - 2.0**-5) ** layer.kept_after
        np.testing.assert_allclose(layer.kept, want[None], rtol=1e-4)
        np.testing.assert_allclose(layer.half_life, np.log(0.5) / np.log(1 - 2.0**-5), rtol=1e-4)


def test_nearest_keys_are_earlier_tokens_of_the_same_memory(mixture):
    for layer in mixture[1].layers:
        for t, slot in np.ndindex(layer.assignments.shape):
            near, cosines = layer.nearest[t, slot], layer.similarity[t, slot]
            memory = layer.assignments[t, slot]
            before = [s for s in range(t) if memory in layer.assignments[s]]
            assert set(near[near >= 0]) <= set(before) and (near >= 0).sum() == min(len(before), len(near))
            known = cosines[near >= 0]
            assert (np.abs(known) <= 1.001).all() and (np.diff(known) <= 0).all()


@pytest.mark.parametrize(
    "options",
    [{"router_per_head": True, "router_reads": "apart"}, {"router_choice": "hash", "router_balance": "none"}],
    ids=["routers of heads and of reads", "chosen by the token"],
)
def test_other_routers(options):
    """Every token has memories, none twice, and what is read of them adds up."""
    config = MoMConfig(**SIZES | {"num_hidden_layers": 1}, num_heads=2, memory_rule="linear_attention", **options)
    (layer,) = inspect(random_model(config), IDS).layers
    assert (layer.memory_ids[:, 0] >= 0).all() and layer.load.sum() == pytest.approx(1)
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in layer.memory_ids)
    np.testing.assert_allclose(layer.weights.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(layer.kept[~np.isnan(layer.kept)], 1, rtol=1e-2)  # of little content
    if "router_choice" in options:
        alike = [layer.memory_ids[token == IDS] for token in set(IDS.tolist())]
        assert all((np.sort(rows) == np.sort(rows[:1])).all() for rows in alike)


def test_rules_without_single_keys_say_so(mixture):
    """As those whose rows have several for each token."""
    layers = [dataclasses.replace(layer, nearest=np.full_like(layer.nearest, -1)) for layer in mixture[1].layers]
    page = inspection_page(Inspection(IDS, tuple(layers)), token_texts(load_tokenizer("bytes"), IDS), "title")
    assert page.count("no single key") == 2


def test_the_page(mixture):
    """It shows the text, as text; loads nothing; and sets another text beside it."""
    tokenizer, found = load_tokenizer("bytes"), mixture[1]
    texts = token_texts(tokenizer, IDS)
    assert "".join(texts) == TEXT and len(texts) == len(IDS)
    page = inspection_page(found, texts, "<title>", found)
    assert "&lt;title&gt;" in page and "<title>>" not in page and "<b>" not in page
    assert page.count('title="token ') == 2 * len(IDS) and re.search("https?://|src=|@import", page) is None
    assert "distance 0.00" in page and "prefers-color-scheme: dark" in page
    table = inspection_table(found, found)
    assert [row[0] for row in table.rows] == ["0", "2"] and table.rows[0][3] == "0.00"


@pytest.mark.parametrize("after,shown", [(0.86, "0.86"), (9.96, "10"), (99.7, "100"), (2345.6, "2346"), (np.inf, ">9")])
def test_half_lives_are_numbers_of_tokens(mixture, after, shown):
    """Without an exponent, whatever their size."""
    layer = dataclasses.replace(mixture[1].layers[0], kept_after=np.array([9]))
    assert _tokens(after, layer) == shown


def test_distance_of_routings():
    def view(ids):
        empty = np.zeros((4, 2))
        return LayerView(0, np.array(ids)[:, None], empty, empty, empty[0], empty, empty[..., None], empty[..., None])

    assert distance(view([0, 0, 1, 1]), view([1, 0, 1, 0])) == 0
    assert distance(view([0, 0, 0, 0]), view([1, 1, 1, 0])) == 0.75


@pytest.mark.parametrize(
    "ids,field", [([1], "input_ids.shape"), ([[1, 2]], "input_ids.shape"), ([1, 999], "input_ids")]
)
def test_mistakes(mixture, ids, field):
    with pytest.raises(InputError) as caught:
        inspect(mixture[0], jnp.array(ids))
    assert caught.value.field == field


def test_a_transformer_has_no_memories():
    model = random_model(MoMConfig(**SIZES, attn=AttentionConfig(layers=(0, 1), num_heads=2)))
    with pytest.raises(InputError, match="has no memories"):
        inspect(model, IDS)
