"""The VMEM that TPU kernels ask for, counted by hand."""

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels.tpu import calls, grouped_matmul, recurrence
from pallas_kernels.tpu.delta_rule_calls import KERNELS, Sizes, vmem_bytes

C, K, V = 128, 256, 256
ROWS, GATE, DOCUMENTS, INVERSE, STATE = 2 * C * K, 4 * 8 * C, 4 * 8 * C, 2 * C * C, 4 * K * V  # of one head
BLOCKS = {
    "forward": 4 * ROWS + 2 * GATE + INVERSE + 2 * STATE,  # q, k, v, o; g, beta; inverse; initial, final
    # k, v, errors; g, beta; inverse; initial, and states in half precision
    "borders": 3 * ROWS + 2 * GATE + INVERSE + STATE + STATE // 2,
    # q, k, errors, do, dq, dk, dv; gates; states, dfinal, dinitial
    "reverse": 7 * ROWS + 4 * GATE + INVERSE + 2 * STATE + STATE // 2,
}
SPILLED = {"forward": (1, 2, 8), "borders": (1, 1, 2), "reverse": (5, 6, 12)}  # arrays [K, V], [C, K] and [C, C]


@pytest.mark.parametrize("heads", [1, 4])
@pytest.mark.parametrize("name", KERNELS)
def test_delta_rule(name, heads):
    """Two blocks of every operand, one of gates filling 8 rows of a tile; the state; what is spilled."""
    states, rows, squares = SPILLED[name]
    inside = 4 * (states * K * V + rows * C * K + squares * C * C)
    sizes = Sizes(heads=4, chunks=8, rows=C, keys=K, values=V, segments=3, dtype="bfloat16")
    assert vmem_bytes(name, sizes, heads) == heads * (2 * BLOCKS[name] + STATE + inside) + 2 * DOCUMENTS


def test_decays():
    """The same of the kernels that recurrences share: rows and a gate in, rows out; all gradients in reverse."""
    rows = jax.ShapeDtypeStruct((2, C, K), jnp.bfloat16)
    inputs = {"q": rows, "k": rows, "v": rows, "g": jax.ShapeDtypeStruct((2, 1, 1, C), jnp.float32)}
    forward, backward = recurrence.vmem_bytes(inputs, C, 2, (4, 48))
    assert forward == 2 * (2 * (4 * ROWS + GATE + 2 * STATE) + STATE + 4 * 4 * C * K) + 2 * DOCUMENTS
    # the state that enters a chunk comes in the dtype of the rows
    blocks = 7 * ROWS + 2 * GATE + 2 * STATE + STATE // 2
    assert backward == 2 * (2 * blocks + STATE + 48 * 4 * C * K) + 2 * DOCUMENTS


def test_small_channels_fill_lanes():
    """64 channels take the 128 lanes of a tile, and half precision 16 rows of it."""
    assert calls.tile_bytes((2, 24, 64), jnp.float32) == 2 * 24 * 128 * 4
    assert calls.tile_bytes((None, 24, 64), jnp.bfloat16) == 32 * 128 * 2


def test_every_core_has_a_block(monkeypatch):
    """Where two cores share a program, each gets half the heads, and half the columns of wide weights."""
    x, weights = jnp.zeros((64, 256)), [jnp.zeros((2, 256, n)) for n in (3, 512, 256, 128)]
    for cores, heads, launches, blocks in ((1, [1, 2, 4], [[0, 1, 2, 3]], 1), (2, [1, 2], [[1, 2], [0, 3]], 2)):
        device = calls.Device("v5p", 64 << 20, cores)
        monkeypatch.setattr(calls, "device", lambda device=device: device)
        assert calls.block_heads(4, 4) == heads and calls.block_heads(1, 4) == [1]
        assert grouped_matmul._launches(x, weights) == launches
        together = [weights[i] for i in launches[0]]
        plans = [grouped_matmul._Plan.make(name, x, together) for name in grouped_matmul.CONFIGS]
        assert {plan.blocks for plan in plans} == {blocks}
