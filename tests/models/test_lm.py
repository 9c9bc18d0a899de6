"""The language model: precision, rematerialisation, program size, independence of rows, and its error messages."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.cases import some
from support.compare import assert_close, relative_error
from support.parameters import random_model
from support.typechecked import unchecked

from mom_jax.errors import InputError
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.loss import chunked_cross_entropy
from mom_jax.ops.routing import auxiliary_loss
from tools.kernels.equations import calls, equations


def tokens(rows=2, time=12, seed=0):
    """Random ids."""
    return np.random.default_rng(seed).integers(0, 32, (rows, time)).astype(np.int32)


def train_loss(graph, ids, params, remat="none"):
    """Loss of next-token prediction with the auxiliary loss, as training computes it."""
    model = nnx.merge(graph, params)
    hidden, router, _ = model.hidden_states(ids, remat=remat)
    total, count = chunked_cross_entropy(hidden, model.output_embedding(), jnp.roll(ids, -1, 1))
    return total / count + 0.01 * auxiliary_loss(router)


@functools.cache
def loss_and_gradients(config, remat="none"):
    """Of a fixed model of that configuration."""
    graph, params = nnx.split(MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    return jax.jit(jax.value_and_grad(lambda params: train_loss(graph, jnp.asarray(tokens()), params, remat)))(params)


@pytest.fixture
def simple(small):
    """The same with a rule that compiles fast."""
    return dataclasses.replace(small, memory_rule="linear_attention", feature_map="elu")


@pytest.mark.parametrize("remat", some(["full", "dots", "recurrence", "mixer"], ("full",)))
def test_rematerialisation_changes_nothing(simple, remat):
    """Loss and gradients agree with keeping everything."""
    assert_close(loss_and_gradients(simple, remat), loss_and_gradients(simple), 1e-5)


def test_rematerialisation_keeps_what_it_says(small):
    """The more is kept, the fewer dense products there are: least where those themselves are."""

    def products(remat):
        config = dataclasses.replace(small, compute_dtype="bfloat16")  # where products have gradients of their own
        run = functools.partial(loss_and_gradients, config, remat)
        found = [x.params["dimension_numbers"] for x in calls("dot_general", run)]
        return sum(not any(batch) for _, batch in found)

    dots, mixer, full = map(products, ("dots", "mixer", "full"))
    assert dots < mixer < full, (dots, mixer, full)


def test_bfloat16(simple):
    """bfloat16 compute: loss within 2 %, parameters and gradients float32 and finite, gradients mostly parallel."""
    half = dataclasses.replace(simple, compute_dtype="bfloat16")
    loss, gradients = loss_and_gradients(half)
    want_loss, want = loss_and_gradients(simple)
    assert loss.dtype == jnp.float32 and abs(float(loss) - float(want_loss)) < 0.02 * float(want_loss)
    assert {p.dtype for p in jax.tree.leaves((nnx.state(MoMForCausalLM(half, rngs=nnx.Rngs(0))), gradients))} == {
        jnp.dtype(jnp.float32)
    }
    got, want = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (gradients, want))
    assert np.isfinite(got).all()
    assert got @ want / np.linalg.norm(got) / np.linalg.norm(want) > 0.95


def test_bfloat16_logits(small):
    """Logits are float32, within 5 % of the float32 model's largest where the routing is the same."""
    model, half = (random_model(dataclasses.replace(small, compute_dtype=d), 0.15) for d in ("float32", "bfloat16"))
    want, out = (jax.jit(lambda model, ids: model(ids))(m, jnp.asarray(tokens(1, 4))) for m in (model, half))
    assert out.logits.dtype == jnp.float32 and all(r.dtype == jnp.float32 for r in out.router_logits)
    assert relative_error(out.logits, want.logits) < 0.05
    assert (
        half.init_cache(1).memory.recurrent.dtype == jnp.float32
        and half.init_cache(1).memory.conv["k"].dtype == jnp.bfloat16
    )


