"""What float32 kernels keep in local memory because registers are full, beside what XLA's implementation moves instead.

The spilled bytes of docs/kernels.md, each taken to be stored once and loaded once for every chunk that a program takes;
XLA's form of a recurrence, compiled for an H100 at the rows of the published layer. All of a forward and backward pass,
in KB for each row and head, K = V = 128.

    python -m tools.kernels.spills [OPERATOR ...]      counts XLA's anew, into the record ``xla.json``
"""

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tools.install_compilers import FOLDER

os.environ["JAX_PLATFORMS"] = "cpu"
sys.path.append(str(FOLDER))  # before JAX looks for what lowers to CUDA

import jax
import jax.numpy as jnp

from mom_jax.benchmarks.kernel_passes import CHUNK, CHUNKS, HEADS, OPERATORS, Case, shapes, training
from mom_jax.ops.segments import ChunkTable
from mom_jax.planning.hlo import read
from mom_jax.planning.launches import launches
from mom_jax.planning.targets import compiled, mesh
from mom_jax.training.sharding import AXES
from tools.kernels import gpu
from tools.kernels.equations import calls, moved_bytes

RECORD = Path(__file__).parent / "xla.json"
PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"
SIZE, DEVICES = 128, ("sm_80", "sm_90", "sm_100")
_ROWS, _SEGMENTS = 816 * CHUNK["gpu"], 40  # of the published layer
RECURRENCES = tuple(name for name, operator in OPERATORS["gpu"].items() if operator.primitive is not None)
Counts = dict[str, float]  # launches and KB of XLA's form


def spilled(case: Case, device: str, rows: list[gpu.Row]) -> float:
    """KB that the kernels of a case store to local memory and load from it, by their rows of the table."""
    function, arguments = training(case, device=device)
    equations = list(calls("triton_kernel_call", function, *arguments))
    different = list(dict.fromkeys(map(gpu.launched, equations)))
    total = 0.0
    for equation in equations:
        launch = gpu.launched(equation)
        found = re.search(r"(\d+) B spilled", rows[different.index(launch)][1][device])
        threads = 32 * dict(launch.options)["num_warps"]
        total += 2 * (int(found[1]) if found else 0) * threads * _programs(equation, case)
    return total / (CHUNKS * CHUNK["gpu"] * HEADS) / 1024


def _programs(equation: Any, case: Case) -> int:
    """How often a program takes a chunk; those along segments, which know runs, take one after the other."""
    constants = dict(equation.params["metaparams"])
    if "p_runs" in equation.params["fn"].arg_names:
        return CHUNKS * HEADS * (case.size // constants["BV"])
    return int(jnp.prod(jnp.array(equation.params["grid"])))


def xla(operator: str) -> Counts:
    """Launches and KB of XLA's forward and backward pass on an H100."""
    primitive: Any = OPERATORS["gpu"][operator].primitive
    made = shapes(primitive, {"N": _ROWS, "H": HEADS, "K": SIZE, "V": SIZE})
    made = {name: None if name in primitive.shared else jax.ShapeDtypeStruct(x, "float32") for name, x in made.items()}
    chunks = _ROWS // CHUNK["gpu"]
    integers: Any = jax.ShapeDtypeStruct((chunks,), "int32")
    flags: Any = jax.ShapeDtypeStruct((chunks,), "bool")
    counts: Any = jax.ShapeDtypeStruct((_SEGMENTS,), "int32")
    table: Any = ChunkTable(integers, flags, flags, counts, None, CHUNK["gpu"], _SEGMENTS)

    def both(rows, table, do):
        o, pull = jax.vjp(lambda rows: primitive(rows, table, None, scale=1.0, impl="xla")[0], rows)
        return o, pull(do)

    rows = primitive.rows(**made)
    program = compiled(mesh("h100:1", **dict.fromkeys(AXES, 1)), both, rows, table, rows.v)
    launched = launches(read(program.as_text()))
    moved = sum(x.times * x.bytes for x in launched) / (_ROWS * HEADS * 1024)
    return {"launches": sum(x.times for x in launched), "KB": round(moved, 1)}


def lines(record: dict[str, Counts]) -> Iterator[str]:
    """The table of docs/kernels.md."""
    table = gpu.recorded(PAGE.read_text(encoding="utf-8"))
    names = " | ".join(f"spilled on {device}, KB" for device in DEVICES)
    yield f"| operator | kernels move, KB | {names} | XLA moves, KB | XLA launches |"
    yield "|---" * (4 + len(DEVICES)) + "|"
    for operator, counts in record.items():
        case = Case("gpu", operator, SIZE, "float32")
        function, arguments = training(case, device="sm_90")
        moved = sum(map(moved_bytes, calls("triton_kernel_call", function, *arguments)))
        moved /= CHUNKS * CHUNK["gpu"] * HEADS * 1024
        cells = " | ".join(f"{spilled(case, device, table[operator, SIZE, 'float32']):.0f}" for device in DEVICES)
        yield f"| {operator} | {moved:.0f} | {cells} | {counts['KB']:.0f} | {counts['launches']:,} |"


def main() -> None:
    """Counts the named operators anew, all by default."""
    record = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}
    for operator in sys.argv[1:] or RECURRENCES:
        record[operator] = xla(operator)
    RECORD.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    place = re.compile(r"(<!-- float32 -->\n).*?(<!-- end -->)", re.DOTALL)
    made = "\n".join(lines(record)) + "\n"
    page = place.sub(lambda match: match[1] + made + match[2], PAGE.read_text(encoding="utf-8"))
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
