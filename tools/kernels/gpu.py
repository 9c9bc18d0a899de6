"""What a GPU's compiler makes of Triton kernels: registers, spills, shared memory.

For NVIDIA, Triton's PTX and the assembler that XLA calls, as when the kernel runs.
"""

import dataclasses
import functools
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pallas_kernels.gpu.assembler import find_ptxas
from tools.kernels.equations import calls

# Bytes of shared memory that a program may have.
SHARED = {"sm_80": 163 << 10, "sm_90": 227 << 10, "sm_100": 227 << 10, "gfx942": 64 << 10}
_POINTERS = {"float32": "*fp32", "bfloat16": "*bf16", "float16": "*fp16", "int32": "*i32", "bool": "*i1"}


Row = tuple[str, dict[str, str]]  # a kernel, and its cells by device


def recorded(page: str) -> dict[tuple[str, int, str], list[Row]]:
    """The table of docs/kernels.md, by operator, size and dtype."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    (header,) = (x for x in lines if x[:3] == ["operator", "kernel", "K = V"])
    rows: dict[tuple[str, int, str], list[Row]] = {}
    for operator, kernel, size, dtype, *cells in (x for x in lines if len(x) == len(header) and x[1].startswith("`")):
        row = kernel.strip("`"), dict(zip(header[4:], cells, strict=True))
        rows.setdefault((operator, int(size), dtype), []).append(row)
    return rows


@dataclasses.dataclass(frozen=True)
class Launch:
    """One kernel with everything its machine code depends on."""

    kernel: Any
    pointers: tuple[tuple[str, str], ...]  # parameter and dtype
    integers: tuple[tuple[str, int], ...]
    constants: tuple[tuple[str, Any], ...]
    options: tuple[tuple[str, Any], ...]  # of Triton's backend, as the kernel is launched

    @property
    def name(self) -> str:
        """Of the kernel's function."""
        return self.kernel.fn.__name__.strip("_")


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a program takes: registers of a thread, bytes of a thread that do not fit them, shared bytes.

    Scalars that AMD's compiler keeps in lanes of a vector register have their place: they do not go to memory.
    """

    registers: int
    spills: int
    shared: int


def launches(function: Callable, *arguments: Any) -> list[Launch]:
    """The different kernels that ``function`` launches, in order."""
    return list(dict.fromkeys(map(launched, calls("triton_kernel_call", function, *arguments))))


def launched(equation: Any) -> Launch:
    """One launch, from its equation."""
    kernel, constants = equation.params["fn"], dict(equation.params["metaparams"])
    names = [p.name for p in kernel.params if not p.is_constexpr]
    bound = jax.tree.unflatten(equation.params["in_tree"], [v.aval for v in equation.invars])
    outputs = iter(equation.params["out_shapes"])
    pointers, integers = [], []
    for name, value in zip(names, bound, strict=True):
        if hasattr(value, "value"):  # a static integer
            integers.append((name, value.value))
        else:
            array = value if hasattr(value, "shape") else next(outputs)
            pointers.append((name, str(array.dtype)))
    return Launch(
        kernel,
        tuple(pointers),
        tuple(integers),
        tuple(sorted(constants.items())),
        tuple(sorted(equation.params["backend_options"].items())),
    )


@functools.cache
def compiled(launch: Launch, device: str) -> Compiled:
    """Compiles to machine code for a device generation, e.g. ``sm_90`` or ``gfx942``."""
    amd = device.startswith("gfx")
    target = GPUTarget("hip", device, 64) if amd else GPUTarget("cuda", int(device.removeprefix("sm_")), 32)
    types = {name: _POINTERS[dtype] for name, dtype in launch.pointers} | {name: "i32" for name, _ in launch.integers}
    signature = {p.name: types.get(p.name, "constexpr") for p in launch.kernel.params}
    places = {p.name: (p.num,) for p in launch.kernel.params}
    aligned = [name for name, _ in launch.pointers] + [name for name, value in launch.integers if value % 16 == 0]
    attributes = {places[name]: [["tt.divisibility", 16]] for name in aligned}
    constants = {places[name]: value for name, value in launch.constants}
    source = ASTSource(launch.kernel, signature, constants, attributes)
    program = triton.compile(source, target=target, options=dict(launch.options))
    if amd:
        return _read_amd(program.asm["amdgcn"], program.metadata.shared)
    return _read_nvidia(program.asm["ptx"], int(target.arch), program.metadata.shared)


def _read_nvidia(ptx: str, arch: int, shared: int) -> Compiled:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "kernel.ptx"
        file.write_text(ptx, encoding="utf-8")
        name = f"sm_{arch}a" if arch >= 90 else f"sm_{arch}"
        command = [find_ptxas(), "-v", f"--gpu-name={name}", file, "-o", f"{file}.cubin"]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    log = done.stdout + done.stderr
    assert done.returncode == 0, log
    return Compiled(_number(r"Used (\d+) registers", log), _number(r"(\d+) bytes spill stores", log), shared)


def _read_amd(assembly: str, shared: int) -> Compiled:
    spilled = _number(r"\.private_segment_fixed_size:\s*(\d+)", assembly)
    return Compiled(_number(r"\.vgpr_count:\s*(\d+)", assembly), spilled, shared)


def _number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    assert match is not None, f"the compiler does not say {pattern}"
    return int(match[1])
