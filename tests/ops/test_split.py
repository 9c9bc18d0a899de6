"""Segments cut in pieces compute what they computed whole. Pieces on several devices: `tests/layers/test_pieces.py`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.compare import assert_close
from support.packed import Layout
from support.primitives import PRIMITIVES
from support.recurrences import DOCUMENTS, RAGGED, TOLERANCE, outputs, with_gradients

from mom_jax.ops import primitives, split
from mom_jax.ops.dispatch import Target

H100 = Target("gpu", "NVIDIA H100", "sm_90")


def measured(case, run, inputs):
    """Outputs, final states and gradients; segments of up to five chunks, some without a token."""

    def form(rows, shared, table, state, valid):
        return run(case.primitive, case.packed(rows, shared), table, state)

    function = functools.partial(outputs, form, Layout(RAGGED, 8), DOCUMENTS)
    return jax.jit(functools.partial(with_gradients, function))(inputs)


def test_pieces_equal_the_whole():
    """Values, states and gradients, with documents that begin inside a piece, at its border, and in none.

    What other recurrences make of the state before is tested with pieces on devices.
    """
    case = PRIMITIVES["delta rule"]
    inputs = case.example(sum(RAGGED), len(RAGGED))
    pieces = measured(case, functools.partial(split.in_pieces, scale=0.5, impl="xla", length=2), inputs)
    assert_close(pieces, measured(case, functools.partial(_whole, scale=0.5, impl="xla"), inputs), TOLERANCE)


def _whole(primitive, *arguments, **options):
    return primitive(*arguments, **options)


def shapes(case, tokens, segments, heads, size):
    """Rows without numbers, and a table of equal segments in chunks of 64."""
    layout = Layout((tokens,) * segments, 64)
    rows = jax.eval_shape(lambda: case.primitive.rows(**jax.tree.map(jnp.asarray, case.example(2, 1)["rows"])))
    grown = {
        name: jax.ShapeDtypeStruct((layout.rows, heads, *[size] * (x.ndim - 2)), jnp.bfloat16)
        for name, x in rows._asdict().items()
    }
    return case.primitive.rows(**grown), layout.table(None)


@pytest.mark.parametrize(
    ("tokens", "segments", "heads", "size", "pieces"),
    [
        pytest.param(65_536, 1, 4, 256, 7, id="one long row"),
        pytest.param(65_536, 1, 8, 128, 7, id="more heads of half the size"),
        pytest.param(65_536, 5, 4, 256, None, id="memories enough"),
        pytest.param(2_048, 1, 4, 256, None, id="too short"),
    ],
)
def test_rows_are_cut_where_a_gpu_has_too_few_programs(tokens, segments, heads, size, pieces):
    """A program for each multiprocessor, and no more."""
    rows, table = shapes(PRIMITIVES["delta rule"], tokens, segments, heads, size)
    length = split.piece_length(PRIMITIVES["delta rule"].primitive, rows, table, H100)
    assert (None if length is None else -(-tokens // 64 // length)) == pieces
    for device in (Target("tpu", "TPU v5 lite"), Target("cpu", "cpu"), Target("gpu", "GTX 1080", "sm_61")):
        assert split.piece_length(PRIMITIVES["delta rule"].primitive, rows, table, device) is None


def test_what_can_be_cut_can_be_put_together():
    """A recurrence that asks for it says what becomes of the state before a piece, and has a kernel on GPUs."""
    able = [primitive for primitive in primitives.PRIMITIVES.values() if primitive.split]
    assert len(able) == 4
    assert all(primitive.handover and "gpu" in primitive.kernels for primitive in able)


def test_a_long_row_on_a_gpu(monkeypatch):
    """`run` cuts there what it leaves whole here, and nobody sees a difference."""
    case = PRIMITIVES["delta rule"]
    layout, inputs = Layout((140,), 2), case.example(140, 1)
    rows = case.packed(jax.tree.map(layout.pack, inputs["rows"]), {})
    run = functools.partial(split.run, case.primitive, rows, layout.table(None), None, 0.5)
    whole = jax.jit(lambda: run("auto"))()
    monkeypatch.setattr(split, "target", lambda: H100)
    cut = jax.jit(lambda: run("auto"))()
    assert whole[1] is cut[1] is None
    assert_close(cut[0], whole[0], TOLERANCE)
    assert np.any(cut[0] != whole[0]), "the row was not cut"
