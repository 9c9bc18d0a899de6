"""The Triton kernels of mixing; `mixing` has the equations and calls them.

A block has BM of all ``units``, heads of tokens that follow each other, and the channels ``c`` of each. x and b are as
there, the norm's ``n = b / sqrt(mean(b^2) + eps)``; ``inside`` masks what is no head or no channel.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops and tuples.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false, reportCallIssue=false
# pyright: reportAttributeAccessIssue=false

import triton
import triton.language as tl


@triton.jit
def activated(x, NAME: tl.constexpr):
    """SiLU or the sigmoid."""
    y = tl.sigmoid(x)
    if NAME == "silu":
        y *= x
    return y


@triton.jit
def slope(x, NAME: tl.constexpr):
    """The derivative of `activated`."""
    s = tl.sigmoid(x)
    y = 1 - s
    if NAME == "silu":
        y = 1 + x * y
    return s * y


@triton.jit
def places(
    p_weight, p_row, unit, units, rows,
    HEADS: tl.constexpr, COPIES: tl.constexpr, WEIGHTS: tl.constexpr, OF_HEADS: tl.constexpr, BM: tl.constexpr,
):  # fmt: skip
    """The rows that a unit reads and what each counts."""
    t = unit // HEADS
    row, weight = (), ()
    for j in tl.static_range(COPIES):
        row = row + (tl.load(p_row + t * COPIES + j, mask=unit < units, other=rows),)  # noqa: RUF005
        counts = tl.full((BM,), 1.0, tl.float32)
        if j < WEIGHTS:
            place = t * WEIGHTS + j
            if OF_HEADS:
                place = place * HEADS + unit % HEADS
            counts = tl.load(p_weight + place, mask=unit < units, other=0.0)
        weight = weight + (counts,)  # noqa: RUF005
    return row, weight


@triton.jit
def offset(unit, c, V: tl.constexpr):
    """Of channels in an array of heads."""
    return unit.to(tl.int64)[:, None] * V + c


@triton.jit
def offset_in_row(row, unit, c, HEADS: tl.constexpr, V: tl.constexpr):
    """Of a unit's channels in the head of a row."""
    return (row.to(tl.int64) * HEADS + unit % HEADS)[:, None] * V + c


@triton.jit
def load_read(p_y, row, unit, c, rows, HEADS: tl.constexpr, V: tl.constexpr):
    """A unit's part of a row, 0 of none."""
    place = offset_in_row(row, unit, c, HEADS, V)
    return tl.load(p_y + place, mask=(row < rows)[:, None] & (c < V), other=0.0)


@triton.jit
def before_norm(x, c, BEFORE: tl.constexpr, V: tl.constexpr):
    """b, 0 beyond the channels."""
    b = x
    if BEFORE is not None:
        b = tl.where(c < V, activated(x, BEFORE), 0.0)
    return b


@triton.jit
def inverse_size(b, EPS: tl.constexpr, V: tl.constexpr):
    """``1 / sqrt(mean(b^2) + eps)`` of each unit."""
    return tl.rsqrt(tl.sum(b * b, axis=1) / V + EPS)[:, None]


