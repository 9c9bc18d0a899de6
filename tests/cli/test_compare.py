"""``mom-jax compare`` without PyTorch: what is wrong is one line, what is found decides the exit status."""

import json
from pathlib import Path

import numpy as np
import pytest
from support.stand_in import StandIn, tokens

from mom_jax import errors
from mom_jax.cli import compare as verb
from mom_jax.cli.main import main
from mom_jax.evals.compare import tokens as token_sources
from mom_jax.evals.compare.comparison import compare, tolerances
from mom_jax.evals.compare.picture import comparison_figure
from mom_jax.evals.compare.tables import comparison_tables
from mom_jax.evals.reference import install
from mom_jax.interop.published import write_config
from mom_jax.models.config import MoMConfig

CONFIG = MoMConfig(vocab_size=300, hidden_size=16, num_hidden_layers=1, num_heads=1, head_dim=16, pad_token_id=7)
VERSIONS = {"flash-linear-attention": "0.6.0", "torch": "2.13.0", "transformers": "5.23.0"}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A published config; the packages count as installed."""
    monkeypatch.setattr(verb, "installed_versions", lambda: VERSIONS)
    path = tmp_path / "model"
    path.mkdir()
    write_config(CONFIG, path / "config.json", "float32")
    return path


def test_without_the_packages(monkeypatch, complaint):
    monkeypatch.setattr(install, "PACKAGES", ("no-such-package",))
    error = complaint("compare", "--reference", "anywhere")
    assert "no-such-package=not installed" in error and errors.install("parity") in error


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"model_type": "llama"}, [], "model_type=llama: "),
        ({"model_type": "mom_gated_deltanet"}, [], "model_type=mom_gated_deltanet: the reference reads only mom"),
        ({}, ["--text", "missing.txt"], "text=missing.txt: cannot be read"),
        ({}, ["--text", __file__, "--tokenizer", "bytes", "--tokens", "1x900000"], "fewer than the 900000 of a row"),
        ({}, ["--text", __file__], "tokenizer="),
    ],
    ids=["another model", "older layout", "no text", "short text", "no tokenizer"],
)
def test_bad_input_is_one_line(folder, change, options, message, complaint):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    assert message in complaint("compare", "--reference", folder, *options)


def test_no_folder_is_one_line(folder, complaint):
    assert "no such folder" in complaint("compare", "--reference", folder / "none")


@pytest.mark.parametrize(("wrong", "status"), [(0.0, 0), (0.3, 1)], ids=["equal", "different"])
def test_status_tables_and_files(folder, tmp_path, monkeypatch, capsys, wrong, status):
    def stand_in(wanted, config, draw):
        assert draw(0).shape == (2, 80)
        reference = StandIn()
        result = compare(reference.changed("logits", (0, 3, 1), wrong), reference, tokens(), 8, tolerances())
        tables = list(comparison_tables(result))
        return result, tables, lambda: comparison_figure(result), {"kernels": "naive"}

    monkeypatch.setattr(verb, "_run", stand_in)
    assert main(["compare", "--reference", str(folder), "--out", str(tmp_path / "out")]) == status
    shown = capsys.readouterr().out
    assert "flash-linear-attention 0.6.0" in shown and "naive PyTorch operators" in shown
    assert ("TOO LARGE" in shown) == bool(status) and "24 of 24 greedy tokens equal" in shown
    record = json.loads((tmp_path / "out" / "compare.json").read_text(encoding="utf-8"))
    assert record["ok"] == (not status) and record["settings"]["torch"] == "2.13.0"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.json", "compare.png"]


def test_random_tokens_leave_padding_out():
    ids = token_sources.random_tokens(CONFIG, 20, 200, seed=3)
    assert ids.shape == (20, 200) and ids.dtype == np.int32
    assert sorted(set(ids.flat)) == [i for i in range(300) if i != 7]
    assert (ids != token_sources.random_tokens(CONFIG, 20, 200, seed=4)).any()


def test_text_tokens_are_windows_of_the_text():
    text = Path(__file__).read_text(encoding="utf-8")
    ids = token_sources.text_tokens(__file__, "bytes", CONFIG, 4, 30, seed=0)
    assert ids.shape == (4, 30) and all(bytes(row.tolist()).decode() in text for row in ids)
