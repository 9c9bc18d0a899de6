"""The delta rule's kernels for Hopper, in Pallas's interpreter, which looks for races; beside those in Triton, and,
when asked for, beside single tokens on the cases of all recurrences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support import kernels
from support.compare import assert_close
from support.packed import Layout
from support.recurrences import DIRECTIONS, EXTREMES_BY_HEAD

from pallas_kernels.chunks import Chunks, Unsupported
from pallas_kernels.gpu import delta_rule, delta_rule_hopper, hopper

# Tokens of segments: odd, one, none; and one chunk more than they fill.
LENGTHS, SIZE, ROWS = (130, 1, 0), 128, 64


def example():
    """Rows, their chunks, the states that segments begin with, and cotangents."""
    rng = np.random.default_rng(0)
    used = [-(-length // ROWS) for length in LENGTHS]
    first = np.cumsum([0, *used])
    count, number = sum(used) + 1, len(LENGTHS)
    runs = [*sorted(zip(range(number), first, used, strict=False), key=lambda x: -x[2]), (number, count - 1, 1)]
    segment = np.repeat(range(number + 1), [*used, 1])
    inside = np.concatenate([np.arange(n * ROWS) < length for n, length in zip(used, LENGTHS, strict=True)])
    written = np.append(inside, np.zeros(ROWS, bool))[:, None]
    document = jnp.asarray(np.arange(count * ROWS) % ROWS >= 40, jnp.int32)
    flags = jnp.zeros(count, bool)
    chunks = Chunks(jnp.asarray(segment, jnp.int32), flags, flags, jnp.asarray(runs, jnp.int32), document)

    def rows(unit=False):
        x = rng.normal(size=(count * ROWS, 1, SIZE))
        return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True) if unit else x, jnp.bfloat16)

    g, beta = -rng.exponential(0.1, size=written.shape) * written, rng.uniform(0, 2, written.shape) * written
    states = [jnp.asarray(rng.normal(size=(number, 1, SIZE, SIZE)), jnp.float32) for _ in range(2)]
    inputs = rows(True), rows(True), rows(), jnp.asarray(g, jnp.float32), jnp.asarray(beta, jnp.float32)
    return inputs, chunks, states[0], (rows(), states[1])


def differentiated(module):
    """Outputs, final states and all gradients."""
    inputs, chunks, states, cotangents = example()
    run = lambda *x: module.delta_rule(*x[:5], chunks, x[5], SIZE**-0.5, interpret=True)  # noqa: E731
    results, pull = jax.vjp(run, *inputs, states)
    return results, pull(cotangents)


NEEDED = pytest.mark.skipif(
    jax.__version_info__[:2] < hopper.FIRST_JAX, reason="Mosaic GPU of this jax lacks what they need"
)


@NEEDED
@pytest.mark.exhaustive
def test_the_same_as_by_triton(capfd):
    """Values, states and gradients, up to the order of sums; nothing is read or written too early."""
    assert_close(differentiated(delta_rule_hopper), differentiated(delta_rule), 2**-7)
    assert "RACE" not in capfd.readouterr().out


@pytest.mark.parametrize(
    "changed, reason",
    [({"dtype": jnp.float32}, "dtype=float32"), ({"size": 64}, "K=64"), ({"device": "sm_100"}, "device=sm_100")],
)
def test_what_is_refused(changed, reason):
    """Triton's kernels take the rest."""
    dtype, size = changed.get("dtype", jnp.bfloat16), changed.get("size", SIZE)
    (*_, g, beta), chunks, _, _ = example()
    rows = jnp.zeros((*g.shape, size), dtype)
    with pytest.raises(Unsupported, match=reason):
        delta_rule_hopper.delta_rule(
            rows, rows, rows, g, beta, chunks, None, 1.0, device=changed.get("device", "sm_90")
        )


def test_an_older_jax(monkeypatch):
    """What its Mosaic GPU lacks is not asked of it."""
    monkeypatch.setattr(hopper, "FIRST_JAX", (99, 0))
    inputs, chunks, _, _ = example()
    with pytest.raises(Unsupported, match=r"need 99\.0"):
        delta_rule_hopper.delta_rule(*inputs, chunks, None, 1.0)


# The cases of `test_recurrences` in chunks of 64: ragged, empty and one-token segments, documents at a border of
# chunks, where a segment begins, inside and on the last token; each with what is changed, K, V and the tolerance.
CASES_OF_TOKENS = {
    "documents": (Layout((130, 0, 1, 64, 0), ROWS), (0, 5, 64, 130, 160, 194), {}, (128, 128), 2**-6),
    "more blocks": (Layout((70, 0), ROWS), (13,), {}, (256, 256), 2**-6),
    "unused chunks": (Layout((0, 0), ROWS, spare_chunks=3), (), {}, (128, 128), 0.0),
    **{
        name: (Layout((130, 0, 1), ROWS), (0, 5, 64), {"g": change}, (128, 128), 2**-6)
        for name, change in EXTREMES_BY_HEAD.items()
    },
    # what turns the state round carries errors of bfloat16 on (docs/kernels.md)
    **{name: (Layout((130, 0, 1), ROWS), (0, 5, 64), change, (128, 128), 0.25) for name, change in DIRECTIONS.items()},
}


@NEEDED
@pytest.mark.programs
@pytest.mark.parametrize("case", CASES_OF_TOKENS)
def test_equal_tokens(case, capfd):
    """Values, states and all gradients in float64 token by token; no race in the interpreter."""
    layout, resets, changes, sizes, tolerance = CASES_OF_TOKENS[case]
    inputs = kernels.example("delta rule", layout, sizes, **changes)
    half = {n: getattr(inputs.rows, n).astype(jnp.bfloat16) for n in "qkv"}
    rounded = inputs._replace(rows=inputs.rows._replace(**half))
    kernels.compare("mosaic", "delta rule", rounded, layout, resets, tolerance=tolerance, atol=1e-6)
    assert "RACE" not in capfd.readouterr().out
