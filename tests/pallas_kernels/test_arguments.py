"""What kernels do not take is told in one line: sizes and dtypes that others have, and shapes that are wrong."""

import re

import jax.numpy as jnp
import pytest

from mom_jax.benchmarks.kernel_passes import OPERATORS, shapes
from pallas_kernels.chunks import Chunks, Unsupported
from pallas_kernels.tpu import calls

CASES = [(platform, name) for platform, found in OPERATORS.items() for name, x in found.items() if x.primitive]
ROWS, WIDE = (32, 2, 64), ((32, 2, 96), "float32")
NO_KERNEL = {
    r"K=96: the \w+ kernels take": {"q": WIDE, "k": WIDE},
    r"V=96: the \w+ kernels take": {"v": WIDE},
    r"chunk=8: the \w+ kernels take": {"segment": ((4,), "int32")},
    r"dtype=int8: the \w+ kernels take float32, bfloat16": {"q": (ROWS, "int8")},
    r"initial_state is bfloat16: the \w+ kernels take float32 here": {"initial_state": ((2, 2, 64, 64), "bfloat16")},
}
WRONG = {
    r"q has shape \(32, 128\): expected three axes": {"q": ((32, 128), "float32")},
    r"chunks.segment has 3 chunks: expected a divisor of the 32 rows": {"segment": ((3,), "int32")},
    r"initial_state has shape \(2, 2, 64, 128\): expected": {"initial_state": ((2, 2, 64, 128), "float32")},
    r"chunks.document has shape \(16,\): expected \(32,\)": {"document": ((16,), "int32")},
}


def each(cases):
    """One test for each kernel."""
    return pytest.mark.parametrize("platform, name", cases, ids=map("-".join, cases))


def rows_of(platform, name):
    """The shapes of an operator's rows."""
    return shapes(OPERATORS[platform][name].primitive, {"N": 32, "H": 2, "K": 64, "V": 64})


def call(platform, name, changes, **options):
    """Calls an operator with good arguments but for ``changes``."""
    rows = rows_of(platform, name)
    good = {n: (shape, "float32") for n, shape in rows.items()} | {"initial_state": ((2, 2, 64, 64), "float32")}
    good |= {"document": ((32,), "int32"), "segment": ((2,), "int32"), "runs": ((3, 3), "int32")}
    x = {n: jnp.zeros(*shape) for n, shape in (good | changes).items()}
    flags = jnp.zeros(x["segment"].shape, bool)
    chunks = Chunks(x["segment"], flags, flags, x["runs"], x["document"])
    run = OPERATORS[platform][name].load()
    return run(*(x[n] for n in rows), chunks, x["initial_state"], 1.0, **options)


@each(CASES)
def test_sizes_and_dtypes_without_a_kernel(platform, name):
    """`Unsupported`, which lets ``auto`` take XLA."""
    rows = {rf"{n} is int8: the \w+ kernels take": {n: (x, "int8")} for n, x in rows_of(platform, name).items()}
    rows.pop(r"q is int8: the \w+ kernels take")
    for message, changes in (NO_KERNEL | rows).items():
        with pytest.raises(Unsupported, match=f"^{message}"):
            call(platform, name, changes)


@each(CASES)
def test_shapes_that_do_not_fit(platform, name):
    """`ValueError` and not `Unsupported`: no other implementation would take them."""
    wrong = {n: (x[0] // 2, *x[1:]) for n, x in rows_of(platform, name).items() if n != "q"}
    rows = {f"{re.escape(f'{n} has shape {x}')}: expected": {n: (x, "float32")} for n, x in wrong.items()}
    for message, changes in (WRONG | rows).items():
        with pytest.raises(ValueError, match=f"^{message}") as error:
            call(platform, name, changes)
        assert not isinstance(error.value, Unsupported)


@each([case for case in CASES if case[0] == "gpu"])
def test_other_gpus(platform, name):
    """A generation without configurations."""
    with pytest.raises(Unsupported, match=r"^device=sm_70: the GPU kernels take sm_80, sm_90, sm_100, gfx942"):
        call(platform, name, {}, device="sm_70")


@each([case for case in CASES if case[0] == "tpu"])
def test_memory_of_the_device(platform, name, monkeypatch):
    """A TPU with too little VMEM is told how much is needed."""
    monkeypatch.setattr(calls, "device", lambda: calls.Device("small", 1 << 18))
    message = re.compile(r"^K=64, V=64, chunk=16 in float32 need \d+ MiB of VMEM, of which small has 0: take smaller")
    with pytest.raises(Unsupported, match=message):
        call(platform, name, {}, interpret=True)
