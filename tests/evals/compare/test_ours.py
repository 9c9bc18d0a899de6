"""Our side of a comparison hands in the model's own numbers, under the published names."""

import functools

import numpy as np
import pytest
from flax import nnx
from goldens.read import load, model_of, under
from support.compare import assert_close

from mom_jax.evals.compare import ours as module
from mom_jax.evals.compare.ours import Ours, by_name, published
from mom_jax.evals.compare.records import Record

ONE_LAYER = "d_top1of3"


@functools.cache
def subject(name: str = "j_hybrid_patched") -> tuple[Record, Ours]:
    """A stored case, by default of two layers, the second of them attention, and our side of it."""
    stored = load(name)
    return stored, Ours(model_of(stored))


def test_forward_is_block_by_block():
    stored, ours = subject()
    record = ours.forward(stored["in/input_ids"])
    shape = (*stored["in/input_ids"].shape, -1)
    want = {"hidden/0": stored["out/hidden_states/1"], "router/0": stored["out/router_logits/0"].reshape(shape)}
    assert set(record) == {"embedded", "hidden/0", "hidden/1", "router/0", "choices/0", "logits"}
    best = np.sort(record["router/0"])[..., [-2]]
    assert np.array_equal(record["choices/0"], record["router/0"] >= best)
    assert_close({name: record[name] for name in (*want, "logits")}, {**want, "logits": stored["out/logits"]}, 1e-5)


def test_a_block_alone_is_the_block_of_the_model():
    stored, ours = subject()
    record = ours.forward(stored["in/input_ids"])
    for layer, before in ((0, "embedded"), (1, "hidden/0")):
        alone = ours.block(layer, record[before])
        assert_close(alone["hidden"], record[f"hidden/{layer}"], 1e-6)
    assert set(ours.block(1, record["hidden/0"])) == {"hidden"}  # attention
    found = ours.block(1, record["hidden/0"], np.ones_like(record["hidden/0"]))
    names = {name for name in under(stored, "grad") if name.startswith("model.layers.1.")}
    assert set(found) == {f"gradient/{name.removeprefix('model.layers.1.')}" for name in names} | {"gradient/x"}
    # A step of the input against the gradient's inner product with it.
    step = 1e-2 * np.sign(found["gradient/x"])
    change = (ours.block(1, record["hidden/0"] + step)["hidden"] - record["hidden/1"]).sum()
    assert change == pytest.approx((found["gradient/x"] * step).sum(), rel=0.05)


def test_parameters_have_published_names_and_shapes():
    stored, ours = subject()
    found, want = published(ours.config, by_name(nnx.state(ours.model))), under(stored, "sd")
    assert set(found) == set(want) and all(np.array_equal(found[name], want[name]) for name in want)


def test_losses_and_gradients_are_those_of_training():
    stored, ours = subject(ONE_LAYER)
    record = ours.loss_and_gradients(stored["in/input_ids"])
    want = {f"gradient/{name}": values for name, values in under(stored, "grad").items()}
    want |= {"loss/lm": stored["out/lm_loss"], "loss/aux": stored["out/aux_loss"], "loss/total": stored["out/loss"]}
    assert_close(record, want, 1e-3)


def test_decoding_agrees_with_the_forward_pass():
    stored, ours = subject(ONE_LAYER)
    record = ours.decode(stored["in/input_ids"][:, :20], 16)
    assert record["decode/prefill"].shape[1] == 16 and record["decode/steps"].shape[1] == 4
    assert_close(np.concatenate(list(record.values()), 1), stored["out/logits"][:, :20], 1e-5)


def test_a_continuation_is_what_generate_adds(monkeypatch):
    _, ours = subject(ONE_LAYER)
    added = np.array([[5, 6], [7, 8]])
    monkeypatch.setattr(module, "generate", lambda model, ids, new: np.concatenate([ids, added[:, :new]], 1))
    assert ours.continue_greedily(np.zeros((2, 3), int), 2).tolist() == added.tolist()


def test_rounded_parameters_and_bfloat16():
    stored, exact = subject(ONE_LAYER)
    ours = Ours(model_of(stored), "bfloat16", rounded=True)
    for name, values in by_name(ours.params).items():
        assert values.dtype == np.float32
        assert np.array_equal(values, by_name(exact.params)[name].astype("bfloat16").astype("float32")), name
    error = np.abs(ours.forward(stored["in/input_ids"])["logits"] - stored["out/logits"])
    assert 1e-4 < np.median(error) / np.abs(stored["out/logits"]).max() < 0.02
