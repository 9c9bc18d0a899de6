"""The kernels of every recurrence, interpreted on the host: values, states and all gradients, token by token."""

import numpy as np
from support.kernels import CASES, KERNELS, PLATFORMS, compare, each, example
from support.packed import Layout
from support.primitives import OF_KERNELS
from support.recurrences import DIRECTIONS, EXTREMES_BY_HEAD, FEW_CHUNKS, FEW_DOCUMENTS

# decays of the kinds that kernels have, and a product that decides what is written
FIRST = [case for case in CASES if case[1] in ("no decay", "vector decay", "delta rule")]


@each(CASES, FIRST)
def test_kernels_equal_tokens(platform, name):
    """Empty, one-token and ragged segments with documents; then log gates from 0 to -1e4, alone and among weak ones,
    once for each kernel.

    Gradients of gates that let nothing through are 0 in theory.
    """
    layout, sizes, gates = Layout(FEW_CHUNKS, 16), PLATFORMS[platform].smallest, OF_KERNELS[name].gates
    compare(platform, name, example(name, layout, sizes), layout, FEW_DOCUMENTS)
    for extreme in EXTREMES_BY_HEAD.values() if (platform, name) in KERNELS else ():
        inputs = example(name, layout, sizes, **dict.fromkeys(gates, extreme))
        compare(platform, name, inputs, layout, FEW_DOCUMENTS, atol=1e-6)


@each([case for case in CASES if "beta" in OF_KERNELS[case[1]].rows])
def test_keys_of_one_direction(platform, name):
    """Nearly equal keys, and equal ones written with a strength of 2, which turn the state round at every token."""
    layout, sizes = Layout(FEW_CHUNKS, 16), PLATFORMS[platform].smallest
    for direction, change in DIRECTIONS.items():
        # what the equations of a chunk with a gate for each channel lose in float32 where the state turns round: 2e-5
        tolerance = 5e-5 if (name, direction) == ("kda", "equal, strength 2") else 1e-5
        compare(platform, name, example(name, layout, sizes, **change), layout, FEW_DOCUMENTS, tolerance=tolerance)


@each(KERNELS)
def test_nothing_but_unused_chunks(platform, name):
    """Segments without rows keep their states and pass their gradients on; as many as in the first test."""
    layout = Layout((0,) * len(FEW_CHUNKS), 16, spare_chunks=Layout(FEW_CHUNKS, 16).rows // 16)
    (o, _), _ = compare(platform, name, example(name, layout, PLATFORMS[platform].smallest), layout, ())
    assert not np.any(o)
