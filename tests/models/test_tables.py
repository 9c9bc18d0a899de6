"""Tables of embeddings and outputs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType
from support.processes import compiling

from mom_jax.models.tables import cross_entropy, looked_up
from tools.kernels.equations import equations


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_a_token_that_occurs_often_lose_nothing(dtype):
    """Ones summed one after the other in bfloat16 end at 256."""
    table, ids = jnp.ones((3, 2), dtype), jnp.zeros((1, 4097), jnp.int32).at[0, 7].set(2)
    found = jax.grad(lambda table: looked_up(table, ids, "bfloat16").astype(jnp.float32).sum())(table)
    assert found.dtype == table.dtype
    np.testing.assert_array_equal(found.astype(jnp.float32), [[4096, 4096], [0, 0], [1, 1]])


def test_gradients_in_float64():
    """What float32 would round away."""
    with jax.enable_x64(True):
        table, ids = jnp.ones((2, 1), jnp.float64), jnp.array([[0, 0, 1]])
        found = jax.grad(lambda table: (looked_up(table, ids, "float64")[..., 0] * jnp.array([1, 2**-40, 1])).sum())(
            table
        )
    np.testing.assert_array_equal(found, [[1 + 2**-40], [1]])


def test_gradients_are_summed_over_devices_before_they_are_rounded():
    """Over one axis after the other, in float32."""
    mesh = AbstractMesh((2, 2, 1, 2), ("data", "fsdp", "sequence", "tensor"), axis_types=(AxisType.Auto,) * 4)
    hidden, labels = jnp.ones((4, 8, 4), jnp.bfloat16), jnp.zeros((4, 8), jnp.int32)
    loss = lambda table: cross_entropy(hidden, table, labels, 0.0)[0]  # noqa: E731
    with jax.sharding.use_abstract_mesh(mesh):
        program = jax.make_jaxpr(jax.grad(loss))(jnp.ones((6, 4))).jaxpr
    sums = list(equations("reduce_scatter", program))
    assert [x.outvars[0].aval.dtype for x in sums] == [jnp.float32] * 2
    rounded = {id(x.invars[0]) for x in equations("convert_element_type", program)}
    assert not rounded & {id(x.outvars[0]) for x in sums}


TPU = """
import sys
from mom_jax.planning.compilers import FOLDER
sys.path.append(str(FOLDER))
import collections, json
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding
from mom_jax.layers.devices import parameter_spec
from mom_jax.models.tables import TABLE_AXES, cross_entropy, looked_up
from mom_jax.planning import hlo, targets
from mom_jax.planning.collectives import collectives
from mom_jax.planning.compiled import axes_between
from mom_jax.training.sharding import BATCH_SPEC

mesh = targets.mesh("v5p:8x8x8", data=8, fsdp=64, sequence=1, tensor=1)

def step(table, ids):
    loss = lambda table: cross_entropy(looked_up(table, ids, jnp.bfloat16), table, ids, 0.0)[0]
    gradient = jax.grad(loss)(table)
    return table - gradient / jnp.linalg.norm(gradient)

def placed(shape, dtype, spec):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

table = placed((2048, 2048), jnp.float32, parameter_spec(jax.P(*TABLE_AXES), mesh))
with jax.set_mesh(mesh):
    ids = placed((1024, 128), jnp.int32, BATCH_SPEC)
    made = jax.jit(step, out_shardings=table.sharding).lower(table, ids).compile()
sent = collections.Counter()
for each in collectives(hlo.read(made.as_text()), mesh.size):
    sent[f"{each.kind} {axes_between(each, mesh)[0]}"] += each.times * each.operands
print(json.dumps(sent))
"""


@pytest.mark.compilers
@pytest.mark.exhaustive
def test_gradients_are_scattered_on_a_tpu():
    """Those of both uses of a tied table together; nothing of its size is summed over the devices that split it."""
    sent, table = json.loads(compiling(TPU)), 4 * 2048 * 2048
    assert sent["reduce-scatter fsdp"] == table and sent["all-reduce fsdp"] < 1024
