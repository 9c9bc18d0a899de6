"""The model against the numbers of the PyTorch reference, with its own parameters.

Logits, router logits and losses within 1e-5 of the largest value of their tensor; parameter
gradients within 1e-3 (they are stored rounded to 2^-14).
"""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens.read import load, model_of, model_parameters, parameters_by_name, under
from support.calls import compiled, in_pieces
from support.compare import assert_close

from mom_jax.labels import IGNORE
from mom_jax.ops.loss import chunked_cross_entropy, token_cross_entropy
from mom_jax.ops.routing import load_balancing_loss

FORWARD, GRADIENT = 1e-5, 1e-3
SAME_PARAMETERS = {"k_T64_fused": "k_T150_chunk"}
# Sizes, and parts that are left out, have their gradients tested by layer (`tests/layers/test_mom.py`).
WITHOUT_GRADIENTS = ("b_noshared", "d_top1of3", "e_expand_v2", "i_nogate", "k_T64_fused")
WITH_GRADIENTS = ("a_default", "c_single_kv", "f_tied", "g_leftpad", "j_hybrid_patched", "k_T150_chunk", "m_tiny")


@functools.cache
def evaluated(name: str, leak: bool = False):
    """Loss, its parts, and gradients of a stored case: (stored, config, outputs, gradients, None for some)."""
    stored = load(name)
    model = model_of(stored, load(SAME_PARAMETERS.get(name, name)), reference_conv_leak=leak)
    graph, params = nnx.split(model)
    mask, labels = stored.get("in/attention_mask"), stored["in/labels"]
    labels = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)

    @jax.jit
    def run(params, ids, mask, labels):
        def loss(params):
            model = nnx.merge(graph, params)
            hidden, router, _ = model.hidden_states(ids, mask)
            router_logits = tuple(router.logits)
            total, count = chunked_cross_entropy(hidden, model.output_embedding(), labels)
            aux = load_balancing_loss(router_logits, model.config.topk, mask)
            lm = total / count
            logits = jnp.einsum("btd,vd->btv", hidden, model.output_embedding())
            full = lm + model.config.aux_loss_scale * aux
            return full, {
                "loss": full,
                "lm_loss": lm,
                "aux_loss": aux,
                "logits": logits,
                "router_logits": router_logits,
            }

        return (None, loss(params)[1]) if name in WITHOUT_GRADIENTS else jax.grad(loss, has_aux=True)(params)

    gradients, outputs = jax.device_get(run(params, stored["in/input_ids"], mask, labels))
    return stored, model.config, outputs, None if gradients is None else parameters_by_name(gradients)


@pytest.mark.parametrize("name", WITH_GRADIENTS + WITHOUT_GRADIENTS)
def test_outputs(name):
    """Logits and router logits of all real tokens, and the three losses."""
    stored, config, outputs, _ = evaluated(name)
    ids = stored["in/input_ids"]
    keep = stored.get("in/attention_mask", np.ones_like(ids)) != 0
    got, want = {"logits": outputs["logits"][keep]}, {"logits": stored["out/logits"][keep]}
    for i, logits in enumerate(outputs["router_logits"]):
        got[f"router_{i}"] = logits[keep]
        want[f"router_{i}"] = stored[f"out/router_logits/{i}"].reshape(logits.shape)[keep]
    assert len(outputs["router_logits"]) == config.layer_kinds.count("memory")
    for loss in ("loss", "lm_loss", "aux_loss"):
        got[loss], want[loss] = outputs[loss], stored[f"out/{loss}"]
    assert_close(got, want, FORWARD)


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_gradients(name):
    """The gradient of every parameter.

    Memories that see only one-token segments have a gradient of exactly 0 for their decay
    projection; the reference stores its noise there, hence the absolute tolerance.
    """
    stored, config, _, gradients = evaluated(name)
    want = model_parameters(config, under(stored, "grad"))
    assert set(gradients) == set(want)
    assert_close(gradients, want, GRADIENT, atol=1e-8)


