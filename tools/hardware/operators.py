"""Programs of every operator that has GPU kernels: small ragged ones to check, large ones to time.

Which operators there are is what the primitives name (`mom_jax.benchmarks.kernel_passes.OPERATORS`).
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mom_jax.benchmarks.kernel_passes import OPERATORS, shapes
from mom_jax.ops.documents import count_documents
from mom_jax.ops.grouped_matmul import grouped_matmul
from mom_jax.ops.primitive import Primitive
from mom_jax.ops.segments import Packing, plan_packing
from mom_jax.ops.short_conv import short_conv
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


class Case(NamedTuple):
    """An operator at a size."""

    sizes: Sizes
    operator: str
    primitive: Primitive | None  # None: no recurrence
    size: int
    dtype: str

    @property
    def name(self) -> str:
        """The beginning of the names of its programs."""
        return f"{self.operator} {self.size} {self.dtype}"

    @property
    def by_mosaic(self) -> bool:
        """Whether there are kernels by Mosaic GPU too."""
        kernels = {} if self.primitive is None or self.sizes.impl != "gpu" else self.primitive.kernels
        return "mosaic" in kernels and self.size >= 128 and self.dtype == "bfloat16"


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
    others = {"grouped_matmul": _checked_products, "short_conv": _checked_convolution}
    make = others.get(case.operator, _checked_recurrence)
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
    others = {"grouped_matmul": _timed_products, "short_conv": _timed_convolution}
    make = others.get(case.operator, _timed_recurrence)
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


@functools.cache
def _ragged(chunk: int) -> Packing:
    """Empty and one-token segments, whole and ragged chunks, padding and documents, in two rows and four memories."""
    tokens = np.array([[1, 2 * chunk + 1, 0, chunk], [17, 0, 5, chunk + 6]])
    longest, rng = int(tokens.sum(1).max()), np.random.default_rng(1)
    memories, keep = np.zeros((2, longest, 1), np.int32), np.zeros((2, longest), np.int32)
    for row, counts in enumerate(tokens):
        count = int(counts.sum())
        memories[row, :count, 0], keep[row, :count] = rng.permutation(np.repeat(np.arange(4), counts)), 1
    numbers = np.repeat([0, 1, 2, 1], [40, 1, 30, longest])[:longest]
    documents = count_documents(np.stack([numbers, numbers // 2]), jnp.asarray(keep))
    return plan_packing(
        jnp.asarray(memories), 4, shared=False, chunk_size=chunk, attention_mask=jnp.asarray(keep), documents=documents
    )


@functools.cache
def _published(batch: int, time: int, chunk: int) -> Packing:
    """Top-2 of four memories and a shared one, at random."""
    choices = np.argsort(np.random.default_rng(0).random((batch, time, 4)))[..., :2]
    return plan_packing(jnp.asarray(choices, jnp.int32), 4, shared=True, chunk_size=chunk)


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
    primitive, packing, heads = case.primitive, _ragged(case.sizes.chunk), 2
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
    packing = _published(sizes.batch, sizes.time, sizes.chunk)
    table, arrays = stored("published table", packing.table)
    rows = _rows(case, packing, sizes.heads, shared=False)

    def forward(rows, table):
        return {"o": primitive(rows, table, impl=impl)[0]}

    def training(rows, table, do):
        o, pull = jax.vjp(lambda rows: forward(rows, table)["o"], rows)
        return {"o": o, **{f"d{name}": x for name, x in pull(do)[0]._asdict().items()}}

    return _timed(packing, way, forward, training, (rows, table), dataclasses.replace(rows.v, seed=20), arrays)


def _timed(packing, way, forward, training, arguments, do, arrays):
    _, mask = stored("published", packing.valid)
    function, arguments = (forward, arguments) if way == "forward" else (training, (*arguments, do))
    tokens = packing.row.shape[0] * packing.row.shape[1]
    arrays = {**arrays, **mask, "published lengths": np.asarray(packing.length)}
    return Program("", "", function, arguments, mask="published/0", arrays=arrays, tokens=tokens)


def _products(case: Case, packing: Packing, widths: tuple[int, ...]) -> tuple[Any, ...]:
    rows, width = packing.assignment.shape[0], widths[0]
    groups = packing.group_sizes.shape[0]
    x = Draw("normal", (rows, width), case.dtype, 0)
    weights = tuple(
        Draw("normal", (groups, width, n), case.dtype, 1 + i, scale=width**-0.5) for i, n in enumerate(widths)
    )
    dys = tuple(Draw("normal", (rows, n), case.dtype, 10 + i) for i, n in enumerate(widths))
    return x, weights, dys


def _multiply(impl: str, tile: int):
    def forward(x, weights, group_sizes):
        ys = grouped_matmul(x, weights, group_sizes, tile=tile, impl="gpu" if impl == "gpu" else "xla")
        return {f"y{i}": y for i, y in enumerate(ys)}

    def training(x, weights, group_sizes, dys):
        def outputs(x, weights):
            return tuple(forward(x, weights, group_sizes).values())

        ys, pull = jax.vjp(outputs, x, weights)
        dx, dweights = pull(tuple(dy.astype(y.dtype) for dy, y in zip(dys, ys, strict=True)))
        named = {f"y{i}": y for i, y in enumerate(ys)} | {f"dw{i}": dw for i, dw in enumerate(dweights)}
        return {**named, "dx": dx}

    return forward, training


def _checked_products(case: Case, impl: str) -> Program:
    """A whole projection and a narrow one, with an empty group and rows behind the last one."""
    packing = _ragged(case.sizes.chunk)
    (sizes, valid), arrays = stored("ragged groups", (packing.group_sizes, packing.valid))
    x, weights, dys = _products(case, packing, (2 * case.size, 4))
    _, training = _multiply(impl, case.sizes.chunk)

    def function(x, weights, sizes, valid, dys):
        return training(jnp.where(valid[:, None], x, 0), weights, sizes, dys)

    return Program("", "", function, (x, weights, sizes, valid, dys), mask="ragged groups/1", arrays=arrays)


def _timed_products(case: Case, impl: str, way: str) -> Program:
    """The projection to all heads of every memory."""
    packing = _published(case.sizes.batch, case.sizes.time, case.sizes.chunk)
    sizes, arrays = stored("published groups", packing.group_sizes)
    x, weights, dys = _products(case, packing, (case.sizes.heads * case.size,))
    forward, training = _multiply(impl, case.sizes.chunk)
    return _timed(packing, way, forward, training, (x, weights, sizes), dys, arrays)


def _convolve(case: Case, impl: str):
    """Queries of tokens, gathered, with SiLU and norm."""

    def forward(x, weight, state, packing):
        return {"y": short_conv(x, weight, packing, state, head=case.size, normalise=True, impl=impl)}

    def training(x, weight, state, packing, dy):
        y, pull = jax.vjp(lambda x, weight, state: forward(x, weight, state, packing)["y"], x, weight, state)
        dx, dweight, dstate = pull(jnp.where(packing.valid[:, None], dy, 0).astype(y.dtype))
        return {"y": y, "dx": dx, "dweight": dweight} | ({} if dstate is None else {"dstate": dstate})

    return forward, training


def _tokens(case: Case, packing: Packing, heads: int) -> tuple[Draw, Draw, Draw]:
    """Tokens, filters of four taps, and a gradient of the rows."""
    channels = heads * case.size
    x = Draw("normal", (*packing.row.shape[:2], channels), case.dtype, 0)
    dy = Draw("normal", (packing.assignment.shape[0], channels), case.dtype, 3)
    return x, Draw("normal", (channels, 4), "float32", 1), dy


def _checked_convolution(case: Case, impl: str) -> Program:
    """With documents and with what came before."""
    packing, heads = _ragged(case.sizes.chunk), 2
    tables, arrays = stored("ragged packing", packing)
    _, mask = stored("ragged", packing.valid)
    x, weight, dy = _tokens(case, packing, heads)
    state = Draw("normal", (packing.length.shape[0], 3, heads * case.size), case.dtype, 2)
    _, training = _convolve(case, impl)
    return Program("", "", training, (x, weight, state, tables, dy), mask="ragged/0", arrays={**arrays, **mask})


def _timed_convolution(case: Case, impl: str, way: str) -> Program:
    packing = _published(case.sizes.batch, case.sizes.time, case.sizes.chunk)
    tables, arrays = stored("published packing", packing)
    x, weight, dy = _tokens(case, packing, case.sizes.heads)
    return _timed(packing, way, *_convolve(case, impl), (x, weight, None, tables), dy, arrays)
