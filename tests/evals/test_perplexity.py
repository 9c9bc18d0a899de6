"""Held-out scores against a plain computation from all logits."""

import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mom_jax.evals.perplexity import HeldOut, evaluate, position_buckets
from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM

CONFIG = MoMConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_heads=2, head_dim=16, intermediate_size=64,
                   memory_rule="linear_attention", use_short_conv=False)  # fmt: skip
LENGTH = 40


@pytest.fixture(scope="module")
def model() -> MoMForCausalLM:
    return MoMForCausalLM(CONFIG, rngs=nnx.Rngs(0))


def batches() -> Iterator[dict[str, jax.Array]]:
    """Two batches of two rows: full, two documents, ragged, and all padding."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, 50, (4, LENGTH), dtype=np.int32)
    labels = rng.integers(0, 50, (4, LENGTH), dtype=np.int32)
    segments = np.ones((4, LENGTH), np.int32)
    segments[1, 20:] = 2
    labels[1, 19] = -100
    ids[2, 21:], labels[2, 21:], segments[2, 21:] = 0, -100, 0
    ids[3], labels[3], segments[3] = 0, -100, 0
    for rows in (slice(0, 2), slice(2, 4)):
        yield {
            "input_ids": jnp.asarray(ids[rows]),
            "labels": jnp.asarray(labels[rows]),
            "segment_ids": jnp.asarray(segments[rows]),
        }


@pytest.fixture(scope="module")
def scores(model):
    return evaluate(model, batches(), bytes_per_token=2.0)


@pytest.fixture(scope="module")
def expected(model):
    """Nats [4, T] by log-softmax over all logits, whether each label counts, and router logits [L, 4, T, M]."""
    nats, counts, routers, real = [], [], [], []
    run = jax.jit(lambda ids, mask, documents: model(ids, attention_mask=mask, segment_ids=documents))
    for batch in batches():
        mask = batch["segment_ids"] > 0
        out = run(batch["input_ids"], mask.astype(jnp.int32), batch["segment_ids"])
        log_p = jax.nn.log_softmax(out.logits)
        labels = batch["labels"]
        nats.append(-np.take_along_axis(np.asarray(log_p), np.maximum(labels, 0)[..., None], -1)[..., 0])
        counts.append(np.asarray(labels != -100))
        routers.append(np.stack(out.router_logits))
        real.append(np.asarray(mask))
    return np.concatenate(nats), np.concatenate(counts), np.concatenate(routers, 1), np.concatenate(real)


def test_loss_perplexity_and_bits_count_every_label_once(scores, expected):
    nats, counts, _, _ = expected
    loss = nats[counts].mean()
    assert scores["tokens"] == counts.sum() == 40 + 39 + 21
    assert scores["loss"] == pytest.approx(loss, rel=1e-5)
    assert scores["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert scores["bits_per_byte"] == pytest.approx(loss / math.log(2) / 2.0, rel=1e-5)


def test_buckets_partition_the_labels(scores, expected):
    nats, counts, _, _ = expected
    assert [(b["start"], b["stop"]) for b in scores["by_position"]] == [(0, 16), (16, 32), (32, 40)]
    for bucket in scores["by_position"]:
        part = slice(bucket["start"], bucket["stop"])
        assert bucket["tokens"] == counts[:, part].sum()
        assert bucket["loss"] == pytest.approx(nats[:, part][counts[:, part]].mean(), rel=1e-5)


def test_loads_leave_padding_out(scores, expected):
    _, _, routers, real = expected
    for layer in range(CONFIG.num_hidden_layers):
        logits = routers[layer][real]
        chosen = np.argsort(-logits, axis=-1)[:, : CONFIG.topk]
        load = np.bincount(chosen.reshape(-1), minlength=CONFIG.num_memories) / chosen.size
        np.testing.assert_allclose(scores["load"][layer], load, atol=1e-6)
        p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
        assert scores["routing_entropy"][layer] == pytest.approx(-(p * np.log(p)).sum(-1).mean(), rel=1e-4)


def test_held_out_loss_is_the_same_number(model, scores):
    assert HeldOut()(model, batches()) == {"held_out_loss": scores["loss"]}


def test_churn_is_the_share_of_tokens_with_another_set(model, expected):
    """Against sorted choices token by token; nothing the first time, 0 for the same model."""
    graph, params = nnx.split(model)
    values = nnx.to_pure_dict(params)
    values["layers"]["attn"]["router"]["weight"] *= -1.0
    other = jax.tree.map(lambda leaf: leaf, params)
    nnx.replace_by_pure_dict(other, values)
    other = nnx.merge(graph, other)
    held_out = HeldOut()
    assert "routing_churn" not in held_out(model, batches())
    assert held_out(model, batches())["routing_churn"] == [0.0, 0.0]
    churn = held_out(other, batches())["routing_churn"]
    _, _, routers, real = expected
    moved = []
    for batch in batches():
        mask = (batch["segment_ids"] > 0).astype(jnp.int32)
        moved.append(np.stack(other(batch["input_ids"], mask, batch["segment_ids"]).router_logits))
    before, after = (
        np.sort(np.argsort(-logits, axis=-1)[..., : CONFIG.topk]) for logits in (routers, np.concatenate(moved, 1))
    )
    assert churn == pytest.approx((before != after).any(-1)[:, real].mean(-1), abs=1e-6)
    assert min(churn) > 0


def test_nothing_to_score_is_an_error(model):
    with pytest.raises(ValueError, match="no label"):
        evaluate(model, [], 1.0)


@pytest.mark.parametrize(("length", "last"), [(1, (0, 1)), (16, (0, 16)), (17, (16, 17)), (2048, (1024, 2048))])
def test_position_buckets_cover_the_window(length, last):
    buckets = position_buckets(length)
    assert buckets[-1] == last and buckets[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(buckets))
