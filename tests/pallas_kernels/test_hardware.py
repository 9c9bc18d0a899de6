"""Kernels on the hardware they are for: values, states and gradients of the reference, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support import delta_rule as delta
from support.compare import assert_close
from support.packed import Layout
from support.primitives import PRIMITIVES
from support.recurrences import DOCUMENTS, RAGGED, outputs, with_gradients

from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.delta_rule import DELTA_RULE, DeltaRuleRows
from mom_jax.ops.grouped_matmul import grouped_matmul

ON = [pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("tpu", marks=pytest.mark.tpu)]
TOLERANCES = {"float32": 1e-5, "bfloat16": 2**-6}
LONG = (300, 0, 1, 64, 129)


def cast(inputs, dtype):
    """Queries, keys and values in the dtype; gates and states stay float32."""
    return jax.tree_util.tree_map_with_path(
        lambda path, x: jnp.asarray(x, dtype if path[-1].key in ("q", "k", "v", "a", "b") else jnp.float32), inputs
    )


def check(run, inputs, impl, dtype):
    """``impl`` gives what the reference gives for the same rounded inputs in float32."""
    inputs = cast(inputs, dtype)
    got = jax.jit(functools.partial(with_gradients, functools.partial(run, impl)))(inputs)
    exact = jax.tree.map(lambda x: x.astype(jnp.float32), inputs)
    with jax.default_matmul_precision("highest"):
        want = jax.jit(functools.partial(with_gradients, functools.partial(run, "reference")))(exact)
    assert_close(jax.tree.map(lambda x: np.asarray(x, np.float32), got), want, TOLERANCES[dtype], atol=1e-6)


def delta_rule(lengths, resets, impl, inputs):
    """Outputs of the tokens and final states."""
    layout = Layout(lengths, 64)
    rows = DeltaRuleRows(*(layout.pack(inputs[name]) for name in delta.NAMES[:-1]))
    o, final = DELTA_RULE(rows, layout.table(resets), inputs["state"], impl=impl)
    return o[layout.index], final


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("impl", ON)
def test_delta_rule(impl, size, dtype):
    """Empty, one-token and ragged segments, documents inside."""
    inputs = delta.example(sum(LONG), len(LONG), (2, size, size))
    check(functools.partial(delta_rule, LONG, (70, 300, 320)), inputs, impl, dtype)


@pytest.mark.parametrize("name", delta.CASES)
@pytest.mark.parametrize("impl", ON)
def test_delta_rule_at_its_limits(impl, name):
    """The cases that every implementation is held against, in float32."""
    lengths, resets, changes = delta.CASES[name]
    inputs = delta.example(sum(lengths), len(lengths), (2, 64, 64), **changes)
    check(functools.partial(delta_rule, lengths, resets), inputs, impl, "float32")


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [64, 256])
@pytest.mark.parametrize("name", ["scalar decay", "no decay", "vector decay", "vector decay, bonus", "rwkv7", "kda"])
@pytest.mark.parametrize("impl", ON)
def test_decays(impl, name, size, dtype):
    """The other recurrences; those without a kernel for the device run in XLA, as ``auto`` has it."""
    primitive = PRIMITIVES[name]

    def run(impl, inputs):
        how = functools.partial(_run, primitive, "auto" if impl in ("gpu", "tpu") else impl)
        return outputs(how, Layout(RAGGED, 64), DOCUMENTS, inputs)

    check(run, primitive.example(sum(RAGGED), len(RAGGED), (size, size)), impl, dtype)


def _run(primitive, impl, rows, shared, table, state):
    return primitive.run(rows, shared, table, state, impl)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.gpu
def test_grouped_matmul(dtype):
    """Products and both gradients, with an empty group and rows behind the last one."""
    sizes, rng = (128, 0, 192), np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(384, 96)), dtype).at[320:].set(0)
    weights = tuple(jnp.asarray(rng.normal(size=(3, 96, n)), dtype) for n in (200, 4))

    def both(impl, x, weights):
        run = functools.partial(grouped_matmul, group_sizes=jnp.array(sizes), tile=64, impl=impl)
        y, pull = jax.vjp(run, x, weights)
        return y, pull(jax.tree.map(jnp.ones_like, y))

    exact = jax.tree.map(lambda a: a.astype(jnp.float32), (x, weights))
    with jax.default_matmul_precision("highest"):
        want = jax.jit(functools.partial(both, "xla"))(*exact)
    got = jax.jit(functools.partial(both, "gpu"))(x, weights)
    assert_close(jax.tree.map(lambda a: np.asarray(a, np.float32), got), want, TOLERANCES[dtype])


@pytest.mark.parametrize("impl", ON)
def test_model(impl):
    """Logits, gradients and decoding of a small model with heads of 64."""
    make = functools.partial(MoMConfig, vocab_size=64, hidden_size=128, num_hidden_layers=2, num_heads=2, head_dim=64)
    ids = jax.random.randint(jax.random.key(0), (2, 150), 0, 64)
    found = {}
    for name in (impl, "reference"):
        model = MoMForCausalLM(make(impl=name), rngs=nnx.Rngs(0))
        graph, params = nnx.split(model)

        @jax.jit
        def run(params, ids, graph=graph):
            return jax.value_and_grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p)(ids).logits)))(params)

        with jax.default_matmul_precision("highest"):
            found[name] = *run(params, ids), model(ids[:, :100], cache=model.init_cache(2)).logits
    assert_close(jax.device_get(found[impl]), jax.device_get(found["reference"]), 1e-4)
