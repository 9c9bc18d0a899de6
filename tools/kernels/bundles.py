"""What a v5e's core does in the operators' TPU kernels: bundles of instructions, as libtpu schedules them.

A bundle is what the core starts in one cycle; waiting for memory is not in it. Kernels have no loops inside a step of
their grid, so the bundles of the program are those of a step. K = V = 256 in bfloat16, forward and backward in
training. ``bundles.json`` holds what was counted last, and a test compares.

    JAX_PLATFORMS=cpu python -m tools.kernels.bundles [OPERATOR ...]      the record anew, and its table
"""

import json
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

from mom_jax.benchmarks.kernel_passes import Case, training
from mom_jax.planning.hlo import read, scheduled
from mom_jax.planning.targets import compiled, mesh
from tools.kernels.equations import calls

RECORD = Path(__file__).parent / "bundles.json"
_KERNELS = {"grouped_matmul": ("products", "gradient of rows", "gradients of weights")}
_OF_RECURRENCES = "forward", "states", "backward"


class Bundles(NamedTuple):
    """A kernel's step."""

    rows: int  # times heads
    bundles: int
    multiplying: float  # share of the matrix units' time that is used
    spilled: int  # registers stored because there are too few


def counted(operator: str) -> list[Bundles]:
    """An operator's kernels, in order. In a process that has not loaded libtpu."""
    with tempfile.TemporaryDirectory() as place:
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={place} --xla_jf_dump_llo_text=true"  # read as it is loaded
        return _counted(operator, Path(place))


def _counted(operator: str, place: Path) -> list[Bundles]:
    function, arguments = training(Case("tpu", operator, 256, "bfloat16"))
    program = read(compiled(mesh("v5e:2x2"), function, *arguments).as_text())
    names = [x.name.lstrip("%") for _, x, _ in scheduled(program) if "tpu_custom_call" in x.attributes]
    names.sort(key=lambda name: int(re.findall(r"\.(\d+)", name)[0]))  # as they were traced
    rows = map(_rows, calls("pallas_call", function, *arguments))
    return [Bundles(n, *_schedule(place, name)) for n, name in zip(rows, names, strict=True)]


def _rows(equation: Any) -> int:
    """Rows of a step, times heads."""
    return max(math.prod(shape[:-1]) for shape in _block_shapes(equation))


def _block_shapes(equation: Any) -> Iterator[tuple[int, ...]]:
    """Blocks of rows of the kernel's operands: [heads, rows, channels] or [rows, channels]."""
    for mapping in equation.params["grid_mapping"].block_mappings:
        sizes = [getattr(n, "block_size", n) for n in mapping.block_shape]
        if all(isinstance(n, int) for n in sizes):
            yield tuple(sizes)


def _schedule(place: Path, name: str) -> tuple[int, float, int]:
    """Bundles, the matrix units' share, spills."""
    (file,) = place.glob(f"*-{name}-*final_hlo-static-per-bundle-utilization.txt")
    lines = file.read_text(encoding="utf-8").splitlines()
    units, capacity = re.split(r",\s*", lines[1]), [int(x) for x in lines[2].split()]
    steps = [[int(x) for x in line.split()] for line in lines[4:] if line.strip()]
    used = dict(zip(units, map(sum, zip(*steps, strict=True)), strict=True))
    busy = used["MXU"] / (capacity[units.index("MXU")] * len(steps))
    return len(steps), round(busy, 2), used["VSTORE:SPILL"]


def lines(record: dict[str, list[Bundles]]) -> Iterator[str]:
    """The table of a record."""
    names = "operator", "kernel", "rows x heads of a step", "bundles", "for each row and head", "matrix units busy"
    yield f"| {' | '.join((*names, 'spilled'))} |"
    yield "|---" * 7 + "|"
    for operator, found in record.items():
        for name, x in zip(_KERNELS.get(operator, _OF_RECURRENCES), found, strict=True):
            cells = f"{x.rows} | {x.bundles:,} | {x.bundles / x.rows:.1f} | {100 * x.multiplying:.0f} % | {x.spilled:,}"
            yield f"| {operator} | {name} | {cells} |"


def recorded() -> dict[str, list[Bundles]]:
    """What was counted last."""
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    return {operator: [Bundles(**x) for x in found] for operator, found in record.items()}


def main() -> None:
    """Counts anew, each operator in a process of its own."""
    record = recorded()
    for operator in sys.argv[1:] or record:
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            record[operator] = process.submit(counted, operator).result()
    kept = {operator: [x._asdict() for x in found] for operator, found in record.items()}
    RECORD.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print("\n".join(lines(record)))


if __name__ == "__main__":
    main()
