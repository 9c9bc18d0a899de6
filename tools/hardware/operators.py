"""Programs of every operator that has GPU kernels: small ragged ones to check, large ones to time.

Which operators there are is in `mom_jax.benchmarks.kernel_passes.OPERATORS`; `around` has the programs of those that
are no recurrence.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.benchmarks.kernel_passes import OPERATORS, shapes
from mom_jax.ops.segments import Packing
from tools.hardware import around
from tools.hardware.cases import Case, published, ragged, timed_program
from tools.hardware.draws import Draw
from tools.hardware.programs import Program, Sizes, stored

TOLERANCES = {"float32": 1e-5, "bfloat16": 2**-6}
AGAINST_XLA = {"float32": 3e-3, "bfloat16": 2**-5}  # whose products are of tf32
# How a row's field is drawn; the others are normal.
_DRAWS = {
    "q": Draw("unit", (), ""),
    "k": Draw("unit", (), ""),
    "g": Draw("log gate", (), ""),
    "beta": Draw("share", (), ""),
    "a": Draw("unit", (), ""),
    "b": Draw("unit", (), "", scale=0.5),
}
_HALF = "qkvab"  # fields that have the rows' dtype; the others are float32


def cases(sizes: Sizes) -> Iterator[Case]:
    """Every operator with GPU kernels, at every size and dtype."""
    for size in sizes.operators:
        for dtype in sizes.dtypes:
            for name, operator in OPERATORS["gpu"].items():
                yield Case(sizes, name, operator.primitive, size, dtype)


def checks(case: Case) -> Iterator[Program]:
    """Values and gradients of the kernels on ragged segments, and of what is right for the same inputs.

    That is single tokens, by NumPy's side of the folder for the smallest size in float32, else on the device.
    """
    make = around.CHECKED.get(case.operator, _checked_recurrence)
    right = dataclasses.replace(
        make(case._replace(dtype="float32"), "reference"), name=f"{case.operator} {case.size} right", exact=True
    )
    kernels = dataclasses.replace(
        make(case, case.sizes.impl),
        name=f"{case.name} check",
        section="checks",
        against=right.name,
        tolerance=TOLERANCES[case.dtype],
    )
    in_folder = {"section": "checks", "against": "stored", "tolerance": TOLERANCES["float32"], "right": right.function}
    small = case.size == min(case.sizes.operators)
    if case.dtype == "float32":
        yield dataclasses.replace(right, **(in_folder if small else {}))
    yield dataclasses.replace(kernels, **(in_folder if small and case.dtype == "float32" else {}))
    if case.by_mosaic:
        made = make(case, "mosaic")
        yield dataclasses.replace(
            kernels, name=f"{case.name} mosaic check", function=made.function, arguments=made.arguments
        )


def timed(case: Case) -> Iterator[Program]:
    """Forward, and forward with backward, of as many rows as a layer of the published size has."""
    make = around.TIMED.get(case.operator, _timed_recurrence)
    published = case.dtype == case.sizes.dtypes[0] and case.size == case.sizes.operators[0]
    section = "operators" if published else "sizes"
    for way in ("forward", "training"):
        program, xla = make(case, case.sizes.impl, way), f"{case.name} {way} xla"
        if published:
            program = dataclasses.replace(program, against=xla, tolerance=AGAINST_XLA[case.dtype])
            yield dataclasses.replace(make(case, "xla", way), name=xla, section="operators")
        yield dataclasses.replace(program, name=f"{case.name} {way}", section=section)
        if case.by_mosaic:
            made = make(case, "mosaic", way)
            yield dataclasses.replace(
                program, name=f"{case.name} {way} mosaic", section=section,
                function=made.function, arguments=made.arguments,
            )  # fmt: skip


def _rows(case: Case, packing: Packing, heads: int, shared: bool) -> Any:
    primitive = case.primitive
    assert primitive is not None
    made = {}
    sizes = {"N": packing.assignment.shape[0], "H": heads, "K": case.size, "V": case.size}
    for seed, (name, shape) in enumerate(shapes(primitive, sizes).items()):
        dtype = case.dtype if name in _HALF else "float32"
        draw = dataclasses.replace(_DRAWS.get(name, Draw("normal", (), "")), shape=shape, dtype=dtype, seed=seed)
        made[name] = draw if shared or name not in primitive.shared else None
    return primitive.rows(**made)


def _checked_recurrence(case: Case, impl: str) -> Program:
    """With initial states, documents, and what all rows share."""
    primitive, packing, heads = case.primitive, ragged(case.sizes.chunk), 2
    assert primitive is not None
    table, arrays = stored("ragged table", packing.table)
    valid, mask = stored("ragged", packing.valid)
    shape = (packing.length.shape[0], heads, case.size, case.size)
    rows = _rows(case, packing, heads, shared=True)

    def function(rows, table, state, valid, do, dfinal):
        def outputs(rows, state):
            return primitive(primitive.masked(rows, valid), table, state, impl=impl)

        (o, final), pull = jax.vjp(outputs, rows, state)
        do = jnp.where(valid[:, None, None], do, 0)  # what reads a chunk of no segment is nobody's gradient
        drows, dstate = pull((do.astype(o.dtype), dfinal))
        return {"o": o, "final": final, "dstate": dstate, **{f"d{n}": x for n, x in drows._asdict().items()}}

    cotangents = Draw("normal", rows.v.shape, "float32", 20), Draw("normal", shape, "float32", 21)
    arguments = (rows, table, Draw("normal", shape, "float32", 22), valid, *cotangents)
    return Program("", "", function, arguments, mask="ragged/0", arrays={**arrays, **mask})


def _timed_recurrence(case: Case, impl: str, way: str) -> Program:
    primitive, sizes = case.primitive, case.sizes
    assert primitive is not None
    packing = published(sizes.batch, sizes.time, sizes.chunk)
    table, arrays = stored("published table", packing.table)
    rows = _rows(case, packing, sizes.heads, shared=False)

    def forward(rows, table):
        return {"o": primitive(rows, table, impl=impl)[0]}

    def training(rows, table, do):
        o, pull = jax.vjp(lambda rows: forward(rows, table)["o"], rows)
        return {"o": o, **{f"d{name}": x for name, x in pull(do)[0]._asdict().items()}}

    return timed_program(packing, way, forward, training, (rows, table), dataclasses.replace(rows.v, seed=20), arrays)
