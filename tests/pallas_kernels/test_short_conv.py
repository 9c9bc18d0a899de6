"""The short convolution's kernels, interpreted on the host, beside XLA: values and the gradients of all inputs.

Memory that no kernel has written is NaN.
"""

import functools
import pkgutil
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.cases import some
from support.compare import assert_close
from support.kernels import PLATFORMS, interpret_kernels

from mom_jax.ops.documents import count_documents
from mom_jax.ops.segments import Packing, plan_packing
from mom_jax.ops.short_conv import KERNELS, short_conv
from pallas_kernels.chunks import Chunks

each_platform = pytest.mark.parametrize("platform", KERNELS)


class Case(NamedTuple):
    """What a convolution is asked for, over three memories and a shared one."""

    time: int = 21
    chunk: int = 16
    heads: int = 2
    head: int = 64
    taps: int = 4
    top_k: int = 2
    gathered: bool = True
    state: bool = False
    bias: bool = False
    documents: bool = False
    padding: bool = False
    activate: bool = True
    normalise: bool = True

    def packing(self) -> Packing:
        """Ragged segments: memory 2 is rarely chosen, by the second row never."""
        rng = np.random.default_rng(0)
        scores = rng.random((2, self.time, 3)) + np.array([[0, 0, -0.8], [0, 0, -2]])[:, None]
        memories = np.argsort(-scores, -1)[..., : self.top_k].astype(np.int32)
        mask = np.int32(rng.random((2, self.time)) < 0.8) if self.padding else None
        numbers = np.cumsum(rng.random((2, self.time)) < 0.2, 1) if self.documents else None

        @jax.jit
        def plan(memories, mask, numbers):
            documents = count_documents(numbers, mask, jnp.zeros(2, jnp.int32) if self.documents else None)
            return plan_packing(
                memories, 3, shared=True, chunk_size=self.chunk, attention_mask=mask, documents=documents
            )

        return plan(memories, mask, numbers)

    def inputs(self, packing: Packing, dtype: str) -> dict[str, jax.Array | None]:
        """x, weight, bias and state; rows of padding are 0."""
        rng, channels = np.random.default_rng(1), self.heads * self.head
        tokens = rng.normal(size=(2, self.time, channels))
        rows = np.where(packing.valid[:, None], rng.normal(size=(packing.valid.shape[0], channels)), 0)
        state = rng.normal(size=(packing.table.num_segments, self.taps - 1, channels))
        return {
            "x": jnp.asarray(tokens if self.gathered else rows, dtype),
            "weight": jnp.asarray(rng.normal(size=(channels, self.taps)), jnp.float32),
            "state": jnp.asarray(state, dtype) if self.state else None,
            "bias": jnp.asarray(rng.normal(size=channels), jnp.float32) if self.bias else None,
        }


CASES = {
    "gathered": Case(documents=True, padding=True),
    "packed": Case(gathered=False, normalise=False, state=True, bias=True),
    "documents and states": Case(documents=True, state=True, padding=True, taps=3),
    "two taps, as they are": Case(taps=2, activate=False, normalise=False, gathered=False, documents=True),
    "one token": Case(time=1, top_k=1, state=True),
    "long chunks": Case(time=70, chunk=64, heads=1, head=128, bias=True),
}


@functools.cache
def program(case: Case, impl):
    """Rows and gradients of the inputs, compiled once."""
    options = {"activate": case.activate, "normalise": case.normalise, "head": case.head, "impl": impl}

    def run(inputs, cotangent, packing):
        x, weight, state, bias = (inputs[name] for name in ("x", "weight", "state", "bias"))
        y, pull = jax.vjp(lambda *a: short_conv(a[0], a[1], packing, *a[2:], **options), x, weight, state, bias)
        return y, pull(cotangent.astype(y.dtype))

    return jax.jit(run)


def measured(case: Case, packing: Packing, inputs, impl):
    """Rows that hold tokens, and gradients of the inputs."""
    valid = packing.valid[:, None]
    cotangent = np.where(valid, np.random.default_rng(2).normal(size=(valid.shape[0], case.heads * case.head)), 0)
    y, gradients = program(case, impl)(inputs, cotangent, packing)
    y, gradients = jax.tree.map(lambda x: np.asarray(x, np.float32), (y, gradients))
    return y[packing.valid], gradients


@pytest.mark.parametrize("name", some(CASES, ("gathered", "documents and states", "one token")))
@each_platform
def test_equals_xla(platform, name, monkeypatch):
    """Gathered and packed rows; ragged, empty and one-token segments; documents, padding, states."""
    case = CASES[name]
    packing = case.packing()
    inputs = case.inputs(packing, "float32")
    want = measured(case, packing, inputs, "xla")
    interpret_kernels(monkeypatch, platform, PLATFORMS[platform].unwritten)
    assert_close(measured(case, packing, inputs, platform), want, 1e-5)


@each_platform
def test_bfloat16(platform, monkeypatch):
    """Sums, SiLU and norm in float32: rounded once, where XLA's path rounds before the norm too."""
    case = Case(documents=True, state=True)
    packing = case.packing()
    inputs = case.inputs(packing, "bfloat16")
    wide = {name: None if x is None else x.astype(jnp.float32) for name, x in inputs.items()}
    want = measured(case, packing, wide, "xla")
    interpret_kernels(monkeypatch, platform, PLATFORMS[platform].unwritten)
    assert_close(measured(case, packing, inputs, platform), want, 2**-6)


@each_platform
def test_what_kernels_do_not_take(platform, monkeypatch):
    """Named in one line; ``auto`` runs XLA."""
    case = Case(taps=9)
    packing = case.packing()
    inputs = case.inputs(packing, "float32")
    interpret_kernels(monkeypatch, platform, PLATFORMS[platform].unwritten)
    with pytest.raises(ValueError, match=f"taps=9: the {platform.upper()} kernels take 2 to 8"):
        measured(case, packing, inputs, platform)
    assert_close(measured(case, packing, inputs, "auto"), measured(case, packing, inputs, "xla"), 0)


@each_platform
@pytest.mark.parametrize(
    "change, message",
    [
        ({"weight": (128, 1)}, "taps=1"),
        ({"weight": (192, 4)}, r"weight has shape \(192, 4\): expected \(128, 4\)"),
        ({"state": (3, 2, 128)}, r"state has shape \(3, 2, 128\): expected \(2, 3, 128\)"),
        ({"bias": (4,)}, r"bias has shape \(4,\): expected \(128,\)"),
        ({"x": (42, 128)}, "4 chunks: expected a divisor of the 42 rows"),
        ({"x": (32, 128)}, "chunk=8: the"),
        ({"x": (64, 2, 64)}, r"expected \[N, D\] and \[D, W\]"),
    ],
)
def test_refuses(platform, change, message):
    """Bad arguments are named in one line."""
    shapes = {"x": (64, 128), "weight": (128, 4), "bias": None, "state": None} | change
    arrays = [None if s is None else jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes.values()]
    flags = jax.ShapeDtypeStruct((4,), jnp.bool)
    chunks = Chunks(jax.ShapeDtypeStruct((4,), jnp.int32), flags, flags, jax.ShapeDtypeStruct((3, 3), jnp.int32), None)
    run = pkgutil.resolve_name(KERNELS[platform])
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda *a: run(*a, None, None, None, 2, True, 64, True, interpret=True), *arrays, chunks)
