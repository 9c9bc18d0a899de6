"""The kernels of every recurrence as tests see them: interpreted on the host, beside single tokens in double precision.

Which there are is what the primitives name.
"""

import functools
import pkgutil
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu

from mom_jax.layers import convolution, recurrence
from mom_jax.ops import dispatch, grouped_matmul, mixing
from mom_jax.ops.dispatch import Target, plain
from support.cases import some
from support.compare import assert_close
from support.primitives import OF_KERNELS


class Platform(NamedTuple):
    """What a platform's kernels are tested with."""

    smallest: tuple[int, int]  # K and V
    unwritten: Any  # the interpreter in which memory is NaN until a kernel writes it
    device: Target


PLATFORMS = {
    "tpu": Platform((64, 64), pltpu.InterpretParams(uninitialized_memory="nan"), Target("tpu", "TPU v5 lite")),
    "gpu": Platform((16, 16), True, Target("gpu", "NVIDIA H100", "sm_90")),
}


def kernel_of(platform: str, name: str):
    """The kernel of a recurrence, or None; those that put others together are not called by themselves."""
    path = OF_KERNELS[name].primitive.kernels.get(platform)
    return pkgutil.resolve_name(path) if isinstance(path, str) else None


CASES = [(platform, name) for platform in PLATFORMS for name in OF_KERNELS if kernel_of(platform, name)]
# One for each kernel.
KERNELS = list({kernel_of(*case): case for case in reversed(CASES)}.values())[::-1]


def each(cases, kept=CASES):
    """One test for each platform and recurrence; those that are not ``kept`` are exhaustive."""
    ids = [f"{platform}-{name.replace(', ', '-').replace(' ', '-')}" for platform, name in cases]
    return pytest.mark.parametrize("platform, name", some(cases, kept), ids=ids)


class Inputs(NamedTuple):
    """What a recurrence is differentiated in."""

    rows: Any  # the primitive's, packed
    state: Any


def example(name, layout, sizes, **changes) -> Inputs:
    """Random inputs; ``changes`` map what they are made of by name."""
    case = OF_KERNELS[name]
    inputs = case.example(sum(layout.lengths), len(layout.lengths), sizes, **changes)
    rows = case.packed(inputs["rows"], inputs["shared"])._asdict()
    rows = {n: None if x is None else np.asarray(x) for n, x in rows.items()}
    rows |= {n: layout.pack(x) for n, x in rows.items() if x is not None and n not in case.primitive.shared}
    return Inputs(case.primitive.rows(**rows), inputs["state"])


def cotangents_of(inputs: Inputs):
    """Random cotangents of the outputs, those of padding and of unused chunks too, and of the final states."""
    rng = np.random.default_rng(99)
    o = rng.normal(size=inputs.rows.v.shape).astype(np.float32)
    return o, None if inputs.state is None else rng.normal(size=inputs.state.shape).astype(np.float32)


@functools.cache
def program(run, jit=jax.jit):
    """Values and gradients of ``run(rows, table, state, scale)`` for inputs, cotangents and a table."""

    def both(inputs, cotangents, table):
        scale = inputs.rows.k.shape[-1] ** -0.5
        outputs, pull = jax.vjp(lambda x: run(x.rows, table, x.state, scale), inputs)
        return outputs, pull(jax.tree.map(lambda y, d: d.astype(y.dtype), outputs, cotangents))[0]

    return jit(both)


@functools.cache
def interpreted(kernel, interpret):
    """A kernel with the signature of the other implementations."""
    return lambda *arguments: kernel(*plain(arguments), interpret=interpret)


def interpret_kernels(monkeypatch, platform, interpret: Any = True):
    """Programs are for a device of that platform, its kernels interpreted; which ones were asked for."""
    ran = []

    def kernel_for(device, kernels):
        kernel = kernels[device.platform]
        if callable(kernel):
            return functools.partial(kernel, device)
        ran.append(kernel.partition(":")[2])
        return interpreted(pkgutil.resolve_name(kernel), interpret)

    for module in (dispatch, grouped_matmul, mixing, convolution, recurrence):
        monkeypatch.setattr(module, "kernel_for", kernel_for)
    monkeypatch.setattr(dispatch, "target", lambda: PLATFORMS[platform].device)
    return ran


def measured(platform, name, inputs, table, interpret: Any = True, jit=jax.jit):
    """Outputs [N, H, V], final states and the gradients of all inputs."""
    return program(interpreted(kernel_of(platform, name), interpret), jit)(inputs, cotangents_of(inputs), table)


def expected(name, inputs, table):
    """The same by single tokens in float64."""
    with jax.enable_x64(True):
        wide, cotangents = jax.tree.map(lambda x: np.asarray(x, np.float64), (inputs, cotangents_of(inputs)))
        return jax.device_get(program(OF_KERNELS[name].primitive.scan)(wide, cotangents, table))


def of_tokens(name, layout, results):
    """Without rows that are padding or in unused chunks."""
    (o, final), (rows, dstate) = results
    shared = OF_KERNELS[name].primitive.shared
    rows = {n: x if x is None or n in shared else x[layout.index] for n, x in rows._asdict().items()}
    return (o[layout.index], final), (rows, dstate)


def compare(platform, name, inputs, layout, resets, *, tolerance=1e-5, atol=0.0, interpret: Any = True, jit=jax.jit):
    """Holds a kernel against `expected`, to a tolerance of each array's largest value; everything is finite.

    Segments without rows keep their states, and pass gradients on, bit for bit. Returns what the kernel gave.
    """
    table = layout.table(resets)
    results = jax.device_get(measured(platform, name, inputs, table, interpret, jit))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(results))
    got, want = (of_tokens(name, layout, x) for x in (results, expected(name, inputs, table)))
    assert_close(jax.tree.map(lambda x: np.asarray(x, np.float64), got), want, tolerance, atol)
    if inputs.state is not None:
        empty = np.array(layout.lengths) == 0
        np.testing.assert_array_equal(results[0][1][empty], inputs.state[empty])
        np.testing.assert_array_equal(results[1].state[empty], cotangents_of(inputs)[1][empty])
    return results
