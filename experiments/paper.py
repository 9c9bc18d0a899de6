"""Numbers of the paper (arXiv 2502.13685), by table: what ours are shown beside.

All are in percent but perplexities. Models of 380M parameters saw 15B tokens of SlimPajama, those of 1.3B 100B.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: in the paper.
        title: what it measures.
        columns: names of the columns.
        rows: (size, model, a number for each column).
    """

    number: int
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[float, ...]], ...]


RECALL = PaperTable(
    2,
    "recall-intensive tasks, inputs cut to 2K tokens",
    ("FDA", "SWDE", "SQuAD", "NQ", "TriviaQA", "DROP", "average"),
    (
        ("380M", "Transformer++", (46.14, 25.87, 33.22, 18.94, 45.97, 20.03, 31.70)),
        ("380M", "RetNet", (5.90, 9.28, 22.41, 6.91, 40.05, 18.59, 17.19)),
        ("380M", "HGRN2", (11.53, 17.34, 24.08, 12.67, 43.84, 17.35, 21.14)),
        ("380M", "GLA", (11.26, 16.78, 27.85, 12.77, 43.90, 17.68, 21.71)),
        ("380M", "GSA", (6.36, 16.87, 21.90, 14.60, 42.18, 16.72, 19.77)),
        ("380M", "Gated DeltaNet", (20.53, 23.24, 28.55, 14.98, 44.91, 16.48, 24.78)),
        ("380M", "MoM", (22.98, 29.90, 29.69, 16.60, 48.82, 20.99, 28.16)),
        ("1.3B", "Transformer++", (44.32, 32.43, 42.59, 24.49, 58.47, 21.56, 37.31)),
        ("1.3B", "RetNet", (13.62, 22.59, 33.46, 15.43, 53.79, 19.79, 26.45)),
        ("1.3B", "HGRN2", (12.35, 23.24, 33.19, 19.10, 55.27, 19.65, 27.13)),
        ("1.3B", "GLA", (27.61, 30.93, 35.04, 22.27, 56.28, 19.45, 31.93)),
        ("1.3B", "GSA", (23.25, 32.80, 35.57, 22.96, 57.05, 20.65, 32.05)),
        ("1.3B", "Gated DeltaNet", (30.25, 27.65, 34.06, 23.22, 58.23, 20.36, 32.30)),
        ("1.3B", "MoM", (41.14, 34.30, 37.08, 24.11, 58.59, 21.03, 36.04)),
    ),
)
LONGBENCH = PaperTable(
    3,
    "LongBench",
    ("summarisation", "few-shot", "synthetic", "code", "average"),
    (
        ("1.3B", "RetNet", (6.30, 15.76, 2.64, 40.52, 13.61)),
        ("1.3B", "HGRN2", (6.51, 15.50, 2.61, 40.11, 13.02)),
        ("1.3B", "GSA", (7.75, 20.29, 1.92, 42.83, 14.61)),
        ("1.3B", "Gated DeltaNet", (7.14, 18.00, 2.10, 41.52, 13.98)),
        ("1.3B", "MoM", (6.89, 21.26, 2.63, 47.79, 15.64)),
    ),
)
COMMONSENSE = PaperTable(
    7,
    "commonsense tasks",
    ("WikiText perplexity", "LAMBADA perplexity", "average"),
    (
        ("380M", "Transformer++", (26.88, 76.46, 41.35)),
        ("380M", "RetNet", (31.07, 87.11, 40.19)),
        ("380M", "HGRN2", (27.90, 77.40, 41.46)),
        ("380M", "GLA", (28.78, 79.95, 40.32)),
        ("380M", "GSA", (28.17, 82.50, 40.67)),
        ("380M", "Gated DeltaNet", (26.47, 58.59, 41.44)),
        ("380M", "MoM", (25.86, 55.41, 41.97)),
        ("1.3B", "Transformer++", (17.61, 19.29, 49.93)),
        ("1.3B", "RetNet", (18.18, 21.97, 48.81)),
        ("1.3B", "HGRN2", (17.32, 15.65, 50.66)),
        ("1.3B", "GLA", (17.61, 19.66, 49.24)),
        ("1.3B", "GSA", (16.69, 16.02, 50.89)),
        ("1.3B", "Gated DeltaNet", (17.14, 18.80, 49.58)),
        ("1.3B", "MoM", (16.64, 14.83, 50.97)),
    ),
)

_AVERAGES = ("recall average", "commonsense average")
MIXED_OR_EXPANDED = PaperTable(
    4,
    "mixed memories against one expanded memory",
    _AVERAGES,
    (
        ("395M", "GLA, mixed", (23.53, 39.99)),
        ("425M", "GLA, expanded", (22.87, 38.90)),
        ("444M", "Gated DeltaNet, mixed", (28.16, 41.97)),
        ("550M", "Gated DeltaNet, expanded", (26.32, 41.32)),
    ),
)
AUXILIARY_LOSS = PaperTable(
    6,
    "scale of the auxiliary loss, and the shared memory",
    _AVERAGES,
    (
        ("380M", "MoM, scale 1e-2", (27.59, 42.10)),
        ("380M", "MoM, scale 5e-3", (26.55, 41.71)),
        ("380M", "MoM, scale 1e-3", (28.16, 41.97)),
        ("380M", "MoM, scale 0", (27.23, 41.58)),
        ("380M", "MoM, no shared memory", (26.06, 40.38)),
    ),
)
HYBRID = PaperTable(
    8,
    "one attention layer for each seven of memories",
    _AVERAGES,
    (("380M", "MoM, 3 of 24 layers attention", (37.80, 42.38)),),
)
EQUAL_ACTIVATED = PaperTable(
    9,
    "equal activated parameters",
    _AVERAGES,
    (
        ("400M", "Gated DeltaNet", (24.78, 41.44)),
        ("400M", "MoM", (26.51, 41.50)),
    ),
)