def test_training_mode_does_not_leak():
    """The reference's training mode mixes memories in its convolution; ours by default does not."""
    _, _, outputs, _ = evaluated("a_default")
    leaky = load("a_default_train")
    assert abs(float(outputs["loss"]) - float(leaky["out/loss"])) > 0.01
    assert np.abs(outputs["logits"][0] - leaky["out/logits_row0"]).max() > 1


@pytest.mark.filterwarnings("ignore:reference_conv_leak")
def test_training_mode_with_the_leak():
    """With `reference_conv_leak` it does, and gives the reference's training numbers."""
    _, _, outputs, gradients = evaluated("a_default", leak=True)
    leaky = load("a_default_train")
    assert_close((outputs["logits"][0], outputs["loss"]), (leaky["out/logits_row0"], leaky["out/loss"]), FORWARD)
    clean = evaluated("a_default")[3]
    change = {
        name: float(np.linalg.norm(gradients[name] - clean[name]) / np.linalg.norm(clean[name])) for name in clean
    }
    stated = json.loads(str(leaky["meta"]))["grad_rel_l2_train_vs_eval"]
    assert change["layers.attn.rule.A_log"] > 1 and 0.2 < np.median(list(change.values())) < 2 * stated["median"]


def test_documents():
    """Documents packed into one row give the logits and the loss of the reference's variable-length input."""
    stored = load("l_cu_seqlens")
    model, ids = model_of(stored), stored["in/input_ids"]
    documents = np.searchsorted(stored["in/cu_seqlens"], np.arange(ids.shape[1]), side="right")[None]
    labels = np.pad(stored["in/labels"][:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    logits = jax.jit(lambda ids, documents: model(ids, segment_ids=documents).logits)(ids, documents)
    loss = token_cross_entropy(logits, jnp.asarray(labels)).sum() / (labels != IGNORE).sum()
    assert_close((logits, loss), (stored["out/logits"], stored["out/lm_loss"]), FORWARD)


def reference_states(stored, prefix, config):
    """Recurrent [G, B, H, K, V] and convolution [G, B, W-1, channels] states of one layer."""
    memories, batch = config.num_memories, stored["in/input_ids"].shape[0]

    def both(name):
        routed, shared = stored[f"{prefix}/{name}/routed"], stored[f"{prefix}/{name}/shared"]
        return np.concatenate([routed.reshape(memories, batch, *routed.shape[1:]), shared[None]])

    conv = {name: both(f"conv_{name}")[..., 1:].swapaxes(-1, -2) for name in "qkv"}
    return both("recurrent").swapaxes(-1, -2), conv


def our_states(cache, layer):
    """The same of our cache."""
    return cache.memory.recurrent[layer], {name: state[layer] for name, state in cache.memory.conv.items()}


@pytest.fixture(scope="module")
def cached():
    """The stored cache case, its model, and a compiled call."""
    stored = load("h_cache")
    model = model_of(stored)
    return stored, model, compiled(model)


def test_the_state_after_a_prefill(cached):
    """Of the first layer; logits, and all states at the end: below."""
    stored, model, call = cached
    out = call(stored["in/input_ids"][:, :20], cache=model.init_cache(2))
    want = reference_states(stored, "state_prefill/layer0", model.config)
    assert_close(our_states(out.cache, 0), want, FORWARD)


@pytest.mark.parametrize("sizes", [(20, *[1] * 8), (1, 1, 1, 7, 7, 7, 1, 1, 1, 1), (7, 7, 7, 7), (1, 20, 7)], ids=str)
def test_prefill_and_steps(cached, sizes):
    """A prefill and eight steps, and pieces of any size, end in the reference's logits and states."""
    stored, model, call = cached
    logits, cache = in_pieces(call, model.init_cache(2), sizes, stored["in/input_ids"])
    assert_close(logits[:, :20], stored["out/prefill_logits"], FORWARD)
    assert_close(logits[:, 20:], stored["out/step_logits"], FORWARD)
    for layer in range(model.config.num_hidden_layers):
        want = reference_states(stored, f"state_final/layer{layer}", model.config)
        assert_close(our_states(cache, layer), want, FORWARD)
