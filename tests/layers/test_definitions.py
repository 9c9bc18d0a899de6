"""Newer memory rules against their definitions in NumPy and float64, and at the limits where one rule is another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from goldens.read import parameters_by_name
from support.compare import assert_close
from support.definitions import DEFINITIONS
from support.parameters import random_mixer

from mom_jax.layers.mixer import MemoryMixer
from mom_jax.ops.mixing import mix

TIME, D, H, K, V = 19, 16, 2, 8, 12


def single(rule: str, **options) -> MemoryMixer:
    """One memory of the rule, with parameters that make every part matter."""
    return random_mixer(0.4, memory_rule=rule, mixture=False, **options)


def hidden():
    """Hidden states [T, D]."""
    return np.random.default_rng(1).normal(size=(TIME, D))


@jax.jit
def reads(layer: MemoryMixer):
    """What a layer reads for `hidden`, [T, H, V]."""
    return mix(layer.read(jnp.asarray(hidden(), jnp.float32)[None])[0])[0]


@pytest.mark.parametrize("name", DEFINITIONS)
def test_by_definition(name):
    """Chunk by chunk: within 1e-5 of the largest read."""
    definition, options = DEFINITIONS[name]
    layer = single(name.partition(",")[0], **options)
    parameters = {key: np.asarray(x, np.float64) for key, x in parameters_by_name(nnx.state(layer.rule)).items()}
    assert_close(reads(layer), definition(parameters, hidden(), layer.rule.sizes), 1e-5)


def repeated(weight, times: int):
    """Columns for heads, one for each of a head's channels."""
    return jnp.repeat(weight, times, -1)


def kda_of(base, layer):
    """One strength to erase and to write with."""
    layer["b_proj"], layer["w_proj"] = repeated(base["b_proj"], K), repeated(base["b_proj"], V)


def gated_deltanet_of(base, layer):
    """And one decay for all channels: logits through as many of the low-rank channels as there are heads."""
    kda_of(base, layer)
    rank = jnp.zeros((1, D, V)).at[..., :H].set(base["a_proj"])
    layer["f_down"], layer["f_up"] = rank, repeated(jnp.eye(V, H)[None], K)
    layer["dt_bias"] = repeated(base["dt_bias"], K)


def one_step_of(base, layer):
    """All parameters have the same names and sizes."""


def last_step_of(base, layer):
    """The first of two steps writes nothing, the second one is the rule's only one."""
    for name, size in (("k", K), ("v", V)):
        of_base, of_layer = f"{name}_proj", f"{name}_conv1d"
        zeros = jnp.zeros((1, D, H, 1, size))
        own = base[of_base].reshape(1, D, H, 1, size)
        layer[of_base] = jnp.concatenate([zeros, own], 3).reshape(1, D, -1)
        taps = jnp.repeat(base[of_layer].reshape(H, 1, size, -1), 2, 1)
        layer[of_layer] = taps.reshape(-1, taps.shape[-1])
    layer["b_proj"] = jnp.stack([jnp.zeros_like(base["b_proj"]), base["b_proj"]], -1).reshape(1, D, -1)


def delta_rule_of(base, layer):
    """No correction, and a decay that is none."""
    layer["D"], layer["A_log"] = jnp.zeros(H), jnp.full(H, -jnp.inf)


def nothing_erased(base, layer):
    """A direction of length 0."""
    layer["e_proj"] = jnp.zeros((1, D, H * K))


LIMITS = {
    "gated_deltanet2 is kda": ("gated_deltanet2", {}, "kda", {}, kda_of),
    "gated_deltanet2 is gated_deltanet": ("gated_deltanet2", {}, "gated_deltanet", {}, gated_deltanet_of),
    "one step is gated_deltanet": (
        "gated_deltaproduct",
        {"rule_options": ("num_householder=1",)},
        "gated_deltanet",
        {},
        one_step_of,
    ),
    "one step of two is gated_deltanet": ("gated_deltaproduct", {}, "gated_deltanet", {}, last_step_of),
    "nothing to erase is gated_deltanet": ("erase_then_delta", {}, "gated_deltanet", {}, nothing_erased),
    "comba without decay is deltanet": ("comba", {}, "deltanet", {}, delta_rule_of),
}


@pytest.mark.parametrize("name", LIMITS)
def test_limits(name):
    """With parameters of the simpler rule, the others set so that they do nothing, both read the same."""
    rule, options, base_rule, base_options, limit = LIMITS[name]
    layer, base = single(rule, **options), single(base_rule, **base_options)
    theirs = parameters_by_name(nnx.state(base.rule))
    found = parameters_by_name(nnx.state(layer.rule))
    found |= {key: x for key, x in theirs.items() if key in found and x.shape == found[key].shape}
    limit(theirs, found)
    graph, state = nnx.split(layer)
    flat = dict(nnx.to_flat_state(state))
    for path, leaf in flat.items():
        if path[0] == "rule":
            values = found[".".join(map(str, path[1:]))]
            assert values.shape == leaf[...].shape, path
            leaf[...] = values
    assert_close(reads(nnx.merge(graph, nnx.from_flat_state(flat))), reads(base), 1e-5)
