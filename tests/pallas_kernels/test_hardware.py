"""Kernels on the hardware they are for: values, states and gradients of the reference, token by token."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.compare import assert_close
from support.kernels import CASES, cotangents_of, example, of_tokens, program
from support.packed import Layout
from support.primitives import OF_KERNELS
from support.recurrences import DIRECTIONS, EXTREMES, FEW_CHUNKS, FEW_DOCUMENTS

from mom_jax.models.config import MoMConfig
from mom_jax.models.lm import MoMForCausalLM
from mom_jax.ops.grouped_matmul import grouped_matmul
from mom_jax.ops.mixing import Ending, Reads, mix
from mom_jax.ops.segments import plan_packing
from mom_jax.ops.short_conv import short_conv

ON = [pytest.param("gpu", marks=pytest.mark.gpu), pytest.param("tpu", marks=pytest.mark.tpu)]
TOLERANCES = {"float32": 1e-5, "bfloat16": 2**-6}
LONG = Layout((300, 0, 1, 64, 129), 64)
MANY = Layout((300, 0, 1, 64, 129) * 16, 64)  # enough programs to fill a card
NAMES = list(dict.fromkeys(name for _, name in CASES))


@functools.cache
def run_as(name, impl):
    """A recurrence with an implementation; without a kernel for the device it runs in XLA, as ``auto`` has it."""
    primitive = OF_KERNELS[name].primitive
    impl = "auto" if impl in ("gpu", "tpu") and impl not in primitive.kernels else impl
    return lambda rows, table, state, scale: primitive(rows, table, state, scale=scale, impl=impl)


def rounded(inputs, dtype):
    """The inputs with rows of a dtype; gates and strengths stay float32."""
    rows = inputs.rows._asdict()
    changed = {n: jnp.asarray(x, dtype) if n in ("q", "k", "v", "a", "b") else x for n, x in rows.items()}
    return inputs._replace(rows=inputs.rows._replace(**changed))


def check(impl, name, inputs, layout, resets, dtype="float32"):
    """``impl`` gives what the reference gives for the same rounded inputs in float32."""
    table, inputs = layout.table(resets), rounded(inputs, dtype)
    got = program(run_as(name, impl))(inputs, cotangents_of(inputs), table)
    exact = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), inputs)
    with jax.default_matmul_precision("highest"):
        want = program(run_as(name, "reference"))(exact, cotangents_of(inputs), table)
    got, want = (jax.tree.map(lambda x: np.asarray(x, np.float32), x) for x in (got, want))
    assert_close(*(of_tokens(name, layout, x) for x in (got, want)), TOLERANCES[dtype], atol=1e-6)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("impl", ON)
def test_recurrences(impl, name, size, dtype):
    """Empty, one-token and ragged segments, documents inside."""
    check(impl, name, example(name, LONG, (size, size)), LONG, (70, 300, 320), dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("impl", ON)
def test_limits(impl, name):
    """Log gates from 0 to -1e4, and keys of one direction, in float32."""
    layout, case = Layout(FEW_CHUNKS, 16), OF_KERNELS[name]
    changes = [dict.fromkeys(case.gates, gate) for gate in EXTREMES.values() if case.gates]
    for change in (*changes, *(DIRECTIONS.values() if "beta" in case.rows else ())):
        check(impl, name, example(name, layout, (64, 64), **change), layout, FEW_DOCUMENTS)


def same_bits(function, *arguments):
    """Whether three runs give the same bits: programs that race give others now and then."""
    first, *again = (jax.tree.leaves(jax.device_get(function(*arguments))) for _ in range(3))
    return all(a.tobytes() == b.tobytes() for other in again for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("size", [64, 128, 256])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("impl", ON)
def test_recurrences_give_the_same_bits_again(impl, name, size, dtype):
    """Values, states and all gradients."""
    inputs = rounded(example(name, MANY, (size, size)), dtype)
    assert same_bits(program(run_as(name, impl)), inputs, cotangents_of(inputs), MANY.table((70, 300, 320)))


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.gpu
def test_grouped_matmul_gives_the_same_bits_again(dtype):
    """Products and both gradients."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(16 * 320, 512)), dtype)
    weights = tuple(jnp.asarray(rng.normal(size=(3, 512, n)), dtype) for n in (512, 4))

    @jax.jit
    def both(x, weights):
        run = functools.partial(grouped_matmul, group_sizes=jnp.array((2048, 0, 3072)), tile=64, impl="gpu")
        y, pull = jax.vjp(run, x, weights)
        return y, pull(jax.tree.map(jnp.ones_like, y))

    assert same_bits(both, x, weights)


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


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.gpu
def test_short_conv(dtype):
    """Gathered queries with documents and states: rows and all gradients."""
    layout, rng = LONG, np.random.default_rng(0)
    packing, tokens = layout.packing((70, 300, 320)), sum(layout.lengths)
    x = jnp.asarray(rng.normal(size=(1, tokens, 256)), dtype)
    state = jnp.asarray(rng.normal(size=(len(layout.lengths), 3, 256)), dtype)
    weight = jnp.asarray(rng.normal(size=(256, 4)), jnp.float32)

    def both(impl, *inputs):
        run = lambda x, weight, state: short_conv(x, weight, packing, state, head=64, normalise=True, impl=impl)  # noqa: E731
        y, pull = jax.vjp(run, *inputs)
        return y[layout.index], pull(jnp.where(packing.valid[:, None], jnp.cos(jnp.arange(256.0)), 0).astype(y.dtype))

    exact = jax.tree.map(lambda a: a.astype(jnp.float32), (x, weight, state))
    want = jax.jit(functools.partial(both, "xla"))(*exact)
    got = jax.jit(functools.partial(both, "gpu"))(x, weight, state)
    assert_close(jax.tree.map(lambda a: np.asarray(a, np.float32), got), want, TOLERANCES[dtype])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.gpu
def test_mixing(dtype):
    """What tokens read of one memory and the shared one, normed and gated: values and all gradients, the same again."""
    packing, tokens = plan_packing(jnp.arange(300).reshape(2, 150, 1) % 3, 3, shared=True, chunk_size=64), (2, 150)
    rng = np.random.default_rng(0)
    shapes = (packing.assignment.shape[0], 2, 96), (*tokens, 1), (96,), (*tokens, 192), (*tokens, 2, 96)
    rows, weights, scale, gate, do = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)
    rows, gate, do = (x.astype(dtype) for x in (rows, gate, do))

    def both(impl, rows, weights, scale, gate, do):
        def run(rows, weights, scale, gate):
            return mix(Reads(rows, weights, packing, impl), Ending(None, scale, gate, eps=1e-6))

        o, pull = jax.vjp(run, rows, weights, scale, gate)
        return o, pull(do.astype(o.dtype))

    inputs = rows, weights, scale, gate, do
    by_gpu = jax.jit(functools.partial(both, "gpu"))
    want = jax.jit(functools.partial(both, "xla"))(*(a.astype(jnp.float32) for a in inputs))
    assert_close(jax.tree.map(lambda a: np.asarray(a, np.float32), by_gpu(*inputs)), want, TOLERANCES[dtype])
    assert same_bits(by_gpu, *inputs)


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
