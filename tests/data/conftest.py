"""Small corpora on disk, and shards of one."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mom_jax.data.config import DataConfig
from mom_jax.data.prepare import prepare

Corpus = Callable[..., Path]


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Writes one jsonl file per list of documents into a folder and returns the folder."""

    def write(files: Sequence[Sequence[str]], name: str = "corpus") -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        for number, documents in enumerate(files):
            lines = "".join(json.dumps({"text": text}) + "\n" for text in documents)
            (folder / f"part-{number:03d}.jsonl").write_text(lines, encoding="utf-8")
        return folder

    return write


@pytest.fixture
def folder(corpus: Corpus, tmp_path: Path) -> Path:
    """A prepared folder of several shards per split."""
    text = corpus([[f"file {i} document {j} " * 3 for j in range(4)] for i in range(12)])
    config = DataConfig(path=str(text), held_out_fraction=0.3, shard_bytes=600, cache_dir=str(tmp_path / "other"))
    prepare(config, tmp_path / "shards")
    return tmp_path / "shards"
