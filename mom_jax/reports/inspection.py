"""A page that shows what a model does with a text: ``mom-jax inspect``."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mom_jax.data.tokenizers import StreamDecoder, Tokenizer
from mom_jax.inspection import Inspection, LayerView, distance
from mom_jax.reports.html import render
from mom_jax.reports.tables import Table

_WIDTH, _HEIGHT = 260, 90  # of a plot, in its own units
_AROUND = 12  # tokens of context on each side


@dataclasses.dataclass(frozen=True)
class Snippet:
    """A token in its context."""

    before: str
    token: str
    after: str


def token_texts(tokenizer: Tokenizer, ids: Sequence[int] | np.ndarray) -> list[str]:
    """The text that each token completes; together they are the text."""
    decoder = StreamDecoder(tokenizer)
    texts = [decoder.feed(int(token)) for token in ids]
    texts[-1] += decoder.flush()
    return texts


def inspection_page(
    found: Inspection,
    texts: Sequence[str],
    title: str,
    against: Inspection | None = None,
    facts: Sequence[tuple[str, str]] = (),
) -> str:
    """One HTML page, readable on light and dark screens, that loads nothing from elsewhere.

    Args:
        found: of the text.
        texts: of each token (`token_texts`).
        title: what was looked at.
        against: of another text, whose routing is set beside this one's.
        facts: names and values above all else.
    """
    others = [None] * len(found.layers) if against is None else against.layers
    sections = [_section(layer, other, texts) for layer, other in zip(found.layers, others, strict=True)]
    colours = max(layer.kept.shape[0] for layer in found.layers)
    return render(
        Path(__file__).with_name("inspection.html"),
        title=title,
        facts=facts,
        layers=sections,
        hues=[_hue(memory) for memory in range(colours)],
        summary=inspection_table(found, against),
        size=(_WIDTH, _HEIGHT),
        compared=against is not None,
    )


def inspection_table(found: Inspection, against: Inspection | None = None) -> Table:
    """A line for each layer: load and half-life of its memories, and how differently another text is routed."""
    heading = ["layer", "load", "half-life (tokens)"] + ["distance"] * (against is not None)
    rows = []
    for number, layer in enumerate(found.layers):
        cells = [str(layer.number), " ".join(f"{share:.2f}" for share in layer.load)]
        cells.append(" ".join(_tokens(value, layer) for value in layer.half_life))
        rows.append(cells + ([] if against is None else [f"{distance(layer, against.layers[number]):.2f}"]))
    note = "Load: each routed memory's share of all choices. Half-life: tokens until half of a memory's content is gone"
    note += ", the shared memory last." if len(found.layers[0].kept) > found.layers[0].memories else "."
    if against is not None:
        note += " Distance: half the sum of differences between the loads of the two texts, from 0 to 1."
    return Table("", heading, rows, note)


def _section(layer: LayerView, other: LayerView | None, texts: Sequence[str]) -> dict[str, Any]:
    names = [f"memory {memory}" for memory in range(layer.memories)] + ["shared"]
    return {
        "number": layer.number,
        "tokens": [_token(layer, t, text) for t, text in enumerate(texts)],
        "load": [(names[m], float(share), None if other is None else float(other.load[m])) for m, share in
                 enumerate(layer.load)],
        "distance": None if other is None else distance(layer, other),
        "curves": [(names[m], m, _points(layer, kept), _tokens(layer.half_life[m], layer)) for m, kept in
                   enumerate(layer.kept)],
        "marks": _marks(int(layer.kept_after[-1])) if layer.kept_after.size else [],
        "answers": [(names[m], m, *answer) for m in range(len(names[: len(layer.kept)])) if
                    (answer := _answer(layer, m, texts))],
    }  # fmt: skip


def _token(layer: LayerView, t: int, text: str) -> dict[str, Any]:
    """Its text, its likeliest memories, and all that is known of it in words."""
    chosen = [int(m) for m in layer.memory_ids[t] if m >= 0]
    reads = ", ".join(f"memory {m} ({w:.2f})" for m, w in zip(chosen, layer.weights[t], strict=False))
    shares = " ".join(f"{share:.2f}" for share in layer.shares[t])
    words = f"token {t}, {text or '(part of a character)'!r}: {reads}; the router's shares {shares}"
    shown = "↵\n" if text == "\n" else text
    return {"text": shown, "first": chosen[0], "second": chosen[1] if len(chosen) > 1 else chosen[0], "words": words}


def _points(layer: LayerView, kept: np.ndarray) -> str:
    """A curve from 1 at 0 on, in the units of the plot; empty where nothing was written."""
    if np.isnan(kept).any() or not kept.size:
        return ""
    x, y = np.concatenate([[0], np.log2(1 + layer.kept_after)]), np.concatenate([[1], np.clip(kept, 0, 1)])
    return " ".join(f"{_WIDTH * a / x[-1]:.1f},{_HEIGHT * (1 - b):.1f}" for a, b in zip(x, y, strict=True))


def _marks(longest: int) -> list[tuple[float, str]]:
    """Places and names of a few numbers of tokens along a logarithmic axis."""
    numbers = [4**power for power in range(12) if 4**power < longest / 2] + [longest]
    return [(_WIDTH * float(np.log2(1 + n) / np.log2(1 + longest)), f"{n}") for n in numbers]


def _tokens(half_life: float, layer: LayerView) -> str:
    if math.isnan(half_life):
        return "–"
    if math.isinf(half_life):
        return f">{layer.kept_after[-1]}"
    return f"{half_life:.0f}" if half_life >= 10 else f"{half_life:.2g}"


def _answer(layer: LayerView, memory: int, texts: Sequence[str]) -> tuple[Snippet, list[tuple[Snippet, float]]] | None:
    """The last token that asks a memory which has something to answer, and the nearest keys there."""
    tokens, slots = np.nonzero((layer.assignments == memory) & (layer.nearest[..., 0] >= 0))
    if not tokens.size:
        return None
    token, slot = tokens[-1], slots[-1]
    near = zip(layer.nearest[token, slot], layer.similarity[token, slot], strict=True)
    return _snippet(texts, token), [(_snippet(texts, key), float(cosine)) for key, cosine in near if key >= 0]


def _snippet(texts: Sequence[str], t: int) -> Snippet:
    before, after = texts[max(0, t - _AROUND) : t], texts[t + 1 : t + 1 + _AROUND]
    token = texts[t].replace("\n", "↵") or "�"
    return Snippet("".join(before).replace("\n", "↵"), token, "".join(after).replace("\n", "↵"))


def _hue(memory: int) -> float:
    """Hues that stay apart however many there are: by the golden angle."""
    return round((212 + 137.508 * memory) % 360, 1)
