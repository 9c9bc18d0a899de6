"""Memories that no router chooses, and what routers do in training alone."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.calls import compiled, in_pieces
from support.compare import assert_close
from support.parameters import random_model

from mom_jax.errors import InputError
from mom_jax.layers.router import RouterTraining
from mom_jax.models.baselines import single
from mom_jax.ops.documents import count_documents, places_in_documents
from mom_jax.ops.fixed_routing import fixed_choice, hashed

TIME, MEMORIES = 9, 4


def chosen_by(small, choice, **options):
    """The model with another choice of memories."""
    return random_model(dataclasses.replace(small, router_choice=choice, router_balance="none", **options))


def random_rows(seed):
    """A mask with holes and document numbers that come back."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 2, (2, TIME)), np.sort(rng.integers(0, 4, (2, TIME)), -1) % 2


@pytest.mark.parametrize("seed", range(4))
def test_places_in_documents(seed):
    """Against a count along the row, in one call and in two, the second of which goes on with a document."""
    mask, numbers = random_rows(seed)
    want, read = np.zeros((2, TIME), int), np.zeros((2, 2), int)
    for b in range(2):
        document, count = None, 0
        for t in range(TIME):
            if mask[b, t]:
                document, count = numbers[b, t], count + 1 if numbers[b, t] == document else 1
            want[b, t] = count - 1
            if t in (3, TIME - 1):
                read[b, int(t > 3)] = count
    before, last, got = jnp.zeros(2, int), None, []
    for cut in (slice(0, 4), slice(4, TIME)):
        documents = count_documents(jnp.asarray(numbers[:, cut]), jnp.asarray(mask[:, cut]), last)
        got.append(places_in_documents(mask[:, cut].shape, documents, jnp.asarray(mask[:, cut]), before))
        before, last = got[-1][:, -1] + 1, documents.number
    real = mask.astype(bool)
    np.testing.assert_array_equal(np.concatenate(got, 1)[real], want[real])
    np.testing.assert_array_equal(before, read[:, 1])


def test_hashes_spread():
    """All memories get a fair share of the first few thousand tokens, and neighbours differ."""
    ids = fixed_choice(hashed(jnp.arange(8192)[None]), 2, MEMORIES)
    assert ids.shape == (1, 8192, 2) and (np.asarray(ids[..., 0]) != np.asarray(ids[..., 1])).all()
    np.testing.assert_allclose(np.bincount(np.asarray(ids[..., 0]).ravel()) / 8192, 1 / MEMORIES, atol=0.02)


def test_by_place(small):
    """Round robin in documents, in one pass and token by token; weights are the router's."""
    model = chosen_by(small, "round_robin", num_hidden_layers=1)
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, TIME)))
    numbers = jnp.asarray([[0] * 4 + [1] * 5, [0] * 2 + [1] * 3 + [0] * 4])
    call, every = compiled(model), jnp.ones_like(ids)
    whole = call(ids, every, numbers)
    place = np.array([[0, 1, 2, 3, 0, 1, 2, 3, 4], [0, 1, 0, 1, 2, 0, 1, 2, 3]])
    np.testing.assert_array_equal(whole.router.memory_ids[0], (place[..., None] + np.arange(2)) % MEMORIES)
    shares = np.take_along_axis(np.asarray(whole.router.logits[0]), np.asarray(whole.router.memory_ids[0]), -1)
    shares = np.exp(shares)
    assert_close(whole.router.weights[0], shares / shares.sum(-1, keepdims=True), 1e-5)
    steps, _ = in_pieces(call, model.init_cache(2), [1] * TIME, ids, every, numbers)
    assert_close(steps, whole.logits, 2e-5)


@pytest.mark.parametrize(
    "choice,want", [("position", np.arange(TIME) // 3), ("one", np.zeros(TIME)), ("hash", None)], ids=str
)
def test_other_choices(small, choice, want):
    """Blocks of positions, always the first memories, a hash of the token."""
    model = chosen_by(small, choice, **({"router_block": 3} if choice == "position" else {}))
    ids = jnp.asarray(np.random.default_rng(0).integers(0, 32, (1, TIME)))
    want = np.asarray(hashed(ids))[0] if want is None else want
    routing = jax.eval_shape(lambda: model.hidden_states(ids))  # traces all of it
    assert routing.router.memory_ids.shape == (2, 1, TIME, 2)
    chosen, _ = model.chosen_elsewhere(ids, (1, TIME), None, None, None)
    np.testing.assert_array_equal(chosen[0], (want[:, None] + np.arange(2)) % MEMORIES)
    if choice == "hash":
        with pytest.raises(InputError, match=r"input_ids=None: is what router_choice=hash chooses by"):
            model.hidden_states(inputs_embeds=jnp.zeros((1, TIME, 16)))


def test_a_single_memory_is_asked_for_nothing_of_mixtures(small):
    """Baselines of a mixture leave out its router's options, as the configuration asks."""
    mixture = dataclasses.replace(small, router_scores="sigmoid", router_noise=0.5, router_noise_steps=3)
    assert single(mixture) == dataclasses.replace(small, mixture=False)


def test_expert_choice_does_not_decode(small):
    """Neither with a cache in training's way; without it the same model decodes, by the tokens' own choice."""
    model = random_model(dataclasses.replace(small, router_balance="expert_choice"))
    with pytest.raises(InputError, match=r"training=given with a cache: .* looks ahead"):
        training = RouterTraining(jax.random.key(0))
        model.hidden_states(jnp.zeros((1, 3), int), cache=model.init_cache(1), training=training)
