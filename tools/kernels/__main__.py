"""Compiles every kernel to machine code, without the hardware, and writes the tables of docs/kernels.md.

    python -m tools.kernels [gpu] [tpu] [traffic] [train] [programs] [--only PATTERN]

    gpu       registers, spilled bytes and shared memory of each Triton kernel on four generations; with --only of
              those alone whose "operator kernel size dtype generation" has the regular expression in it
    tpu       libtpu's verdict on each operator, forward and backward, for three generations
    traffic   bytes that move and operations, for each row and head, from the kernels' own operands
    train     the training step of mom-340m for four v5e, kernels inside
    programs  launches, bytes and memory of whole programs on an H100 and a v5e, also into counts.json

Needs Python 3.12, no GPU and no TPU. Everything takes about half an hour on two cores.
"""

import argparse
import datetime
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from tools.install_compilers import FOLDER

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.pop("TRITON_INTERPRET", None)
sys.path.append(str(FOLDER))  # before JAX looks for what lowers to CUDA

import jax
from rich.progress import track

from mom_jax.benchmarks.kernel_passes import CHUNK, CHUNKS, DTYPES, HEADS, OPERATORS, SIZES, Case, training
from mom_jax.planning.step import sized, traced_step
from mom_jax.planning.targets import compiled, mesh
from mom_jax.training.config import get_train_preset
from mom_jax.training.program import Program
from pallas_kernels.chunks import Unsupported
from tools.kernels import gpu, programs, tpu
from tools.kernels.equations import calls, moved_bytes

PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"


def cases(platform: str) -> list[Case]:
    """Every operator of a platform at every size and dtype."""
    return [Case(platform, name, k, t) for name in OPERATORS[platform] for k in SIZES for t in DTYPES]


def gpu_table(only: str = "") -> Iterator[str]:
    """A line for each kernel, size and dtype; cells in which ``only`` is not found as the page has them."""
    yield f"| operator | kernel | K = V | rows | {' | '.join(gpu.SHARED)} |"
    yield "|---" * (4 + len(gpu.SHARED)) + "|"
    before = gpu.recorded(PAGE.read_text(encoding="utf-8"))
    for case in track(cases("gpu"), description="GPU"):
        rows = before.get((case.operator, case.size, case.dtype), ()) if only else ()
        stale = [device for device in gpu.SHARED if not rows or any(_fits(only, case, row, device) for row in rows)]
        kernels = {device: _launches(case, device) for device in stale}
        names = max(([x.name for x in of] for of in kernels.values()), key=len, default=[]) or [x for x, _ in rows]
        for place, name in enumerate(names):
            cells = []
            for device in gpu.SHARED:
                kept = bool(rows) and not _fits(only, case, rows[place], device)
                cells.append(rows[place][1][device] if kept else _gpu_cell(kernels[device], place, device))
            yield f"| {case.operator} | `{name}` | {case.size} | {case.dtype} | {' | '.join(cells)} |"


def _launches(case, device):
    """None where the kernels refuse a case."""
    try:
        return gpu.launches(*_program(case, device=device))
    except Unsupported:
        return []


def _fits(only, case, row, device):
    return re.search(only, f"{case.operator} {row[0]} {case.size} {case.dtype} {device}") is not None


def _program(case, **options):
    function, arguments = training(case, **options)
    return function, *arguments


def _gpu_cell(launches, place, device):
    if not launches:
        return "XLA"
    made = gpu.compiled(launches[place], device)
    spilled = f", {made.spills} B spilled" if made.spills else ""
    return f"{made.registers}{spilled}, {made.shared / 1024:.0f} KB"


