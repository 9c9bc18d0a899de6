"""Products of a layer: how their gradients are formed, and what is done with them before rows are packed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.compare import assert_close

from mom_jax.layers.mixer import MemoryMixer
from mom_jax.ops.product import product

H = 2


@pytest.mark.parametrize("shape", [(6, 4), (2, 3, 4)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_product(shape, dtype):
    """Those of ``x @ weight``, in the dtypes of both; that in the weight is one product and nothing transposed."""
    rng = np.random.default_rng(0)
    x, weight, dy = (jnp.asarray(rng.normal(size=s)) for s in (shape, (4, 5), (*shape[:-1], 5)))
    x, dy = x.astype(dtype), dy.astype(dtype)
    dx, dweight = jax.vjp(product, x, weight)[1](dy)
    assert (dx.dtype, dweight.dtype) == (x.dtype, weight.dtype)
    x64, weight64, dy64 = (np.asarray(a, np.float64) for a in (x, weight.astype(dtype), dy))
    tolerance = 1e-6 if dtype == "float32" else 1e-2
    assert_close(dx.astype(jnp.float32), dy64 @ weight64.T, tolerance)
    assert_close(dweight, x64.reshape(-1, 4).T @ dy64.reshape(-1, 5), tolerance)
    program = str(jax.make_jaxpr(lambda w: jax.vjp(lambda w: product(x, w), w)[1](dy))(weight))
    assert "[4,5] = dot_general" in program and "[4,5] = transpose" not in program


def test_slots_are_chosen_before_rows_are_packed():
    """Of the logits of product keys none are gathered into rows, of which a mixture has several for each token."""
    options = {"table_slots": 121, "slot_writes": 3, "slot_reads": 3}
    sizes = {"num_heads": H, "head_k_dim": 4, "single_projection": True, "options": options}
    layer = nnx.eval_shape(lambda: MemoryMixer(8, rule="sparse_delta_memory", **sizes, rngs=nnx.Rngs(0)))
    graph, parameters = nnx.split(layer)
    program = jax.make_jaxpr(lambda p, x: nnx.merge(graph, p)(x)[0])(parameters, jnp.zeros((1, 40, 8)))
    gathered = re.findall(r"f32\[([\d,]+)\] = gather", str(program))
    assert gathered and not [shape for shape in gathered if shape.endswith((",22", f",{22 * H}"))]
