"""Sound things to damage, made once, and the table of counts at the end."""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fuzz import SPLIT, TINY, Trials, in_process

_COLUMNS = ("trials", "traceback", "hang", "wrong status", "silent acceptance", "other line", "half written")
_COUNTS: dict[str, Counter[str]] = {}


@pytest.fixture
def trials(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trials]:
    """Trials named after the test, in a folder of their own; what failed is told when all were made."""
    monkeypatch.chdir(tmp_path)
    made = Trials(request.node.name.removeprefix("test_").replace("_", " "), tmp_path)
    yield made
    _COUNTS[made.kind] = made.counts
    if made.failures:
        pytest.fail(f"{len(made.failures)} of {made.counts['trials']}:\n" + "\n".join(made.failures), pytrace=False)


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> random.Random:
    """The same numbers in every run, others in every test."""
    return random.Random(request.node.name)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of these tests, and no network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("HF_HUB_OFFLINE", "1")
        yield


def _done(*args: object) -> None:
    ended = in_process(list(map(str, args)))
    assert ended.status == 0, ended.err


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, its shards, a run of two checkpoints with its scores, and the same model published."""
    folder, rng = tmp_path_factory.mktemp("sound"), random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 7))) for _ in range(60)]
    (folder / "text").mkdir()
    for number in range(6):
        text = " ".join(rng.choices(words, k=300)) + "\n"
        (folder / "text" / f"{number}.txt").write_text(text, encoding="utf-8")
    _done("data", "prepare", folder / "shards", "--data.path", folder / "text", "--workers", 1, *SPLIT)
    _done("train", "mom-tiny", *TINY, "--data.path", folder / "shards", "--run-dir", folder / "run")
    _done("eval", folder / "run", "--no-sample")
    _done("convert", folder / "run", folder / "published")
    return folder


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Puts a fresh copy of something sound into the trials' folder, in place of the one before."""

    def fresh(name: str) -> Path:
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        shutil.copytree(sound / name, tmp_path / name)
        return tmp_path / name

    return fresh


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Trials by kind, and how many of them went wrong in which way."""
    if not _COUNTS:
        return
    terminalreporter.section("bad input by kind")
    rows = [("kind", *_COLUMNS)]
    rows += [(kind, *(f"{counts[name]:,}" for name in _COLUMNS)) for kind, counts in _COUNTS.items()]
    total: Counter[str] = sum(_COUNTS.values(), Counter())
    rows.append(("all", *(f"{total[name]:,}" for name in _COLUMNS)))
    for row in rows:
        terminalreporter.write_line("| " + " | ".join(row) + " |")
