"""What follows the reads of each rule, by its definition in float64."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from support.compare import assert_close
from support.definitions import sigmoid, silu
from support.parameters import randomised

from mom_jax.layers.output import HiddenNormOutput, LowRankGateOutput, Output
from mom_jax.ops.mixing import Reads
from mom_jax.ops.segments import plan_packing

D, H, V, EPS = 6, 2, 4, 1e-3


def normed(x, axes=-1):
    return x / np.sqrt((x * x).mean(axes, keepdims=True) + EPS)


def linear(x, p):
    return x @ p["weight"] + p.get("bias", 0)


def heads(y):
    return y.reshape(*y.shape[:2], H, V)


GATE, NORM = ("gate", True), ("norm_eps", EPS)
# Each with what is projected, from mixed reads o, the input x and parameters p.
ENDS = {
    (Output,): lambda o, x, p: o,
    (Output, GATE): lambda o, x, p: o * silu(heads(linear(x, p["g_proj"]))),
    (Output, NORM): lambda o, x, p: normed(o) * p["norm"],
    (Output, GATE, NORM): lambda o, x, p: normed(o) * p["norm"] * silu(heads(linear(x, p["g_proj"]))),
    (Output, GATE, NORM, ("activation", jax.nn.sigmoid), ("before", jax.nn.silu)): lambda o, x, p: (
        normed(silu(o)) * p["norm"] * sigmoid(heads(linear(x, p["g_proj"])))
    ),
    (LowRankGateOutput, NORM): lambda o, x, p: (
        normed(o) * p["norm"] * sigmoid(heads(linear(linear(x, p["g_down"]), p["g_up"])))
    ),
    (HiddenNormOutput, GATE, NORM): lambda o, x, p: (
        normed(o * silu(heads(linear(x, p["g_proj"]))), (-2, -1)) * p["norm"].reshape(H, V)
    ),
    (HiddenNormOutput, NORM, ("before", jax.nn.silu)): lambda o, x, p: (
        normed(silu(o), (-2, -1)) * p["norm"].reshape(H, V)
    ),
}


def made(kind, *options):
    """An output with parameters that matter."""
    return randomised(nnx.eval_shape(lambda: kind(D, H, V, **dict(options), rngs=nnx.Rngs(0))), 0.5)


def test_each_output():
    """A token of a chosen memory and the shared one, in all forms by one program."""
    rng = np.random.default_rng(0)
    packing = plan_packing(jnp.asarray([[[0], [1], [0]]]), 2, shared=True, chunk_size=2)
    rows, weights = rng.normal(size=(packing.assignment.shape[0], H, V)), rng.random((1, 3, 1))
    x, outputs = rng.normal(size=(1, 3, D)), [made(*kind) for kind in ENDS]

    @jax.jit
    def run(outputs, rows, weights, x):
        return [output(Reads(rows, weights, packing), x) for output in outputs]

    got = run(outputs, *(jnp.asarray(a, jnp.float32) for a in (rows, weights, x)))
    o = (rows[np.asarray(packing.row)] * np.concatenate([weights, np.ones_like(weights)], -1)[..., None, None]).sum(2)
    for y, output, (kind, end) in zip(got, outputs, ENDS.items(), strict=True):
        p = jax.tree.map(lambda a: np.asarray(a, np.float64), nnx.to_pure_dict(nnx.state(output)))
        assert_close(y, linear(end(o, x, p).reshape(1, 3, -1), p["o_proj"]), 1e-5), kind