@triton.jit
def forward_kernel(
    p_y, p_weight, p_row, p_scale, p_gate, p_o, rows, units,
    HEADS: tl.constexpr, V: tl.constexpr, COPIES: tl.constexpr, WEIGHTS: tl.constexpr, OF_HEADS: tl.constexpr,
    BEFORE: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr, EPS: tl.constexpr,
    BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """o of BM units."""
    unit, c = tl.program_id(0) * BM + tl.arange(0, BM), tl.arange(0, BV)[None, :]
    inside, place = (unit < units)[:, None] & (c < V), offset(unit, c, V)
    row, weight = places(p_weight, p_row, unit, units, rows, HEADS, COPIES, WEIGHTS, OF_HEADS, BM)
    x = tl.zeros((BM, BV), tl.float32)
    for j in tl.static_range(COPIES):
        x += weight[j][:, None] * load_read(p_y, row[j], unit, c, rows, HEADS, V).to(tl.float32)
    o = before_norm(x, c, BEFORE, V)
    if NORM:
        o = o * inverse_size(o, EPS, V) * tl.load(p_scale + c, mask=c < V, other=0.0)
    if GATE is not None:
        o *= activated(tl.load(p_gate + place, mask=inside, other=0.0).to(tl.float32), GATE)
    tl.store(p_o + place, o.to(p_o.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    p_y, p_weight, p_row, p_scale, p_gate, p_assignment, p_do, p_dy, p_dweight, p_dscale, p_dgate,
    rows, units, assignments, programs,
    PART: tl.constexpr, HEADS: tl.constexpr, V: tl.constexpr, COPIES: tl.constexpr,
    WEIGHTS: tl.constexpr, OF_HEADS: tl.constexpr, BEFORE: tl.constexpr, NORM: tl.constexpr, GATE: tl.constexpr,
    EPS: tl.constexpr, BM: tl.constexpr, BV: tl.constexpr,
):  # fmt: skip
    """Gradients of rows, weights [T, k, H], gate, and of the scale [programs, V], of PART units each.

    Programs beyond write 0 to PART heads of rows, as far as nobody reads them.
    """
    program, c = tl.program_id(0), tl.arange(0, BV)[None, :]
    if program >= programs:
        unit = (program - programs) * PART + tl.arange(0, PART)
        reader = tl.load(p_assignment + unit // HEADS, mask=unit // HEADS < rows, other=0)
        nothing = tl.zeros((PART, BV), p_dy.dtype.element_ty)
        tl.store(p_dy + offset(unit, c, V), nothing, mask=(reader >= assignments)[:, None] & (c < V))
    else:
        dscale = tl.zeros((BM, BV), tl.float32)
        for start in range(0, PART, BM):
            unit = program * PART + start + tl.arange(0, BM)
            inside, place = (unit < units)[:, None] & (c < V), offset(unit, c, V)
            row, weight = places(p_weight, p_row, unit, units, rows, HEADS, COPIES, WEIGHTS, OF_HEADS, BM)
            d = tl.load(p_do + place, mask=inside, other=0.0).to(tl.float32)
            x, reads = tl.zeros((BM, BV), tl.float32), ()
            for j in tl.static_range(COPIES):
                reads = reads + (load_read(p_y, row[j], unit, c, rows, HEADS, V),)  # noqa: RUF005
                x += weight[j][:, None] * reads[j].to(tl.float32)
            n = before_norm(x, c, BEFORE, V)
            if NORM:
                r = inverse_size(n, EPS, V)
                scale = tl.load(p_scale + c, mask=c < V, other=0.0)
                n *= r
            if GATE is not None:
                gate = tl.load(p_gate + place, mask=inside, other=0.0).to(tl.float32)
                ungated = n
                if NORM:
                    ungated = n * scale
                dgate = d * ungated * slope(gate, GATE)
                tl.store(p_dgate + place, dgate.to(p_dgate.dtype.element_ty), mask=inside)
                d *= activated(gate, GATE)
            if NORM:
                dscale += d * n
                d *= scale
                d = r * (d - n * (tl.sum(d * n, axis=1) / V)[:, None])
            if BEFORE is not None:
                d *= slope(x, BEFORE)
            for j in tl.static_range(COPIES):
                counts = tl.zeros((BM,), tl.float32)
                for i in tl.static_range(COPIES):  # a row that is read twice
                    counts += tl.where(row[i] == row[j], weight[i], 0.0)
                read = (row[j] < rows)[:, None] & (c < V)
                place_of_row = offset_in_row(row[j], unit, c, HEADS, V)
                tl.store(p_dy + place_of_row, (counts[:, None] * d).to(p_dy.dtype.element_ty), mask=read)
                if j < WEIGHTS:
                    dweight = tl.sum(d * reads[j].to(tl.float32), axis=1)
                    place_of_weight = (unit // HEADS * WEIGHTS + j) * HEADS + unit % HEADS
                    tl.store(p_dweight + place_of_weight, dweight, mask=unit < units)
        if NORM:
            tl.store(p_dscale + program * V + tl.arange(0, BV), tl.sum(dscale, axis=0), mask=tl.arange(0, BV) < V)
