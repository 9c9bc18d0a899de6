"""Models trained on text: once for all experiments, scored at several lengths, looked into."""

import dataclasses
import functools
import math
import random
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from mom_jax.experiments.common import history, text
from mom_jax.experiments.studies import extrapolation, specialisation

from mom_jax import runs
from mom_jax.data.prepare import prepared
from mom_jax.errors import InputError


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A recipe of two steps of one layer on a text of words."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for number in range(12):
        words = rng.choices(["key", "value", "memory"], k=400)
        (folder / f"{number:02}.txt").write_text(" ".join(words) + "\n", encoding="utf-8")
    smaller = functools.partial(dataclasses.replace, num_hidden_layers=1, hidden_size=16, use_short_conv=False)
    config = text.recipe("tiny", "linear_attention", smaller, 0)
    data = dataclasses.replace(
        config.data, path=str(folder), cache_dir=str(folder / "cache"), held_out_fraction=0.3, sequence_length=32
    )
    return dataclasses.replace(config, data=data, steps=2)


@pytest.fixture(scope="module")
def run_dir(small, tmp_path_factory):
    """That model, trained."""
    return text.trained(small, tmp_path_factory.mktemp("models"))


def test_nothing_is_trained_twice(small, run_dir, monkeypatch):
    """The same recipe finds its model; another seed is another model."""
    monkeypatch.setattr(runs, "train_and_report", None)
    models = Path(run_dir).parent
    assert text.trained(small, models) == run_dir
    with pytest.raises(TypeError):
        text.trained(dataclasses.replace(small, seed=1), models)


def test_scores_and_costs(run_dir):
    """At the length that is asked for, of untrained-like models near 8 bits."""
    scores = text.held_out_scores(run_dir, "tiny", 64)
    assert scores["sequence_length"] == 64 and 3 < scores["bits_per_byte"] < 10
    assert scores["parameters"] > scores["activated"] > 0 and scores["state"] > 0


def test_history(run_dir, monkeypatch):
    """The last bytes of a passage are scored as in one window, whatever the pieces; the ends of all are the same."""
    passages = history.passages
    monkeypatch.setattr(history, "passages", lambda text, length: passages(text, length)[:4])
    bits = history.history_bits(run_dir, (32, 64), 16)
    with runs.opened_run(run_dir, runs.one_device()) as (config, model, _):
        rows = history.passages(prepared(config.data).held_out, 65)
        at_once = nnx.jit(lambda model, rows: model.token_nats(model.hidden_states(rows[:, :-1]).hidden, rows[:, 1:]))
        for length, found in zip((32, 64), bits, strict=True):
            nats = at_once(model, rows[:, -length - 1 :])[:, -16:]
            assert found == pytest.approx(float(nats.mean()) / math.log(2), rel=1e-5)
    assert bits[0] != bits[1]


def test_passages():
    """From the beginning of each document, side by side; what is left over or too short is not among them."""

    class Text:
        def __len__(self):
            return 12

        def read(self, start, stop):
            return np.arange(12), np.isin(np.arange(12), (0, 7, 9))

    np.testing.assert_array_equal(history.passages(Text(), 3), [[0, 1, 2], [3, 4, 5]])


def test_what_routers_see(run_dir):
    """The memory that is chosen first is the likeliest by the router's weight on the state that is reported."""
    ids, states, chosen, names = specialisation.routed(run_dir)
    with runs.opened_run(run_dir, runs.one_device()) as (_, model, _):
        router = np.asarray(model.blocks("memory").attn.router.weight[...])
    assert len(ids) == len(states[0]) == len(chosen[0]) and set(names) == set(ids.tolist())
    np.testing.assert_array_equal(chosen[0], (states[0] @ router[0]).argmax(-1))


def test_characteristic_tokens():
    """Shares there over shares in all; rare tokens are left out."""
    ids = np.repeat([1, 2, 3], [40, 40, 5])
    first, second = specialisation.characteristic(ids, np.where(ids == 1, 0, 1), {1: "a", 2: "b", 3: "c"})
    assert first == {"share": pytest.approx(40 / 85), "lift": [["a", 2.12]]}
    assert [token for token, _ in second["lift"]] == ["b"]


def test_specialisation_needs_umap(monkeypatch, tmp_path):
    """One line with the remedy, before anything is trained."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs umap-learn: .*\[experiments\]"):
        specialisation.run(specialisation.points("tiny")[0], tmp_path)


def test_tables_and_plots(tmp_path):
    """Of made-up records; every seed is there."""
    rng = np.random.default_rng(0)
    points = extrapolation.points("tiny")
    records = [{"point": p, "result": {"bits_per_byte": list(rng.random(len(p["lengths"])))}} for p in points]
    heading, *rows = extrapolation.table(records)
    assert len(rows) == len(extrapolation.COMPARED) and all(len(row) == len(heading) for row in rows)
    assert len(extrapolation.contrasts(records)) == 2 * (len(extrapolation.COMPARED) - 1)
    layer = {"places": rng.random((9, 2)).tolist(), "memory": [0, 1, 2] * 3, "neighbours": 0.5, "chance": 0.3}
    layer["tokens"] = [{"share": 1 / 3, "lift": [["\n", 2.0]]}] * 3
    looked = [{"point": p, "result": {"layers": [layer] * 2}} for p in specialisation.points("tiny")]
    heading, *rows = specialisation.table(looked)
    assert len(rows) == 2 * 2 * 3 and all(len(row) == len(heading) for row in rows)
    for path in (*extrapolation.EXPERIMENT.draw(records, tmp_path), *specialisation.EXPERIMENT.draw(looked, tmp_path)):
        assert path.stat().st_size > 5_000
