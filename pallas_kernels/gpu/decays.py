"""Decays between the rows of a chunk inside a Triton kernel, from one log gate for each head."""

# Triton's annotations describe neither what its compiler accepts for constexpr nor its loops.
# pyright: reportArgumentType=false, reportGeneralTypeIssues=false

import triton
import triton.language as tl


@triton.jit
def decays_between(g, document, DOCUMENTS: tl.constexpr, C: tl.constexpr):
    """``exp(sum of g_j over i < j <= t)`` for rows i <= t of one document, else 0: float32 [C, C], row t, column i.

    ``g`` is float32 [C], ``document`` int32 [C], read if ``DOCUMENTS``. Each sum runs over the gates between two
    rows only, so that a very strong gate costs the others no digits.
    """
    row = tl.arange(0, C)[:, None]
    column = tl.arange(0, C)[None, :]
    passed = tl.cumsum(tl.where(row > column, g[:, None], 0.0), axis=0)
    visible = row >= column
    if DOCUMENTS:
        visible = visible & (document[:, None] == document[None, :])
    return tl.exp(tl.where(visible, passed, float("-inf")))


@triton.jit
def load_documents(p_document, row, DOCUMENTS: tl.constexpr, C: tl.constexpr):
    """Documents begun inside a chunk up to each of its rows, int32 [C]; 0 where there are none."""
    document = tl.zeros((C,), tl.int32)
    if DOCUMENTS:
        document = tl.load(p_document + row + tl.arange(0, C))
    return document
