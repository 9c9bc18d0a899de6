"""Makes the folder: exports every program, computes what is right for the small ones, writes the index."""

import contextlib
import datetime
import itertools
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.export
import numpy as np
from rich.progress import track

from tools.hardware import models, operators
from tools.hardware.draws import Draw, drawn
from tools.hardware.folder import INDEX, Entry, read_folder, write_index, write_program
from tools.hardware.programs import Program, Sizes, shape_of
from tools.kernels.equations import calls, moved_bytes

# What jax-triton calls its kernels' custom call; it holds the kernel as PTX.
_ALLOWED = [jax.export.DisabledSafetyCheck.custom_call(x) for x in ("triton_kernel_call_ffi", "mosaic_gpu_v2")]


def programs(sizes: Sizes) -> list[Program]:
    """All programs, those of a section in the order in which they are run."""
    cases = list(operators.cases(sizes))
    made = itertools.chain(
        *(operators.checks(case) for case in cases), *(operators.timed(case) for case in cases), models.models(sizes)
    )
    return list(made)


def make(path: Path, sizes: Sizes, only: Iterable[str] = ()) -> None:
    """Writes the folder; ``only`` makes what has one of these words in its name or section, and what that needs.

    What else the folder holds stays in it. The index is written after each program, so that a folder is whole whenever
    this ends.
    """
    path.mkdir(parents=True, exist_ok=True)
    before = read_folder(path) if (path / INDEX).is_file() else None
    entries, arrays = ({}, {}) if before is None else (dict(before.entries), dict(before.arrays))
    known, versions = programs(sizes), _made()
    for program in track(_chosen(known, list(only)), description="exporting"):
        entries[program.name], exported = export(program, sizes)
        write_program(path, entries[program.name], exported)
        arrays |= program.arrays
        if program.right is not None:
            arrays |= right(program, entries[program.name])
        write_index(path, versions, [entries[x.name] for x in known if x.name in entries], arrays)


def _chosen(all_programs: list[Program], only: list[str]) -> list[Program]:
    by_name = {program.name: program for program in all_programs}
    names = [x.name for x in all_programs if not only or any(word in f"{x.section}: {x.name}" for word in only)]
    for name in names:  # grows
        program = by_name[name]
        sources = {draw.source for draw in jax.tree.leaves(program.arguments) if draw.kind == "output"}
        needed = sources | ({program.against} & by_name.keys())
        names += [x for x in needed if x not in names]
    return [program for name, program in by_name.items() if name in names]


def _made() -> dict[str, Any]:
    packages = ("jax", "jaxlib", "triton", "jax-triton")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, encoding="utf-8")
    versions = {name: version(name) for name in packages}
    return {"date": datetime.date.today().isoformat(), "commit": commit.stdout.strip(), **versions}


def export(program: Program, sizes: Sizes) -> tuple[Entry, jax.export.Exported]:
    """The program over a flat list of arrays, so that whoever runs it need know none of our types."""
    draws, tree = jax.tree.flatten(program.arguments)
    names: list[str] = []

    def flat(*leaves):
        outputs = dict(program.function(*jax.tree.unflatten(tree, leaves)))
        first = {} if program.carried is None else {"state": outputs.pop("state")}
        paths = [x for part in (first, outputs) for x in jax.tree.leaves_with_path(part)]
        names[:] = [jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in paths]
        return tuple(x for _, x in paths)

    shapes = [shape_of(draw) for draw in draws]
    with sizes.context(), _precision(program):
        exported = jax.export.export(jax.jit(flat), platforms=[sizes.platform], disabled_checks=_ALLOWED)(*shapes)
        launched = list(calls("triton_kernel_call", flat, *shapes))
    kernels = [(x.params["fn"].fn.__name__.strip("_"), moved_bytes(x)) for x in launched]
    return _entry(program, draws, names, exported, kernels), exported


def _entry(program, draws, names, exported, kernels):
    ends = list(itertools.accumulate((len(jax.tree.leaves(x)) for x in program.arguments), initial=0))
    carried = () if program.carried is None else range(ends[program.carried], ends[program.carried + 1])
    return Entry(
        name=program.name,
        section=program.section,
        inputs=tuple(draws),
        outputs=tuple(names),
        carried=tuple(carried),
        against=program.against,
        tolerance=program.tolerance,
        mask=program.mask,
        kernels=tuple(kernels),
        tokens=program.tokens,
        output_bytes=sum(aval.size * aval.dtype.itemsize for aval in exported.out_avals),
    )


def _precision(program: Program) -> contextlib.AbstractContextManager:
    return jax.default_matmul_precision("highest") if program.exact else contextlib.nullcontext()


def right(program: Program, entry: Entry) -> dict[str, np.ndarray]:
    """The outputs in float64, token by token; stored as float32, rows that do not count as 0."""
    assert program.right is not None
    leaves, tree = jax.tree.flatten(program.arguments)
    with jax.enable_x64(True):
        given = [_wide(program, draw) for draw in leaves]
        outputs = jax.jit(program.right)(*jax.tree.unflatten(tree, given))
    flat = jax.tree.leaves(dict(outputs))
    mask = program.arrays[program.mask]
    return dict(_masked(entry, flat, mask))


def _wide(program: Program, draw: Draw) -> np.ndarray:
    x = program.arrays[draw.source] if draw.kind == "stored" else np.asarray(drawn(draw))
    return x.astype(np.float64) if x.dtype == np.float32 else x


def _masked(entry: Entry, outputs: list[Any], mask: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    for name, x in zip(entry.outputs, outputs, strict=True):
        x = np.asarray(x, np.float32)
        if x.shape[0] == mask.shape[0]:
            x = np.where(mask.reshape(-1, *[1] * (x.ndim - 1)), x, 0)
        yield f"{entry.name}/{name}", x
