"""Generation against length: what grows and what does not, and points that do not fit."""

import json

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from mom_jax.experiments.studies import generation

from mom_jax.models.accounting import account, total
from mom_jax.models.baselines import transformer
from mom_jax.models.config import MoMConfig
from mom_jax.models.structure import build_model

SMALL = MoMConfig(vocab_size=16, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=4, intermediate_size=0,
                  memory_rule="retnet", use_short_conv=False)  # fmt: skip


@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_points_are_distinct(scale):
    points = [json.dumps(point) for point in generation.points(scale)]
    assert len(set(points)) == len(points) == len(generation.ARCHITECTURES) * len(generation.LENGTHS[scale])
    assert any(json.loads(point)["length"] == 512 * 1024 for point in points)


@pytest.mark.parametrize("name", ["mom", "attention"])
def test_one_measurement(monkeypatch, tmp_path, name):
    """The cache is as large as the model's account says; the time of many tokens follows from that of one."""
    monkeypatch.setattr(generation, "get_preset", lambda name: SMALL)
    monkeypatch.setattr(generation, "_SECONDS", 0)
    point = {**generation.points("tiny")[0], "architecture": name, "length": 64, "steps": 2}
    result = generation.run(point, tmp_path)
    json.dumps(result)
    assert result["cache_bytes"] == total(account(generation.architecture(point), 64)).state_bytes
    assert result["total_bytes"] > result["cache_bytes"] and result["seconds_per_token"] > 0
    assert result["seconds_of_1024_computed"] == pytest.approx(1024 * result["seconds_per_token"])


def test_what_grows_with_the_length():
    """A token's share of the cache is its keys and values and its position; memories have none."""
    for point in generation.points("tiny")[:3]:
        config = generation.architecture(point)
        short, long = (total(account(config, length)).state_bytes for length in (64, 192))
        of_token = 2 * config.hidden_size * 4 + 4 if point["architecture"] == "attention" else 0
        assert long - short == 128 * of_token * config.num_hidden_layers


def test_the_context_is_full_at_the_end():
    """The last step attends over the whole of it: every slot has its position, and the last ones new keys."""
    config = transformer(SMALL)
    model = nnx.eval_shape(lambda: build_model(config, 0))
    params = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), nnx.state(model))
    decode = generation.compiled_steps(config, 8, 3)
    once = decode(params, model.init_cache(1, 8), 5)
    cache = decode(params, once, 5).attention
    assert cache.position.tolist() == [[list(range(8))]] and cache.length.tolist() == [[8]]
    assert (cache.keys[0, 0] != 0).any((-1, -2)).tolist() == [False] * 5 + [True] * 3


def test_only_want_of_memory_is_a_result(monkeypatch, tmp_path):
    def fail(message):
        def measure(*_):
            raise jax.errors.JaxRuntimeError(message)

        monkeypatch.setattr(generation, "measure", measure)
        return generation.run(generation.points("paper")[0], tmp_path)

    assert fail("RESOURCE_EXHAUSTED: Out of memory while trying to allocate") == {"out_of_memory": True}
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        fail("INTERNAL: something else")


def test_table_and_plot(tmp_path):
    records = []
    for point in reversed(generation.points("tiny")):
        grows = point["length"] if point["architecture"] == "attention" else 1024
        result = {"seconds_per_token": 1e-6 * grows, "seconds_of_1024_computed": 1e-3 * grows}
        result |= {"cache_bytes": 1024 * grows, "total_bytes": 2048 * grows}
        fits = grows < 256 * 1024
        records.append({"point": point, "result": result if fits else {"out_of_memory": True}})
    heading, *rows = generation.table(records)
    assert len(rows) == 21 and all(len(row) == len(heading) for row in rows)
    assert rows[0][0] == "1K" and [row[:3] for row in rows if row[2] == "out of memory"] == [
        ["256K", "Transformer++", "out of memory"],
        ["512K", "Transformer++", "out of memory"],
    ]
    (picture,) = generation.EXPERIMENT.draw(records, tmp_path)
    assert picture.stat().st_size > 10_000
