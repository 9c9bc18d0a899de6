"""A tiny run on the command line."""

import random

import pytest

# What compiles fastest: the command line is tested, not the rule.
SIMPLE = ["--model.memory-rule", "linear_attention", "--model.feature-map", "elu", "--model.no-use-short-conv"]


@pytest.fixture(scope="session")
def tiny_run(tiny_default_rule: list[str]) -> list[str]:
    """Overrides that shrink mom-tiny to a simple one-layer model on a small text."""
    return [*tiny_default_rule, *SIMPLE]


@pytest.fixture(scope="session")
def tiny_default_rule(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The same with the default rule, which is one that is published."""
    folder, rng = tmp_path_factory.mktemp("corpus"), random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(60)]
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(" ".join(rng.choices(words, k=600)) + "\n", encoding="utf-8")
    sizes = "--model.hidden-size 32 --model.num-hidden-layers 1 --model.head-dim 16 --model.intermediate-size 64"
    data = f"--data.path {folder} --data.sequence-length 64 --data.batch-size 4 --data.held-out-fraction 0.2"
    cache = f"--data.cache-dir {tmp_path_factory.mktemp('shards')}"
    return f"{sizes} {data} {cache} --steps 30 --log-every 1 --eval-windows 8 --eval-every 15".split()
