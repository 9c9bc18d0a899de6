"""What the programs of the recurrences' GPU kernels ask for: bytes through L2, beside those that come from HBM.

Triton's interpreter runs every kernel with the blocks of an H100 and counts what each load and store touches, however
often: nothing is shared by programs, or kept in an SM from one load to the next. Through HBM goes what a kernel loads,
and what it stores, once, in sectors. All in bytes for each row and head, K = V = 256 in bfloat16, forward and
backward in training.

    TRITON_INTERPRET=1 python -m tools.kernels.requests [OPERATOR ...]      the record ``traffic.json`` anew
"""

import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np

from mom_jax.benchmarks.kernel_passes import CHUNK, HEADS, OPERATORS, Case, training
from pallas_kernels.gpu import launch

RECORD = Path(__file__).parent / "traffic.json"
SECTOR = 32  # bytes that HBM is read and written by
CHUNKS = 2  # the delta rule's gradients go by pairs
Traffic = dict[str, dict[str, float]]  # bytes by kernel, then by "HBM" and "L2"


def traffic(operator: str) -> Traffic:
    """Bytes for each row and head, by kernel; one that is launched twice has those of both.

    Needs a process that was started with ``TRITON_INTERPRET=1``.
    """
    function, arguments = training(Case("gpu", operator, 256, "bfloat16"), CHUNKS, device="sm_90", interpret=True)
    counted: Traffic = {}
    with mock.patch.object(launch, "_Interpreted", _counting(counted)):
        jax.block_until_ready(jax.jit(function)(*jax.tree.map(_zeros, arguments)))
    rows = CHUNKS * CHUNK["gpu"] * HEADS
    return {name: {where: round(x / rows) for where, x in of.items()} for name, of in counted.items()}


def lines(record: dict[str, Traffic]) -> Iterator[str]:
    """The table of docs/kernels.md, in KB."""
    yield "| operator | kernel | HBM, KB | L2, KB |"
    yield "|---|---|---|---|"
    for operator, kernels in record.items():
        for kernel, of in kernels.items():
            yield f"| {operator} | `{kernel}` | {of['HBM'] / 1024:.1f} | {of['L2'] / 1024:.1f} |"
        hbm, l2 = (sum(of[where] for of in kernels.values()) / 1024 for where in ("HBM", "L2"))
        yield f"| {operator} | all | {hbm:.1f} | {l2:.1f} |"


def _zeros(shape):
    """Zeros; of the chunks' table, one segment that has all chunks."""
    if shape.shape == (2, 3):
        return np.array([[0, 0, CHUNKS], [1, CHUNKS, 0]], np.int32)
    return np.zeros(shape.shape, shape.dtype)


def _counting(counted):
    one_at_a_time = threading.Lock()

    class Counting(launch._Interpreted):
        """A launch that counts."""

        def __call__(self, *inputs: Any) -> list[np.ndarray]:
            from triton.runtime import interpreter

            of = counted.setdefault(self.kernel.fn.__name__, {"HBM": 0, "L2": 0})
            with one_at_a_time:
                memory = _Memory(interpreter._interpreter)
                with mock.patch.object(interpreter, "_interpreter", memory):
                    outputs = super().__call__(*inputs)
                of["HBM"] += memory.once()
                of["L2"] += memory.asked
            return outputs

    return Counting


class _Memory:
    """The interpreter's memory; counts the bytes that are asked for, and keeps which sectors are touched."""

    def __init__(self, memory: Any):
        self._memory, self.asked = memory, 0
        self._touched: dict[str, list[np.ndarray]] = {"loaded": [], "stored": []}

    def once(self) -> int:
        """Bytes of all sectors that were loaded, and of those that were stored."""
        return SECTOR * sum(np.unique(np.concatenate(x)).size for x in self._touched.values() if x)

    def load(self, pointers: np.ndarray, mask: np.ndarray, other: np.ndarray, dtype: Any) -> np.ndarray:
        self._touch("loaded", pointers[mask], dtype)
        return self._memory.load(pointers, mask, other, dtype)

    def store(self, pointers: np.ndarray, value: np.ndarray, mask: np.ndarray) -> None:
        self._touch("stored", pointers[mask], value.dtype)
        return self._memory.store(pointers, value, mask)

    def _touch(self, how: str, pointers: np.ndarray, dtype: Any) -> None:
        self.asked += pointers.size * np.dtype(dtype).itemsize
        self._touched[how].append(np.unique(pointers // SECTOR))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)


def main() -> None:
    """Counts anew."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for operator in sys.argv[1:] or [name for name, of in OPERATORS["gpu"].items() if of.primitive is not None]:
        record[operator] = traffic(operator)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(record)))


if __name__ == "__main__":
    main()