def test_tied_embedding(small):
    """A tied model has no output matrix of its own and uses the embedding."""
    model = MoMForCausalLM(dataclasses.replace(small, tie_word_embeddings=True), rngs=nnx.Rngs(0))
    assert not hasattr(model, "lm_head")
    assert (model.output_embedding() == model.embeddings[...]).all()


@functools.cache
def training_program(config):
    """Primitive names of the traced gradient."""
    graph, params = nnx.split(MoMForCausalLM(config, rngs=nnx.Rngs(0)))
    ids = jnp.asarray(tokens())
    jaxpr = jax.make_jaxpr(jax.grad(lambda params: train_loss(graph, ids, params)))(params)
    return [equation.primitive.name for equation in equations(None, jaxpr.jaxpr)]


def test_the_program_does_not_grow_with_depth(small):
    """Eight layers are the program of two, but for taking the router logits of each layer apart."""
    two, eight = (training_program(dataclasses.replace(small, num_hidden_layers=n)) for n in (2, 8))
    assert len(two) > 500  # the walk sees inside the scan
    assert two.count("dot_general") == eight.count("dot_general") and two.count("scan") == eight.count("scan")
    assert len(eight) - len(two) <= 6 * 8


def test_no_host_callback_and_no_sort(small):
    """Nothing in the training program synchronises with the host, and only top-k orders anything."""
    names = set(training_program(small))
    assert not {name for name in names if "callback" in name or "infeed" in name or "outfeed" in name}
    assert "sort" not in names and "top_k" in names


def test_everything_is_a_parameter(model):
    """The module holds float32 parameters and nothing else; blocks are stacked."""
    leaves = nnx.to_flat_state(nnx.state(model))
    assert all(isinstance(leaf, nnx.Param) and leaf[...].dtype == jnp.float32 for _, leaf in leaves)
    assert all(leaf[...].shape[0] == 2 for path, leaf in leaves if path[0] == "layers")


def test_numpy_inputs_outside_jit(model, call):
    """Plain numpy arrays are welcome everywhere."""
    ids, mask, documents = tokens(1, 4), np.array([[0, 1, 1, 1]]), np.array([[0, 0, 1, 1]])
    want = call(ids, mask, documents, None).logits
    assert_close(model(ids, attention_mask=mask, segment_ids=documents).logits, want, 1e-5)


@pytest.mark.parametrize(
    "arguments,message",
    [
        ({"input_ids": [[3, 32]]}, r"input_ids=32: token ids must lie in \[0, 32\)"),
        ({"input_ids": [[3, -1]]}, r"input_ids=-1: token ids must lie"),
        ({"input_ids": [[3, 1]], "attention_mask": [[1]]}, r"attention_mask\.shape=\(1, 1\): expected \(1, 2\)"),
        ({"input_ids": [[3, 1]], "attention_mask": [[1, 1], [1, 1]]}, r"attention_mask\.shape=\(2, 2\)"),
        ({"input_ids": [[3, 1]], "segment_ids": [[1, 1, 1]]}, r"segment_ids\.shape=\(1, 3\): expected \(1, 2\)"),
    ],
)
def test_bad_input(model, arguments, message):
    """Each names the field, the value and what was expected."""
    with unchecked(), pytest.raises(InputError, match=message):
        model(**{name: jnp.array(value) for name, value in arguments.items()})


def test_no_ids_and_unknown_remat(model):
    """The messages say what is wanted: tokens in one form or the other, and a known policy."""
    with pytest.raises(InputError, match=r"input_ids=None: is needed where no inputs_embeds"):
        model.hidden_states()
    with pytest.raises(InputError, match=r"remat='?half'?: choose one of none, full, dots, recurrence, mixer"):
        model.hidden_states(jnp.zeros((1, 2), jnp.int32), remat="half")
