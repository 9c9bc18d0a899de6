"""A layer whose rows are spread over devices computes what one device computes; here `jax.vmap` stands for the devices.

What devices exchange has the same meaning along a mapped axis; real (fake) devices: `tests/models/test_sharding.py`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from support.cases import some
from support.compare import assert_close
from support.parameters import random_mixer

from mom_jax.errors import InputError
from mom_jax.layers.mixer import MemoryMixer
from mom_jax.layers.mixer_output import MixerOutput
from mom_jax.ops.documents import DocumentRuns, count_documents
from mom_jax.ops.pieces import all_before

AXIS, PIECES, BATCH, TIME, HIDDEN = "sequence", 4, 2, 24, 8
# One rule for each recurrence that hands its states over: with convolutions, positions, token shift and sub-rows.
ABLE = {
    "gated_deltanet": {},
    "retnet": {"use_short_conv": False},
    "rwkv6": {"proj_low_rank_dim": 4, "decay_low_rank_dim": 4},
    "kda": {"use_short_conv": False},
    "gated_deltaproduct": {"use_short_conv": False},
}


def layer(rule: str, options: dict) -> MemoryMixer:
    """A small layer: three routed memories and a shared one of the default rule, one memory of any other."""
    several = {"num_memories": 3} if rule == "gated_deltanet" else {"mixture": False}
    return random_mixer(0.5, hidden_size=HIDDEN, head_dim=4, expand_v=1.0, memory_rule=rule, **several, **options)


def batch() -> tuple[jax.Array, jax.Array, DocumentRuns]:
    """Tokens, a mask and documents: one row begins with padding beyond a piece, one is a single document."""
    rng = np.random.default_rng(1)
    x, mask = rng.normal(size=(BATCH, TIME, HIDDEN)), rng.integers(0, 4, (BATCH, TIME)) > 0
    mask[0, :8] = False
    numbers = np.stack([np.zeros(TIME, int), np.cumsum(np.isin(np.arange(TIME), (3, 6, 13)))])
    documents = count_documents(numbers, mask)
    assert documents is not None
    return jnp.asarray(x, jnp.float32), jnp.asarray(mask, jnp.int32), documents


def cut(x: jax.Array) -> jax.Array:
    """[B, T, ...] to pieces [P, B, T / P, ...]."""
    return jnp.moveaxis(x.reshape(BATCH, PIECES, -1, *x.shape[2:]), 1, 0)


def joined(x: jax.Array) -> jax.Array:
    """The inverse of `cut`."""
    return jnp.moveaxis(x, 0, 1).reshape(BATCH, -1, *x.shape[3:])


def told(out: MixerOutput):
    """(output and router's logits, loads); without a router the output alone."""
    return ((out.y,), ()) if out.router is None else ((out.y, out.router.logits[0]), out.router.load)


def in_pieces(mixer: MemoryMixer, x: jax.Array, mask: jax.Array, documents: DocumentRuns | None):
    """Output, logits and loads, as devices compute them that hold a piece each."""
    mixer.sequence_axis = AXIS

    def piece(x, mask, index):
        of_piece = None if documents is None else DocumentRuns(index, documents.number)
        return told(mixer(x, mask, of_piece))

    index = jnp.zeros(mask.shape, jnp.int32) if documents is None else documents.index
    of_tokens, load = jax.vmap(piece, axis_name=AXIS)(cut(x), cut(mask), cut(index))
    return jax.tree.map(joined, of_tokens), jax.tree.map(lambda x: x[0], load)


def whole(mixer: MemoryMixer, x: jax.Array, mask: jax.Array, documents: DocumentRuns | None):
    """The same by one device."""
    return told(mixer(x, mask, documents))


@pytest.mark.parametrize("rule", some(ABLE, ("gated_deltanet",)))
def test_pieces_equal_the_whole(rule):
    """Outputs, router logits, loads and all gradients, with padding and packed documents, in float64."""
    graph, params = nnx.split(layer(rule, ABLE[rule]))
    x, mask, documents = batch()
    weight = np.random.default_rng(2).normal(size=x.shape)
    params, x = jax.tree.map(np.float64, (params, x))

    @functools.partial(jax.jit, static_argnums=0)
    def run(how, params, x):
        def loss(params, x):
            out = how(nnx.merge(graph, params), x, mask, documents)
            return jnp.sum(out[0][0] * weight), out

        return jax.value_and_grad(loss, (0, 1), has_aux=True)(params, x)

    with jax.enable_x64(True):
        assert_close(run(in_pieces, params, x), run(whole, params, x), 1e-12)


def test_without_documents_a_row_goes_on():
    """Also where each device has a single token."""
    graph, params = nnx.split(layer("gated_deltanet", {}))
    x, mask = (a[:, -PIECES:] for a in batch()[:2])
    run = jax.jit(lambda how, params: how(nnx.merge(graph, params), x, mask, None), static_argnums=0)
    assert_close(run(in_pieces, params), run(whole, params), 1e-5, atol=1e-6)


@pytest.mark.parametrize("pieces", [1, 2, 3, 5, 8])
def test_all_pieces_before_are_combined_in_order(pieces):
    """Affine maps of numbers, which do not commute."""
    rng = np.random.default_rng(pieces)
    maps = rng.normal(size=(2, pieces))
    before = jax.vmap(
        lambda a, b: all_before(lambda f, g: (f[0] * g[0], g[0] * f[1] + g[1]), (a, b), AXIS)[1], axis_name=AXIS
    )(*jnp.asarray(maps, jnp.float32))
    x, want = 0.0, []
    for a, b in maps.T:
        want.append(x)
        x = a * x + b
    np.testing.assert_allclose(before, want, atol=1e-5)


@pytest.mark.parametrize("rule", ["mesanet", "gsa", "titans"])
def test_others_refuse_by_name(rule):
    mixer = layer(rule, {})
    name, (graph, params), batched = mixer.rule.primitive.name, nnx.split(mixer), batch()
    with pytest.raises(InputError, match=rf"mesh\.sequence=4: must be 1: the recurrence {name} hands no state"):
        jax.eval_shape(lambda params: in_pieces(nnx.merge(graph, params), *batched), params)
