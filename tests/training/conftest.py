"""A text, and a run so small that only compilation takes time."""

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from mom_jax.data.config import DataConfig
from mom_jax.models.config import MoMConfig
from mom_jax.training.config import CheckpointConfig, OptimizerConfig, TrainConfig

# Runs are tested here, not rules; this one compiles in half of the default's time.
MODEL = MoMConfig(vocab_size=264, hidden_size=32, num_hidden_layers=1, num_heads=2, head_dim=16, intermediate_size=64,
                  tie_word_embeddings=False, memory_rule="linear_attention", feature_map="elu",
                  use_short_conv=False)  # fmt: skip

MakeConfig = Callable[..., TrainConfig]


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve text files of random words."""
    folder = tmp_path_factory.mktemp("corpus")
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(60)]
    for number in range(12):
        (folder / f"{number:02}.txt").write_text(" ".join(rng.choices(words, k=600)) + "\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def make_config(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeConfig:
    """A tiny run into the given folder; keyword arguments replace its fields, dictionaries those of a section."""
    cache = str(tmp_path_factory.mktemp("shards"))

    def make(run_dir: Path | str = "unused", **changes: object) -> TrainConfig:
        config = TrainConfig(
            model=MODEL,
            data=DataConfig(path=str(corpus), sequence_length=64, batch_size=8, held_out_fraction=0.2, cache_dir=cache),
            optimizer=OptimizerConfig(learning_rate=1e-2, warmup_steps=4),
            checkpoint=CheckpointConfig(every=5, keep=10),
            run_dir=str(run_dir),
            steps=20,
            log_every=1,
            eval_every=10,
            eval_windows=8,
        )
        sections = {name: fields for name, fields in changes.items() if isinstance(fields, dict)}
        changes |= {name: dataclasses.replace(getattr(config, name), **fields) for name, fields in sections.items()}
        return dataclasses.replace(config, **changes)  # type: ignore[arg-type]

    return make