def tpu_table() -> Iterator[str]:
    """A line for each operator, size and dtype."""
    yield f"| operator | K = V | rows | VMEM asked for, MiB | {' | '.join(tpu.TOPOLOGIES)} |"
    yield "|---" * (4 + len(tpu.TOPOLOGIES)) + "|"
    for case in track(cases("tpu"), description="TPU"):
        cells, limits_of_cases = [], set()
        for generation in tpu.TOPOLOGIES:
            chip, begin = mesh(tpu.TOPOLOGIES[generation]), time.perf_counter()
            compiled(chip, *_program(case))
            cells.append(f"{time.perf_counter() - begin:.0f} s")
            limits_of_cases.add(tuple(tpu.vmem_limits(chip, *_program(case))))
        limits = " or ".join(", ".join(f"{x / 2**20:.0f}" for x in limits) for limits in sorted(limits_of_cases))
        yield f"| {case.operator} | {case.size} | {case.dtype} | {limits} | {' | '.join(cells)} |"


PRIMITIVES = {"gpu": "triton_kernel_call", "tpu": "pallas_call"}


def traffic_table() -> Iterator[str]:
    """A line for each operator and platform, at K = V = 256 in bfloat16."""
    yield "| operator | platform | inputs, outputs and gradients once, KB | kernels move, KB | kernels |"
    yield "|---|---|---|---|---|"
    for platform, operators in OPERATORS.items():
        rows = CHUNKS * CHUNK[platform] * HEADS * 1024
        for operator in operators:
            function, arguments = training(Case(platform, operator, 256, "bfloat16"))
            kernel_calls = list(calls(PRIMITIVES[platform], function, *arguments))
            moved = sum(map(moved_bytes, kernel_calls)) / rows
            arrays = jax.tree.leaves((arguments[0], jax.eval_shape(function, *arguments)[0]))
            least = 2 * sum(x.size * x.dtype.itemsize for x in arrays) / rows  # their gradients too
            yield f"| {operator} | {platform} | {least:.1f} | {moved:.1f} | {len(kernel_calls)} |"


def train_table() -> Iterator[str]:
    """The whole training step."""
    yield "| for | mesh | batch x length | kernels in the program | seconds | bytes of a device, GiB |"
    yield "|---|---|---|---|---|---|"
    begin = time.perf_counter()
    four = mesh("v5e:2x2", data=1, fsdp=4, sequence=1, tensor=1)
    program = Program(sized(get_train_preset("mom-340m"), 4, 2048), four)
    lowered = traced_step(program).lower()
    count = lowered.as_text().count("tpu_custom_call")
    memory = lowered.compile().memory_analysis()
    used = (memory.temp_size_in_bytes + memory.argument_size_in_bytes) / 2**30
    seconds = time.perf_counter() - begin
    yield f"| TPU v5e, compiled | 1 x 4 x 1 | 4 x 2048 | {count} | {seconds:.0f} | {used:.1f} |"


def programs_table() -> Iterator[str]:
    """Counts anew, and writes the record."""
    pairs = [(program, device) for program, whole in programs.PROGRAMS.items() for device in whole.devices]
    record = {program: {} for program in programs.PROGRAMS}
    for program, device in track(pairs, description="Programs"):
        record[program][device] = programs.counted(program, device)
    programs.RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return programs.lines(record)


PACKAGES = ("jax", "triton", "jax-triton", "nvidia-cuda-nvcc-cu12", "libtpu")
TABLES = {
    "gpu": gpu_table,
    "tpu": tpu_table,
    "traffic": traffic_table,
    "train": train_table,
    "programs": programs_table,
}


def main() -> None:
    """Makes the chosen tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tables", nargs="*", choices=[*TABLES, []], help="which tables; all by default")
    parser.add_argument("--only", default="", metavar="PATTERN", help="which cells of the table gpu; all by default")
    arguments = parser.parse_args()
    for name in arguments.tables or TABLES:
        versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
        made = gpu_table(arguments.only) if name == "gpu" else TABLES[name]()
        lines = [f"{datetime.date.today()}; {versions}", "", *made]
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        table = "\n".join(lines) + "\n"
        page = place.sub(lambda match, table=table: match[1] + table + match[2], PAGE.read_text(encoding="utf-8"))
        PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
