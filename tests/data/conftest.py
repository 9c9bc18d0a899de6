"""Small corpora on disk."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

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
