"""What kernels do not take is told in one line: sizes and dtypes that others have, and shapes that are wrong."""

import re

import jax.numpy as jnp
import pytest
from support.packed import Layout

from mom_jax.ops.dispatch import as_chunks
from pallas_kernels.chunks import Unsupported
from pallas_kernels.gpu.delta_rule import delta_rule as gpu_delta_rule
from pallas_kernels.gpu.scalar_decay import scalar_decay as gpu_scalar_decay
from pallas_kernels.gpu.vector_decay import vector_decay as gpu_vector_decay
from pallas_kernels.tpu import calls
from pallas_kernels.tpu.delta_rule import delta_rule
from pallas_kernels.tpu.rank_one_decay import rank_one_decay
from pallas_kernels.tpu.scalar_decay import scalar_decay
from pallas_kernels.tpu.vector_decay import vector_decay

# Each operator with the further arguments between q, k, v and the chunks.
OPERATORS = {
    "tpu delta": (delta_rule, ("gate", "gate")),
    "tpu scalar": (scalar_decay, ("gate",)),
    "tpu vector": (vector_decay, ("gates", "bonus")),
    "tpu rank one": (rank_one_decay, ("gates", "k", "k")),
    "gpu delta": (gpu_delta_rule, ("gate", "gate")),
    "gpu scalar": (gpu_scalar_decay, ("gate",)),
    "gpu vector": (gpu_vector_decay, ("gates", "bonus")),
}
ROWS = (32, 2, 64)
GOOD = {
    "q": (ROWS, "float32"), "k": (ROWS, "float32"), "v": (ROWS, "float32"), "state": ((2, 2, 64, 64), "float32"),
    "gate": (ROWS[:2], "float32"), "gates": (ROWS, "float32"), "bonus": (ROWS[1:], "float32"),
    "document": ((32,), "int32"), "segment": ((2,), "int32"),
}  # fmt: skip
WIDE = ((32, 2, 96), "float32")
NO_KERNEL = {
    r"K=96: the \w+ kernels take": {"q": WIDE, "k": WIDE},
    r"V=96: the \w+ kernels take": {"v": WIDE},
    r"chunk=8: the \w+ kernels take": {"segment": ((4,), "int32")},
    r"dtype=int8: the \w+ kernels take float32, bfloat16": {"q": (ROWS, "int8")},
    r"k is int8: the \w+ kernels take": {"k": (ROWS, "int8")},
    r"initial_state is bfloat16: the \w+ kernels take float32 here": {"state": ((2, 2, 64, 64), "bfloat16")},
}
WRONG = {
    r"q has shape \(32, 128\): expected three axes": {"q": ((32, 128), "float32")},
    r"chunks.segment has 3 chunks: expected a divisor of the 32 rows": {"segment": ((3,), "int32")},
    r"k has shape \(16, 2, 64\): expected \(32, 2, 64\)": {"k": ((16, 2, 64), "float32")},
    r"initial_state has shape \(2, 2, 64, 128\): expected": {"state": ((2, 2, 64, 128), "float32")},
    r"chunks.document has shape \(16,\): expected \(32,\)": {"document": ((16,), "int32")},
}


def call(name, changes, **options):
    """Calls an operator with good arguments but for ``changes``."""
    x = {argument: jnp.zeros(*shape) for argument, shape in (GOOD | changes).items()}
    operator, others = OPERATORS[name]
    chunks = as_chunks(Layout((32,), 16, spare_chunks=0).table())._replace(document=x["document"], segment=x["segment"])
    flags = jnp.zeros(x["segment"].shape, bool)
    chunks = chunks._replace(first=flags, last=flags)
    return operator(x["q"], x["k"], x["v"], *(x[o] for o in others), chunks, x["state"], 1.0, **options)


@pytest.mark.parametrize("name", OPERATORS)
def test_sizes_and_dtypes_without_a_kernel(name):
    """`Unsupported`, which lets ``auto`` take XLA."""
    for message, changes in NO_KERNEL.items():
        with pytest.raises(Unsupported, match=f"^{message}"):
            call(name, changes)


@pytest.mark.parametrize("name", OPERATORS)
def test_shapes_that_do_not_fit(name):
    """`ValueError` and not `Unsupported`: no other implementation would take them."""
    for message, changes in WRONG.items():
        with pytest.raises(ValueError, match=f"^{message}") as error:
            call(name, changes)
        assert not isinstance(error.value, Unsupported)


@pytest.mark.parametrize("name", [name for name in OPERATORS if name.startswith("gpu")])
def test_other_gpus(name):
    """A generation without parameters."""
    with pytest.raises(Unsupported, match=r"^device=sm_70: the GPU kernels take sm_80, sm_90, sm_100, gfx942"):
        call(name, {}, device="sm_70")


@pytest.mark.parametrize("name", [name for name in OPERATORS if name.startswith("tpu")])
def test_memory_of_the_device(name, monkeypatch):
    """A TPU with too little VMEM is told how much is needed."""
    monkeypatch.setattr(calls, "device", lambda: calls.Device("small", 1 << 18))
    message = re.compile(r"^K=64, V=64, chunk=16 in float32 need \d+ MiB of VMEM, of which small has 0: take smaller")
    with pytest.raises(Unsupported, match=message):
        call(name, {}, interpret=True)
