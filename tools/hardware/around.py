"""Programs of what stands around the recurrences: grouped products, convolutions, mixing."""

from typing import Any

import jax
import jax.numpy as jnp

from mom_jax.ops.grouped_matmul import grouped_matmul
from mom_jax.ops.mixing import Ending, Reads, mix
from mom_jax.ops.segments import Packing
from mom_jax.ops.short_conv import short_conv
from tools.hardware.cases import Case, published, ragged, timed_program
from tools.hardware.draws import Draw
from tools.hardware.programs import Program, stored


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
    packing = ragged(case.sizes.chunk)
    (sizes, valid), arrays = stored("ragged groups", (packing.group_sizes, packing.valid))
    x, weights, dys = _products(case, packing, (2 * case.size, 4))
    _, training = _multiply(impl, case.sizes.chunk)

    def function(x, weights, sizes, valid, dys):
        return training(jnp.where(valid[:, None], x, 0), weights, sizes, dys)

    return Program("", "", function, (x, weights, sizes, valid, dys), mask="ragged groups/1", arrays=arrays)


def _timed_products(case: Case, impl: str, way: str) -> Program:
    """The projection to all heads of every memory."""
    packing = published(case.sizes.batch, case.sizes.time, case.sizes.chunk)
    sizes, arrays = stored("published groups", packing.group_sizes)
    x, weights, dys = _products(case, packing, (case.sizes.heads * case.size,))
    forward, training = _multiply(impl, case.sizes.chunk)
    return timed_program(packing, way, forward, training, (x, weights, sizes), dys, arrays)


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
    packing, heads = ragged(case.sizes.chunk), 2
    tables, arrays = stored("ragged packing", packing)
    _, mask = stored("ragged", packing.valid)
    x, weight, dy = _tokens(case, packing, heads)
    state = Draw("normal", (packing.length.shape[0], 3, heads * case.size), case.dtype, 2)
    _, training = _convolve(case, impl)
    return Program("", "", training, (x, weight, state, tables, dy), mask="ragged/0", arrays={**arrays, **mask})


def _timed_convolution(case: Case, impl: str, way: str) -> Program:
    packing = published(case.sizes.batch, case.sizes.time, case.sizes.chunk)
    tables, arrays = stored("published packing", packing)
    x, weight, dy = _tokens(case, packing, case.sizes.heads)
    return timed_program(packing, way, *_convolve(case, impl), (x, weight, None, tables), dy, arrays)


def _mix(impl: str):
    """What tokens read, normed and gated by SiLU; the gradient of rows that nobody reads stands apart."""

    def forward(rows, weights, scale, gate, packing):
        return {"o": mix(Reads(rows, weights, packing, impl), Ending(None, scale, gate, eps=1e-6))}

    def training(rows, weights, scale, gate, packing, do):
        run = lambda rows, weights, scale, gate: forward(rows, weights, scale, gate, packing)["o"]  # noqa: E731
        o, pull = jax.vjp(run, rows, weights, scale, gate)
        drows, dweights, dscale, dgate = pull(do.astype(o.dtype))
        unread = jnp.where(packing.valid[:, None, None], 0, drows).reshape(-1)
        return {"o": o, "drows": drows, "dweights": dweights, "dscale": dscale, "dgate": dgate, "unread": unread}

    return forward, training


def _reads(case: Case, packing: Packing, heads: int) -> tuple[tuple[Draw, ...], Draw]:
    """Rows, weights, the norm's scale and the gate, and a gradient of what is read."""
    (*tokens, copies), channels = packing.row.shape, heads * case.size
    shapes = (packing.assignment.shape[0], heads, case.size), (*tokens, channels), (*tokens, heads, case.size)
    rows, gate, do = (Draw("normal", shape, case.dtype, seed) for seed, shape in enumerate(shapes))
    weights = Draw("share", (*tokens, copies - 1), "float32", 3)
    return (rows, weights, Draw("normal", (case.size,), "float32", 4), gate), do


def _checked_mixing(case: Case, impl: str) -> Program:
    """With padding. The weight of a single row that is normed would have no gradient, so there is a shared memory."""
    packing = ragged(case.sizes.chunk, shared=True)
    tables, arrays = stored("ragged reads", packing)
    _, mask = stored("ragged read", packing.valid)
    inputs, do = _reads(case, packing, 2)
    return Program("", "", _mix(impl)[1], (*inputs, tables, do), mask="ragged read/0", arrays={**arrays, **mask})


def _timed_mixing(case: Case, impl: str, way: str) -> Program:
    """What tokens of the published layer read."""
    packing = published(case.sizes.batch, case.sizes.time, case.sizes.chunk)
    tables, arrays = stored("published packing", packing)
    inputs, do = _reads(case, packing, case.sizes.heads)
    return timed_program(packing, way, *_mix(impl), (*inputs, tables), do, arrays)


CHECKED = {"grouped_matmul": _checked_products, "short_conv": _checked_convolution, "mixing": _checked_mixing}
TIMED = {"grouped_matmul": _timed_products, "short_conv": _timed_convolution, "mixing": _timed_mixing}
