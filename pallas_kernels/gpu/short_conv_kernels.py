"""The Triton kernels of the short convolution; `short_conv` has the equations and calls them.

A program has one chunk and a block of channels ``c``, those before ``end``; 0 masks all. ``history`` are the W-1 rows
before a row, the oldest first; ``taps`` are the filters, the row's own tap first.
"""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def program(D: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr):
    """The chunk, the channels and their end."""
    blocks = tl.cdiv(D, WIDTH)
    begin = (tl.program_id(0) % blocks) * WIDTH
    return (tl.program_id(0) // blocks).to(tl.int64), begin + tl.arange(0, BK), tl.minimum(begin + WIDTH, D)


@triton.jit
def load_row(p_x, row, c, end, D: tl.constexpr):
    """``x[row, c]`` in float32, 0 where masked."""
    return tl.load(p_x + row * D + c, mask=c < end, other=0.0).to(tl.float32)


@triton.jit
def store_row(p_x, row, c, x, end, D: tl.constexpr):
    """Writes what `load_row` reads."""
    tl.store(p_x + row * D + c, x.to(p_x.dtype.element_ty), mask=c < end)


@triton.jit
def load_input(p_x, p_token, row, c, end, valid, GATHER: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr):
    """The input of a row, or of its token if rows are copies of tokens; 0 if the row is not ``valid``."""
    source = row
    if GATHER:
        token = tl.load(p_token + row, mask=valid, other=TOKENS)
        source = token.to(tl.int64)
        valid = valid & (token < TOKENS)
    return load_row(p_x, source, c, tl.where(valid, end, 0), D)


@triton.jit
def load_history(
    p_x, p_token, p_state, row, c, end, segment, first, used,
    STATE: tl.constexpr, GATHER: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """The history of a chunk's first row: from the chunk before, or from the segment's state, or zeros."""
    history = ()
    for j in tl.static_range(W - 1):
        x = load_input(p_x, p_token, row + j - (W - 1), c, end, used & (first == 0), GATHER, TOKENS, D)
        if STATE:
            x += load_row(p_state, segment * (W - 1) + j, c, tl.where(used & first, end, 0), D)
        history = history + (x,)  # noqa: RUF005
    return history


@triton.jit
def load_taps(p_weight, c, end, W: tl.constexpr):
    """The filters of the channels."""
    taps = ()
    for w in tl.static_range(W):
        taps = taps + (tl.load(p_weight + c * W + (W - 1 - w), mask=c < end, other=0.0).to(tl.float32),)  # noqa: RUF005
    return taps


@triton.jit
def load_bias(p_bias, c, end, BIAS: tl.constexpr, D: tl.constexpr, BK: tl.constexpr):
    """The bias of the channels, or zeros."""
    bias = tl.zeros((BK,), tl.float32)
    if BIAS:
        bias = load_row(p_bias, 0, c, end, D)
    return bias


@triton.jit
def load_reach(p_reach, row, valid, DOCUMENTS: tl.constexpr, W: tl.constexpr):
    """How many rows of its history a row sees."""
    reach = W - 1
    if DOCUMENTS:
        reach = tl.load(p_reach + row, mask=valid, other=0)
    return reach


@triton.jit
def visible(x, w, reach):
    """``x`` if a row sees as far as ``w`` rows back, else 0."""
    return tl.where(w <= reach, x, 0.0)


@triton.jit
def filtered(x, history, taps, bias, reach, W: tl.constexpr):
    """t of a row."""
    t = taps[0] * x + bias
    for w in tl.static_range(1, W):
        t += taps[w] * visible(history[W - 1 - w], w, reach)
    return t


@triton.jit
def shifted(history, x, W: tl.constexpr):
    """The history of the next row."""
    shorter = ()
    for j in tl.static_range(1, W - 1):
        shorter = shorter + (history[j],)  # noqa: RUF005
    return shorter + (x,)  # noqa: RUF005


@triton.jit
def forward_kernel(
    p_x, p_weight, p_bias, p_state, p_reach, p_token, p_segment, p_first, p_last, p_y,
    BIAS: tl.constexpr, STATE: tl.constexpr, DOCUMENTS: tl.constexpr, GATHER: tl.constexpr,
    ACTIVATE: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, SEGMENTS: tl.constexpr, TOKENS: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """y [N, D]; a program for each chunk and block of channels. Unused chunks are not read."""
    chunk, c, end = program(D, WIDTH, BK)
    row, segment = chunk * C, tl.load(p_segment + chunk).to(tl.int64)
    first, used = tl.load(p_first + chunk) != 0, segment < SEGMENTS
    taps = load_taps(p_weight, c, end, W)
    bias = load_bias(p_bias, c, end, BIAS, D, BK)
    history = load_history(p_x, p_token, p_state, row, c, end, segment, first, used, STATE, GATHER, TOKENS, D, W)
    for n in range(0, C, ROWS):
        rows = ()
        for i in tl.static_range(ROWS):
            rows = rows + (load_input(p_x, p_token, row + n + i, c, end, used, GATHER, TOKENS, D),)  # noqa: RUF005
        for i in tl.static_range(ROWS):
            y = filtered(rows[i], history, taps, bias, load_reach(p_reach, row + n + i, used, DOCUMENTS, W), W)
            if ACTIVATE:
                y *= tl.sigmoid(y)
            if NORM:
                y *= tl.rsqrt(tl.sum(y * y, axis=0) + EPS)
            store_row(p_y, row + n + i, c, y, end, D)
            history = shifted(history, rows[i], W)


@triton.jit
def step_kernel(
    p_x, p_weight, p_bias, p_token, p_place, p_reset, p_states, p_y,
    BIAS: tl.constexpr, GATHER: tl.constexpr, RESETS: tl.constexpr, ACTIVATE: tl.constexpr, NORM: tl.constexpr,
    EPS: tl.constexpr, TOKENS: tl.constexpr, D: tl.constexpr, W: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """y [N, D] of one token for each row, and the inputs before it, shifted by one where they lie."""
    row, c, end = program(D, WIDTH, BK)
    place = tl.load(p_place + row).to(tl.int64)
    known = place >= 0
    seen = known
    if RESETS:
        seen = known & (tl.load(p_reset + row) == 0)
    history = ()
    for j in tl.static_range(W - 1):
        x = load_row(p_states, place * (W - 1) + j, c, tl.where(seen, end, 0), D)
        history = history + (x,)  # noqa: RUF005
    x = load_input(p_x, p_token, row, c, end, known, GATHER, TOKENS, D)
    y = filtered(x, history, load_taps(p_weight, c, end, W), load_bias(p_bias, c, end, BIAS, D, BK), W - 1, W)
    if ACTIVATE:
        y *= tl.sigmoid(y)
    if NORM:
        y *= tl.rsqrt(tl.sum(y * y, axis=0) + EPS)
    store_row(p_y, row, c, y, end, D)
    history = shifted(history, x, W)
    for j in tl.static_range(W - 1):
        store_row(p_states, place * (W - 1) + j, c, history[j], tl.where(known, end, 0), D)


@triton.jit
def filtered_gradient(dy, t, ACTIVATE: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr):
    """The gradient of t."""
    s = tl.sigmoid(t)
    z, dz = t, dy
    if ACTIVATE:
        z = t * s
    if NORM:
        r = tl.rsqrt(tl.sum(z * z, axis=0) + EPS)
        dz = r * (dy - z * (r * r * tl.sum(z * dy, axis=0)))
    if ACTIVATE:
        dz *= s * (1 + t * (1 - s))
    return dz


@triton.jit
def input_gradients(dt, pending, taps, reach, W: tl.constexpr):
    """``pending``, the gradients so far of the W-1 rows before a row, with what the row adds; then its own so far."""
    grads = ()
    for j in tl.static_range(W - 1):
        grads = grads + (pending[j] + taps[W - 1 - j] * visible(dt, W - 1 - j, reach),)  # noqa: RUF005
    return grads + (taps[0] * dt,)  # noqa: RUF005


@triton.jit
def backward_kernel(
    p_x, p_weight, p_bias, p_state, p_reach, p_token, p_segment, p_first, p_last, p_dy, p_dx, p_sums, p_dstate,
    BIAS: tl.constexpr, STATE: tl.constexpr, DOCUMENTS: tl.constexpr, GATHER: tl.constexpr,
    ACTIVATE: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr, SEGMENTS: tl.constexpr, TOKENS: tl.constexpr,
    D: tl.constexpr, W: tl.constexpr, C: tl.constexpr, WIDTH: tl.constexpr, BK: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dx [N, D]; of each chunk, gradients of the filters and of a bias [chunks, D, W + BIAS]; dstate.

    A row's gradient is complete W-1 rows later; what is so before a segment's first row belongs to the state.
    """
    chunk, c, end = program(D, WIDTH, BK)
    row, segment = chunk * C, tl.load(p_segment + chunk).to(tl.int64)
    first, used = tl.load(p_first + chunk) != 0, segment < SEGMENTS
    taps = load_taps(p_weight, c, end, W)
    bias = load_bias(p_bias, c, end, BIAS, D, BK)
    history = load_history(p_x, p_token, p_state, row, c, end, segment, first, used, STATE, GATHER, TOKENS, D, W)
    pending = ()
    for _ in tl.static_range(W - 1):
        pending = pending + (tl.zeros((BK,), tl.float32),)  # noqa: RUF005
    dbias = tl.zeros((BK,), tl.float32)
    dtaps = pending + (dbias,)  # noqa: RUF005
    for n in range(0, C, ROWS):
        rows = ()
        drows = ()
        for i in tl.static_range(ROWS):
            rows = rows + (load_input(p_x, p_token, row + n + i, c, end, used, GATHER, TOKENS, D),)  # noqa: RUF005
            drows = drows + (load_row(p_dy, row + n + i, c, tl.where(used, end, 0), D),)  # noqa: RUF005
        for i in tl.static_range(ROWS):
            reach = load_reach(p_reach, row + n + i, used, DOCUMENTS, W)
            dt = filtered_gradient(drows[i], filtered(rows[i], history, taps, bias, reach, W), ACTIVATE, NORM, EPS)
            sums = (dtaps[0] + dt * rows[i],)
            for w in tl.static_range(1, W):
                sums = sums + (dtaps[w] + dt * visible(history[W - 1 - w], w, reach),)  # noqa: RUF005
            dtaps = sums
            dbias += dt
            grads = input_gradients(dt, pending, taps, reach, W)
            complete = n + i - (W - 1)
            store_row(p_dx, row + complete, c, grads[0], tl.where(complete >= 0, end, 0), D)
            if STATE:
                place = (segment + 1) * (W - 1) + complete
                store_row(p_dstate, place, c, grads[0], tl.where(used & first & (complete < 0), end, 0), D)
            pending = shifted(grads, grads[W - 1], W)
            history = shifted(history, rows[i], W)
    continues = used & (tl.load(p_last + chunk) == 0)
    for i in tl.static_range(W - 1):  # the next chunk's first rows, whose history are the last ones of this
        halo = row + C + i
        x = load_input(p_x, p_token, halo, c, end, continues, GATHER, TOKENS, D)
        dy = load_row(p_dy, halo, c, tl.where(continues, end, 0), D)
        reach = load_reach(p_reach, halo, continues, DOCUMENTS, W)
        dt = filtered_gradient(dy, filtered(x, history, taps, bias, reach, W), ACTIVATE, NORM, EPS)
        grads = input_gradients(dt, pending, taps, reach, W)
        store_row(p_dx, halo - (W - 1), c, grads[0], end, D)
        pending = shifted(grads, grads[W - 1], W)
        history = shifted(history, x, W)
    p_sum = p_sums + (chunk * D + c) * (W + BIAS)
    for w in tl.static_range(W):
        tl.store(p_sum + (W - 1 - w), dtaps[w], mask=c < end)
    if BIAS:
        tl.store(p_sum + W, dbias, mask=c < end)
