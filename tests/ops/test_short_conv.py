"""The short convolution over packed segments against a loop over single segments, in float64."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.packed import Layout
from support.recurrences import with_gradients

from mom_jax.errors import InputError
from mom_jax.ops.short_conv import conv_state, short_conv

CASES = {
    "ragged": ((7, 0, 1, 2, 9, 3), ()),
    "documents": ((7, 0, 1, 2, 9, 3), (0, 3, 4, 7, 9, 12, 18, 19)),
    "late documents": ((5, 12), (4, 16)),
    "one token each": ((1, 1, 1), (1,)),
    "first segment empty": ((0, 4, 0), (0, 1, 2, 3)),
}


def example(lengths, taps, width=5, seed=0):
    """x, weight and state in float32."""
    rng = np.random.default_rng(seed)
    shapes = (sum(lengths), width), (width, taps), (len(lengths), taps - 1, width)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def packed(layout, resets, x, weight, state):
    """Outputs of the tokens, and the new state."""
    packing, rows = layout.packing(resets), layout.pack(x)
    y = short_conv(rows, weight, packing, state)[layout.index]
    return y, conv_state(rows, packing, state)


def convolution(x, weight, state, lengths: Sequence[int], resets: Sequence[int]):
    """Causal convolution and SiLU of tokens [tokens, D], segment by segment, and each one's last inputs.

    ``state`` [S, W-1, D] holds the inputs before each segment; a reset hides everything before it.
    """
    taps, outputs, states, end = weight.shape[1], [], [], 0
    for s, n in enumerate(lengths):
        begin, end = end, end + n
        seen = jnp.concatenate([state[s], x[begin:end]])
        alive_from = 0
        for i in range(n):
            if begin + i in resets:
                alive_from = taps - 1 + i
            window = [
                seen[taps - 1 + i - w] * weight[:, taps - 1 - w] for w in range(taps) if taps - 1 + i - w >= alive_from
            ]
            outputs.append(jax.nn.silu(sum(window)))
        keep = jnp.arange(len(seen)) >= alive_from
        states.append(jnp.where(keep[:, None], seen, 0.0)[len(seen) - (taps - 1) :])
    return jnp.stack(outputs), jnp.stack(states)


@pytest.mark.parametrize(
    "case,taps,chunk", [*((case, 4, 4) for case in CASES), ("ragged", 1, 4), ("documents", 2, 4), ("documents", 4, 64)]
)
def test_equals_a_loop(case, taps, chunk):
    """Values, new states and the gradients of x, weight and state."""
    lengths, resets = CASES[case]
    arguments, layout = example(lengths, taps), Layout(lengths, chunk)
    got = jax.jit(lambda a: with_gradients(lambda a: packed(layout, resets or None, *a), a))(arguments)
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda a: np.asarray(a, np.float64), arguments)
        reference = jax.jit(lambda a: with_gradients(lambda a: convolution(*a, lengths, resets), a))
        want = jax.device_get(reference(wide))
    assert_close(got, want, 1e-5)


def test_without_state_is_a_state_of_zeros():
    """Leaving the state out reads zeros before every segment."""
    lengths = CASES["ragged"][0]
    x, weight, state = example(lengths, 4)
    layout = Layout(lengths, 4)
    run = jax.jit(lambda state: short_conv(layout.pack(x), weight, layout.packing(), state)[layout.index])
    np.testing.assert_array_equal(run(None), run(jnp.zeros_like(state)))


@pytest.mark.parametrize("cut", [0, 1, 6, 7])
def test_hand_over_anywhere(cut):
    """Two calls joined by the state equal one, wherever they are cut; a document may begin at the cut."""
    resets = (6,)
    x, weight, state = example((9,), 4)
    whole, final = packed(Layout((9,), 4), resets, x, weight, state)
    outputs = []
    for begin, end in ((0, cut), (cut, 9)):
        part = tuple(r - begin for r in resets if begin <= r < end)
        y, state = packed(Layout((end - begin,), 4), part, x[begin:end], weight, state)
        outputs.append(y)
    assert_close((jnp.concatenate(outputs), state), (whole, final), 1e-6)


def test_padding_and_other_segments_do_not_matter():
    """Whatever lies in padding rows changes no token's output and no state."""
    lengths = (3, 0, 6)
    x, weight, state = example(lengths, 4)
    layout = Layout(lengths, 4)
    clean = layout.pack(np.asarray(x))
    dirty = np.full_like(clean, 99.0)
    dirty[layout.index] = x

    @jax.jit
    def run(rows):
        packing = layout.packing()
        return short_conv(rows, weight, packing, state)[layout.index], conv_state(rows, packing, state)

    for of_clean, of_dirty in zip(run(clean), run(dirty), strict=True):
        np.testing.assert_array_equal(of_clean, of_dirty)


def test_bfloat16():
    """bfloat16 inputs give bfloat16 outputs within two roundings (2^-7 of the largest value)."""
    lengths = CASES["ragged"][0]
    x, weight, state = example(lengths, 4)
    x = x.astype(jnp.bfloat16)
    y, new = packed(Layout(lengths, 4), None, x, weight, state.astype(jnp.bfloat16))
    want, _ = packed(
        Layout(lengths, 4), None, x.astype(jnp.float32), weight, state.astype(jnp.bfloat16).astype(jnp.float32)
    )
    assert y.dtype == new.dtype == jnp.bfloat16
    assert_close(y, want, 2**-7)


@pytest.mark.parametrize("impl", ["xla", "gpu", "tpu"])
def test_no_norm_without_heads(impl):
    """Refused alike for every implementation, before one is chosen."""
    x, weight, _ = example((3,), 4)
    layout = Layout((3,), 4)
    with pytest.raises(InputError, match=r"^head=None: normalise is each head's norm: say how many channels"):
        short_conv(layout.pack(x), weight, layout.packing(), normalise=True, impl=impl)
